"""Turns in characters -> the tokens that are learned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpeft.data.turns import Turn


class _Tokens(NamedTuple):
    """The tokens of a rendered conversation.

    Attributes:
        text: the conversation.
        starts: the first character that each token covers.
        ends: one past the last.
        is_special: whether it is one that can end a turn.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    is_special: np.ndarray

    def marks(self, first: int, stop: int) -> np.ndarray:
        """The special ones among the tokens `first` to `stop` - 1, ascending."""
        return np.flatnonzero(self.is_special[first:stop]) + first


def mask_turns(
    text: str,
    tokens: np.ndarray,
    places: tuple[np.ndarray, np.ndarray],
    turns: Sequence[Turn],
    special: np.ndarray,
) -> np.ndarray | None:
    """What each token counts in the loss: those of `turns`, each through its end.

    The end of a turn is the first special token after its content, or where the
    content is not known, the last one in it; a template without any has its turn
    supervised whole. A `{% generation %}` block is supervised whole, and on to the
    turn's end where it holds none.

    Args:
        text: the rendered conversation.
        tokens: (length,) int32, its token ids.
        places: the first character that each token covers, spaces before it among
            them, and one past the last, both (length,) int64 and ascending.
        turns: where the learned turns stand in the text.
        special: (tokenizer's ids,) bool, those of the tokens that can end a turn.

    Returns:
        (length,) float32, the weight of its turn for each token, 0 outside of them;
            None if a turn's end cannot be established.
    """
    weights = np.zeros(len(tokens), np.float32)
    if not len(tokens):
        return weights
    starts, ends = places
    of_text = _Tokens(text, starts, ends, special[tokens])
    for turn in turns:
        first = int(np.searchsorted(ends, turn.start, "right"))
        before = text[starts[first] : turn.start] if first < len(tokens) else ""
        if before.strip() and of_text.is_special[first]:
            first += 1  # the prompt's last token, which swallowed what follows it
        # Ends, not starts: an end-of-turn token may swallow the space before it.
        known = turn.content_end
        after = 0 if known is None else int(np.searchsorted(ends, known, "right"))
        find = _stop if turn.block_end is None else _block_stop
        stop = find(of_text, turn, first, max(first, after))
        if stop is None:
            return None
        weights[first:stop] = turn.weight
    return weights


def _stop(of_text: _Tokens, turn: Turn, first: int, after: int) -> int | None:
    """One past the last token of a turn whose content ends before token `after`."""
    stop = int(np.searchsorted(of_text.starts, turn.stop))
    marks = of_text.marks(after, stop)
    if len(marks):
        return int(marks[-1] if turn.content_end is None else marks[0]) + 1
    return stop if turn.is_exact else None


def _block_stop(of_text: _Tokens, turn: Turn, first: int, after: int) -> int:
    """The same for a turn, or part of one, that a generation block marks."""
    known, block_end = turn.content_end, turn.block_end or 0
    end = max(first, int(np.searchsorted(of_text.starts, block_end)))
    if known is not None and block_end < known:
        return end  # it marks a part of the content alone
    inside = of_text.marks(after, end)
    beyond = of_text.marks(
        max(after, end), int(np.searchsorted(of_text.starts, turn.stop))
    )
    if known is None and turn.is_exact and len(beyond):
        return int(beyond[0]) + 1
    if len(inside):
        last = int(inside[-1])
        after_it = of_text.text[of_text.ends[last] : block_end]
        if known is not None or not after_it.strip():
            return last + 1  # the block itself holds the end of the turn
    # Where the turn's end is not known, only what follows at once can be it.
    if len(beyond) and (known is not None or beyond[0] == end):
        return int(beyond[0]) + 1
    return end
