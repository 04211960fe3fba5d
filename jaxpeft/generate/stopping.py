"""Texts that end an answer: it is cut before the first of them."""

from collections.abc import Iterator, Sequence
from typing import Any


def cut(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first of the stop texts; None where it holds none.

    Args:
        text: an answer, or the beginning of one.
        stop: the texts that end it, none of them empty.
    """
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else None


def until(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces of an answer up to the first of the stop texts.

    What may be the beginning of one is held back until it is known not to be.

    Args:
        pieces: of an answer, while it is made; closed where a stop text ends it.
        stop: the texts that end it, none of them empty.
    """
    held = ""
    for piece in pieces:
        held += piece
        ended = cut(held, stop)
        if ended is not None:
            if ended:
                yield ended
            if close := getattr(pieces, "close", None):
                close()
            return
        sure = len(held) - _begun(held, stop)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def token_ids(tokenizer: Any, stop: Sequence[str]) -> list[int]:
    """The ids of the stop texts that are tokens of their own, such as `<|im_end|>`.

    An answer's text leaves such tokens out, so that they are not found in it.

    Args:
        tokenizer: of the model.
        stop: the texts that end an answer.
    """
    own = tokenizer.get_added_vocab()
    return [own[text] for text in stop if text in own]


def _begun(text: str, stop: Sequence[str]) -> int:
    """The length of the longest end of the text with which a stop text begins."""
    most = min(len(text), max(map(len, stop), default=0) - 1)
    ends = range(most, 0, -1)
    return next((n for n in ends if any(s.startswith(text[-n:]) for s in stop)), 0)
