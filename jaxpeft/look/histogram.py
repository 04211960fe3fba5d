"""How often which length occurs, in few bars of round widths."""

import math
from typing import NamedTuple

import numpy as np

_BARS = 16
_FAR = 2.0  # lengths beyond so many times the 99th percentile share a last bar


class Bar(NamedTuple):
    """One bar.

    Attributes:
        first: the least length that it counts, in tokens.
        last: the largest.
        count: how many examples are so long.
    """

    first: int
    last: int
    count: int

    @property
    def label(self) -> str:
        """Its lengths, such as "41-60"."""
        return (
            f"{self.first:,}-{self.last:,}"
            if self.first < self.last
            else str(self.first)
        )


def histogram(lengths: np.ndarray, bars: int = _BARS) -> list[Bar]:
    """Bars that together count every example once, from the shortest to the longest.

    They are equally wide, but for a last one that holds what is far beyond the others.

    Args:
        lengths: (examples,) int, tokens in each; at least one example.
        bars: how many there are at most.
    """
    longest, shortest = int(lengths.max()), int(lengths.min())
    far = _FAR * float(np.percentile(lengths, 99))
    top = longest if longest <= far else math.ceil(far)
    width = _round_width((top - shortest + 1) / (bars - 2))
    first = shortest // width * width
    edges = [*range(first, top + 1, width)]
    edges.append(edges[-1] + width)
    if longest >= edges[-1]:
        edges.append(longest + 1)
    counts, _ = np.histogram(lengths, np.array(edges))
    return [
        Bar(a, min(b - 1, longest), int(count))
        for a, b, count in zip(edges[:-1], edges[1:], counts)
    ]


def _round_width(least: float) -> int:
    """The least of 1, 2, 5, 10, 20, ... that is not below a number."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
