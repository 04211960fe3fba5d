"""An example as a person sees it: whole characters, and what is learned marked."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.data.examples import Examples
from jaxpeft.data.render import special_ids

OPEN, CLOSE = "⟦", "⟧"  # around what is learned, where there is no color
NEWLINE = "↵"

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet
_BYTES = 4  # of the longest character, and so the most tokens that one can have
# What a terminal obeys or hides: controls, marks of direction and of width zero,
# halves of surrogate pairs. The joiners that scripts and emoji are written with stay.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# An example in a line: characters (or tokens) of a stretch, stretches, and the examples
# among which one is looked for of which something is learned.
_SHORT, _STRETCHES, _LOOKED_AT = 100, 6, 100


class Piece(NamedTuple):
    """The fewest tokens that stand for whole characters: nearly always one.

    Attributes:
        text: what they stand for.
        ids: their ids.
        learned: whether they are targets that count in the loss.
        special: whether it is a special token.
    """

    text: str
    ids: tuple[int, ...]
    learned: bool
    special: bool


def pieces(
    tokens: Sequence[int] | np.ndarray,
    supervised: Sequence[bool] | np.ndarray,
    tokenizer: Any,
) -> list[Piece]:
    """An example's text, token by token; put together it is what the tokenizer decodes.

    Args:
        tokens: (length,) the token ids.
        supervised: (length,) whether each is a target that counts in the loss.
        tokenizer: the model's tokenizer.
    """
    ids, learned = [int(token) for token in tokens], [bool(one) for one in supervised]
    special = set(special_ids(tokenizer).tolist())
    found: list[Piece] = []
    # Decoders treat a text's beginning otherwise: each piece is decoded after the last.
    before, start = 0, 0
    for stop in range(1, len(ids) + 1):
        known = _decode(ids[before:start], tokenizer)
        text = _decode(ids[before:stop], tokenizer)[len(known) :]
        is_last = stop == len(ids)
        if text.endswith(_UNFINISHED) and not is_last and stop - start < _BYTES:
            continue
        own = tuple(ids[start:stop])
        is_special = len(own) == 1 and own[0] in special
        found.append(Piece(text, own, any(learned[start:stop]), is_special))
        before, start = start, stop
    return found


def visible(text: str, newline: str = NEWLINE + "\n") -> str:
    """A text with a sign in the place of each character that is obeyed or not shown.

    Args:
        text: any text, such as one from data.
        newline: what stands for the end of a line.
    """
    return _HIDDEN.sub(lambda c: newline if c[0] == "\n" else _sign(ord(c[0])), text)


def in_short(examples: Examples, tokenizer: Any) -> str:
    """A line with the beginning and the end of each part of an example; `⟦learned⟧`.

    It is the first of those looked at of which something is learned.

    Args:
        examples: a data set.
        tokenizer: the model's tokenizer.
    """
    for number in range(min(len(examples), _LOOKED_AT)):
        start = int(examples.starts[number])
        stop = start + int(examples.lengths[number])
        mask = np.asarray(examples.supervised[start:stop])
        if mask.any():
            break
    else:
        return ""
    tokens = np.asarray(examples.tokens[start:stop])
    edges = np.flatnonzero(np.diff(mask)) + 1
    parts = list(zip(np.split(tokens, edges), np.split(mask, edges)))
    texts = [_shortened(*part, tokenizer) for part in parts]
    if len(texts) > _STRETCHES:
        texts = [*texts[: _STRETCHES - 2], " ... ", *texts[-2:]]
    return "".join(texts)


def _shortened(tokens: np.ndarray, mask: np.ndarray, tokenizer: Any) -> str:
    """The beginning and the end of what is learned, or is not."""
    begins = ends = "".join(p.text for p in pieces(tokens[:_SHORT], mask, tokenizer))
    if len(tokens) > _SHORT:
        ends = "".join(p.text for p in pieces(tokens[-_SHORT:], mask, tokenizer))
    text = begins
    if len(tokens) > _SHORT or len(text) > _SHORT:
        text = f"{begins[: _SHORT // 2]} ... {ends[-_SHORT // 2 :]}"
    text = visible(text, NEWLINE)
    return f"{OPEN}{text}{CLOSE}" if mask[0] else text


def _sign(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def _decode(ids: list[int], tokenizer: Any) -> str:
    if not ids:
        return ""
    return tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
