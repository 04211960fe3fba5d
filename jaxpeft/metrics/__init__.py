"""Scores of answers beside their references: one file a metric, and their table."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxpeft.config import Table
from jaxpeft.config.evaluation import MetricSection
from jaxpeft.errors import InputError, suggest
from jaxpeft.metrics.bleu import bleu
from jaxpeft.metrics.choice_accuracy import choice_accuracy
from jaxpeft.metrics.chrf import chrf
from jaxpeft.metrics.exact_match import exact_match
from jaxpeft.metrics.metric import Metric
from jaxpeft.metrics.own import OPTION, is_own, load
from jaxpeft.metrics.rouge_l import rouge_l
from jaxpeft.metrics.token_f1 import token_f1

__all__ = ["METRICS", "OPTION", "Line", "Metric", "made"]


class Line(NamedTuple):
    """A line of the table of metrics.

    Attributes:
        make: the function whose keywords are the keys of an entry of
            `evaluation.metrics`.
    """

    make: Callable[..., Metric]


METRICS = Table(
    rows={
        "exact_match": Line(exact_match),
        "rouge_l": Line(rouge_l),
        "bleu": Line(bleu),
        "chrf": Line(chrf),
        "token_f1": Line(token_f1),
        "choice_accuracy": Line(choice_accuracy),
    },
    aliases={"rougeL": "rouge_l", "f1": "token_f1", "sacrebleu": "bleu"},
)


def made(
    sections: Sequence[MetricSection], also: Sequence[str] = ()
) -> dict[str, Metric]:
    """The metrics that a configuration and a command line name.

    Args:
        sections: the entries of `evaluation.metrics`, checked already.
        also: names from the command line, with the metrics' own defaults, and
            `FILE.py:FUNCTION`, which is run here.

    Returns:
        {name: metric}, in their order.

    Raises:
        InputError: for a name that is unknown or given twice, a function that cannot be
            had, and a metric whose package is not installed.
    """
    named = {METRICS.resolve(one.name): one for one in sections}
    found: dict[str, Metric] = {}
    wrong: list[str] = []
    for text in also:
        try:
            if is_own(text):
                name, metric = load(text)
            else:
                name, metric = _known(text), None
        except InputError as error:
            wrong += error.problems
            continue
        if name in found or name in named or (name in METRICS.rows and metric):
            wrong.append(f"{OPTION}: found {name!r} twice; keep one, or rename yours")
        elif metric:
            found[name] = metric
        else:
            named[name] = MetricSection(name=name)
    if wrong:
        raise InputError(*wrong)
    ours = {name: METRICS[name].make(**one.options) for name, one in named.items()}
    return ours | found


def _known(text: str) -> str:
    """The name in the table that a text of the command line stands for."""
    name = METRICS.resolve(text)
    if name in METRICS.rows:
        return name
    near = suggest(text, [*METRICS.rows, *METRICS.aliases])
    raise InputError(f"{OPTION}: found {text!r}; is not known{near}")
