"""What there is to say of a data set, in words: for the terminal and for the page."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpeft.assembly.summary import data_lines, data_warnings
from jaxpeft.data import Batches, EvalBatches, Examples, StreamBatches
from jaxpeft.data.render import end_of_turn, special_ids
from jaxpeft.look.histogram import Bar, histogram
from jaxpeft.look.statistics import (
    Statistics,
    columns,
    records,
    repeats,
    shared,
    statistics,
    together,
)

_TOKENS = 8  # special tokens named, the most frequent first
_VALUES = 8  # of a column that are named


@dataclass(frozen=True)
class Facts:
    """A data set in words.

    Attributes:
        kind: what it serves for, "training" or "evaluation".
        lines: what training says of it, too.
        remarks: what should be read.
        figures: (name, value) of each figure.
        bars: the histogram of its examples' lengths.
        columns: the names of the columns of `sources`.
        sources: a row for each source.
    """

    kind: str
    lines: list[str]
    remarks: list[str]
    figures: list[tuple[str, str]]
    bars: list[Bar]
    columns: tuple[str, ...]
    sources: list[tuple[str, ...]]


def facts(
    batches: Batches | StreamBatches,
    evaluation: EvalBatches | None,
    tokenizer: Any,
    max_length: int,
) -> list[Facts]:
    """The facts of the training data, and of those to evaluate on if there are any.

    Args:
        batches: of the training data.
        evaluation: of the evaluation data.
        tokenizer: the model's tokenizer.
        max_length: where examples are cut, in tokens.
    """
    sets = [("training", batches), ("evaluation", evaluation)]
    special = special_ids(tokenizer)
    found: list[tuple[str, Any, Statistics]] = []
    for kind, some in sets:
        if some is not None:
            most = max(int(special.max(initial=0)), len(tokenizer) - 1)
            counted = statistics(some.examples, special.tolist(), most + 1)
            found.append((kind, some, counted))
    trained = found[0][2]
    return [
        Facts(
            kind=kind,
            lines=data_lines(kind, summary := some.summary()),
            remarks=data_warnings(kind, summary)
            + _remarks(kind, some.examples, own, tokenizer),
            figures=_lengths(some.examples, own, max_length)
            + _specials(own, tokenizer)
            + _duplicates(kind, some.examples, own, trained)
            + _columns(some.examples),
            bars=histogram(some.examples.lengths),
            columns=tuple(rows := _sources(kind, some.examples)),
            sources=list(zip(*rows.values())),
        )
        for kind, some, own in found
    ]


def share(part: float, whole: float) -> str:
    """A share in percent, with as many digits as tell it from none and from all."""
    percent = 100 * part / max(whole, 1)
    if 99.5 <= percent < 100:  # two digits would be those of 100
        return "over 99.9 %" if percent > 99.9 else f"{percent:.1f} %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.2g} %"


def _counted(examples: int) -> str:
    return f"{examples:,} example{'' if examples == 1 else 's'}"


def _lengths(
    examples: Examples, own: Statistics, max_length: int
) -> list[tuple[str, str]]:
    lengths, count = examples.lengths, len(examples)
    half, most, nearly = np.percentile(lengths, [50, 90, 99], method="higher").tolist()
    tokens, learned = int(lengths.sum()), int(own.supervised.sum())
    figures = [
        (
            "lengths",
            f"{lengths.min():,} to {lengths.max():,} tokens, mean "
            f"{tokens / count:,.1f}; half up to {half:,}, 90 % up to {most:,}, "
            f"99 % up to {nearly:,}",
        ),
        (
            "learned",
            f"{share(learned, tokens)} of the tokens; {own.supervised.min():,} to "
            f"{own.supervised.max():,} an example, mean {learned / count:,.1f}",
        ),
    ]
    left_out = np.asarray(examples.left_out)
    cut, lost = int((left_out > 0).sum()), int(left_out.sum())
    if cut:
        whole = lengths + left_out
        figures.append(
            (
                "cut",
                f"{_counted(cut)} ({share(cut, count)}) at data.max_length "
                f"{max_length:,}, {lost:,} tokens ({share(lost, tokens + lost)}) left "
                f"out; {_whole_at(whole)}",
            )
        )
    else:
        figures.append(("cut", f"none at data.max_length {max_length:,}"))
    nothing = int((own.supervised == 0).sum())
    said = f"{_counted(nothing)} ({share(nothing, count)})" if nothing else "none"
    return [*figures, ("nothing to learn", said)]


def _whole_at(lengths: np.ndarray) -> str:
    """How long examples may be for most of them to be whole."""
    most, nearly = np.percentile(lengths, [90, 99], method="higher").tolist()
    return (
        f"90 % would be whole at {most:,}, 99 % at {nearly:,}, all at {lengths.max():,}"
    )


def _specials(own: Statistics, tokenizer: Any) -> list[tuple[str, str]]:
    """How often special tokens stand in the data and are learned."""
    often = sorted(own.occurs, key=lambda i: -own.occurs[i])
    named = [
        f"{tokenizer.convert_ids_to_tokens(i)} {own.occurs[i]:,} times, "
        + (f"{own.learned[i]:,} learned" if own.learned[i] else "never learned")
        for i in often[:_TOKENS]
        if own.occurs[i]
    ]
    return [("special tokens", "; ".join(named) or "none")]


def _duplicates(
    kind: str, examples: Examples, own: Statistics, trained: Statistics
) -> list[tuple[str, str]]:
    size = together(examples)
    word = "pairs" if size == 2 else "examples"
    wholes = records(own.wholes, size)
    again = repeats(wholes)
    said = "none"
    if again.count:
        said = (
            f"{again.count:,} of {len(wholes):,} {word} repeat an earlier one, token "
            f"by token{', as they are cut' if examples.left_out.any() else ''}; number "
            f"{again.number:,} occurs most often, {again.most:,} times"
        )
    figures = [("duplicates", said)]
    if size == 2:
        equal = int((own.wholes[::2] == own.wholes[1::2]).sum())
        figures.append(("equal answers", f"{equal:,} pairs" if equal else "none"))
    if kind != "training":
        same = shared(wholes, records(trained.wholes, size))
        asked = shared(own.prompts[::size], trained.prompts[::size])
        figures.append(
            (
                "also trained on",
                f"{same:,} of {len(wholes):,} {word}, and the prompts of {asked:,}",
            )
        )
    return figures


def _columns(examples: Examples) -> list[tuple[str, str]]:
    """What the columns hold: few values each by itself, others from least to most."""
    figures = []
    for name, column in columns(examples).items():
        column = np.asarray(column)
        values, counts = np.unique(column, return_counts=True)
        if len(values) <= _VALUES:
            pairs = zip(values.tolist(), counts.tolist())
            said = ", ".join(f"{value:g} {n:,} times" for value, n in pairs)
        else:
            said = f"{values[0]:g} to {values[-1]:g}, mean {column.mean():g}"
        figures.append((name, said))
    return figures


def _remarks(
    kind: str, examples: Examples, own: Statistics, tokenizer: Any
) -> list[str]:
    """What keeps a model from learning when to stop."""
    end = end_of_turn(tokenizer)
    if kind == "training" and end is not None and own.occurs.get(end):
        if not own.learned[end]:
            return [
                f"{tokenizer.convert_ids_to_tokens(end)}, which ends an answer, stands "
                f"{own.occurs[end]:,} times in the data and is never learned: the "
                "model is not taught to stop"
            ]
        whole = (np.asarray(examples.left_out) == 0) & (own.last >= 0)
        endless = whole & ~np.isin(own.last, list(own.occurs))
        if endless.any():
            return [
                f"{_counted(int(endless.sum()))} (number {int(np.argmax(endless)):,} "
                "is the first), though whole, without a learned token that ends a turn"
            ]
    return []


def _sources(kind: str, examples: Examples) -> dict[str, list[str]]:
    """The columns of a table of sources: sizes, how often drawn, and what is lost."""
    sources = examples.sources
    table = {
        "source": [one.path for one in sources],
        "examples": [f"{one.examples:,}" for one in sources],
    }
    if kind == "training":
        total = sum(one.weight for one in sources)
        drawn = [one.weight / total * len(examples) for one in sources]
        often = [n / max(one.examples, 1) for n, one in zip(drawn, sources)]
        table["drawn an epoch"] = [f"{n:,.0f}" for n in drawn]
        table["times each"] = [f"{n:.3g}" for n in often]
    return table | {
        "tokens": [f"{one.tokens:,}" for one in sources],
        "learned": [share(one.supervised, one.tokens) for one in sources],
        "cut": [f"{one.truncated:,}" for one in sources],
        "nothing to learn": [f"{one.without_target:,}" for one in sources],
        "left out": [f"{len(one.skipped):,}" for one in sources],
    }
