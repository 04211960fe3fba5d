"""The order in which examples are drawn: a pure function of the position."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

# The length of what never ends; grain wants one, and adds up those of all sources,
# whose sum has to stay below 2^63.
ENDLESS = 2**48


class EpochOrder:
    """The numbers of one source's examples, again and again; a data source for grain.

    Shuffled, every epoch has its own permutation, derived from (seed, epoch).
    (grain's own shuffle walks a domain of 2^16 for each element, which costs
    milliseconds on small data.)

    Args:
        first: the number of the first example.
        count: how many examples there are: `first` to `first + count - 1`.
        seed: the seed of shuffling; None: every epoch is in order.
    """

    def __init__(self, first: int, count: int, seed: tuple[int, ...] | None):
        self._first, self._count, self._seed = first, count, seed
        self._cached = lru_cache(maxsize=2)(self._permute)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> int:
        epoch, at = divmod(int(index), self._count)
        return int(self.epoch(epoch)[at])

    def epoch(self, epoch: int) -> np.ndarray:
        """The numbers of one epoch, in the order they are drawn: (count,) int64."""
        return self._cached(0 if self._seed is None else epoch)

    def _permute(self, epoch: int) -> np.ndarray:
        numbers = np.arange(self._first, self._first + self._count)
        if self._seed is None:
            return numbers
        return np.random.default_rng([*self._seed, epoch]).permutation(numbers)


class DrawOrder:
    """The examples of all sources in the order they are drawn.

    Several sources are interleaved by grain so that at any point each has supplied
    its share (weight / sum of weights) of the draws; a source that runs out starts
    over. An epoch is as many draws as there are examples.

    Args:
        source_starts: the number of each source's first example, and one past the last.
        weights: the weight of each source.
        seed: the seed of shuffling.
        shuffle: whether each source is drawn in an order of its own in every epoch.

    Attributes:
        dataset: the endless draws, as a dataset of grain.
    """

    def __init__(
        self,
        source_starts: Sequence[int],
        weights: Sequence[float],
        *,
        seed: int,
        shuffle: bool,
    ):
        import grain

        self._count = source_starts[-1]
        self._sources = [
            EpochOrder(first, stop - first, (seed, number) if shuffle else None)
            for number, (first, stop) in enumerate(
                zip(source_starts[:-1], source_starts[1:])
            )
        ]
        parts = [grain.MapDataset.source(source) for source in self._sources]
        self.dataset: Any = (
            parts[0]
            if len(parts) == 1
            else grain.MapDataset.mix(parts, weights=list(weights))
        )

    def epoch(self, epoch: int) -> np.ndarray:
        """The numbers of the examples drawn in one epoch: (examples,) int64."""
        if len(self._sources) == 1:
            return self._sources[0].epoch(epoch)
        span = range(epoch * self._count, (epoch + 1) * self._count)
        return np.array([self.dataset[i] for i in span], np.int64)
