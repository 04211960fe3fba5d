"""The package sacrebleu, which the extra `eval` brings."""

import importlib
import importlib.util
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.metrics.metric import Metric


def scorer(name: str, **settings: Any) -> Any:
    """A scorer of sacrebleu's.

    Args:
        name: of its class, such as "BLEU".
        settings: its keywords.

    Raises:
        InputError: where sacrebleu is not installed.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise InputError(
            f"metric {name.lower()}: it needs sacrebleu, which is not installed: "
            "pip install 'jaxpeft[eval]'"
        )
    return getattr(importlib.import_module("sacrebleu.metrics"), name)(**settings)


def metric(scorer: Any) -> Metric:
    """The metric of one of sacrebleu's scorers, from 0 to 100.

    Args:
        scorer: a `sacrebleu.metrics.BLEU` or `CHRF`.
    """
    return Metric(
        each=lambda answer, reference: scorer.sentence_score(answer, [reference]).score,
        of_all=lambda answers, references: (
            scorer.corpus_score(list(answers), [list(references)]).score
        ),
    )
