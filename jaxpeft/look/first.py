"""The first examples of each source, as the model sees them."""

from typing import Any, NamedTuple

import numpy as np

from jaxpeft.data import Examples
from jaxpeft.data.render import special_ids
from jaxpeft.data.shown import Piece, pieces
from jaxpeft.look.statistics import columns, together

ANSWERS = ("chosen", "rejected")  # of a pair
# Tokens shown of an example; of a longer one the beginning and the end.
_MOST, _END = 6000, 1500


class Part(NamedTuple):
    """An example to show.

    Attributes:
        name: what it is in its record, such as "chosen"; "": it is all of it.
        about: how long it is, what of it is learned, and why it was cut.
        begins: its pieces, or those of its beginning.
        hidden: the tokens between the beginning and the end that are not shown.
        ends: the pieces of its end, where some are hidden.
    """

    name: str
    about: str
    begins: list[Piece]
    hidden: int
    ends: list[Piece]


class Record(NamedTuple):
    """A record to show: one example, or a pair of them.

    Attributes:
        title: its number in the data set, and its columns.
        parts: its examples.
    """

    title: str
    parts: list[Part]


def first(
    examples: Examples, count: int, tokenizer: Any, max_length: int
) -> list[tuple[str, list[Record]]]:
    """(path, the first records) of each source.

    Args:
        examples: a data set.
        count: how many of each source.
        tokenizer: the model's tokenizer.
        max_length: where examples are cut, in tokens.
    """
    size, bounds = together(examples), examples.source_starts
    found = []
    for source, begin, end in zip(examples.sources, bounds[:-1], bounds[1:]):
        starts = range(begin, end, size)[:count]
        found.append(
            (
                source.path,
                [_record(examples, at, size, tokenizer, max_length) for at in starts],
            )
        )
    return found


def _record(
    examples: Examples, at: int, size: int, tokenizer: Any, max_length: int
) -> Record:
    names = ANSWERS if size == len(ANSWERS) else ("",) * size
    title = f"{'pair' if size == 2 else 'example'} {at // size:,}"
    for name, column in columns(examples).items():
        values = np.unique(np.asarray(column[at : at + size])).tolist()
        title += f", {name} {' and '.join(f'{value:g}' for value in values)}"
    parts = [
        _part(examples, at + i, name, tokenizer, max_length)
        for i, name in enumerate(names)
    ]
    return Record(title, parts)


def _part(
    examples: Examples, number: int, name: str, tokenizer: Any, max_length: int
) -> Part:
    start = int(examples.starts[number])
    stop = start + int(examples.lengths[number])
    tokens = np.asarray(examples.tokens[start:stop])
    mask = np.asarray(examples.supervised[start:stop])
    left_out = int(examples.left_out[number])
    about = f"{len(tokens):,} tokens, {int(mask.sum()):,} learned"
    about += why_cut(tokens, mask, left_out, max_length, special_ids(tokenizer))
    hidden = max(len(tokens) - _MOST, 0)
    if not hidden:
        return Part(name, about, pieces(tokens, mask, tokenizer), 0, [])
    begin, end = slice(_MOST - _END), slice(len(tokens) - _END, None)
    return Part(
        name,
        about,
        pieces(tokens[begin], mask[begin], tokenizer),
        hidden,
        pieces(tokens[end], mask[end], tokenizer),
    )


def why_cut(
    tokens: np.ndarray,
    mask: np.ndarray,
    left_out: int,
    max_length: int,
    special: np.ndarray,
) -> str:
    """Why an example was cut, and what is lost by it; "" where nothing is.

    Args:
        tokens: (length,) its token ids.
        mask: (length,) which of them are learned.
        left_out: the tokens that it had more.
        max_length: where examples are cut, in tokens.
        special: the ids of the tokens that can end a turn.
    """
    learned = np.flatnonzero(mask)
    if not left_out:
        return "" if len(learned) else "; nothing to learn"
    lost = "nothing is left to learn"
    if len(learned):
        is_whole = tokens[learned[-1]] in special
        lost = (
            "the answers left are whole" if is_whole else "what is learned is cut off"
        )
    return (
        f"; cut at data.max_length {max_length:,}, {left_out:,} tokens are left out: "
        f"{lost}"
    )
