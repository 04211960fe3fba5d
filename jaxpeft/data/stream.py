"""Records in a shuffled order while they are read, which can be taken up anywhere.

The order is a function of the seed, the buffer's size and the number of records alone:
to continue at a draw, the draws before it are repeated by number, and of the source
only those parts are looked into that hold a record which is still to be drawn.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from jaxpeft.data import sources
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import Part, Row, Source

# Random numbers are made for so many draws at once; the order depends on it.
_BLOCK = 4096


class Buffer:
    """The numbers of the records that wait to be drawn, in one epoch.

    A draw takes one of them at random, and the next record of the source takes its
    place: so a record is drawn early or late by about as many draws as the buffer is
    large. One of size 1 leaves the order as it is.

    Args:
        size: the most numbers that wait.
        seed: of the draws.

    Attributes:
        held: the numbers that wait.
        read: how many records have been put into it.
    """

    def __init__(self, size: int, seed: Sequence[int]):
        self._size, self._seed = size, tuple(seed)
        self._drawn = 0
        self.held: list[int] = []
        self.read = 0

    def draw(self, exists: Callable[[int], bool]) -> int | None:
        """The number of the next record; None: the epoch is over.

        Args:
            exists: whether the source has a record of this number, counted from 0.
        """
        while len(self.held) < self._size and exists(self.read):
            self.held.append(self.read)
            self.read += 1
        if not self.held:
            return None
        at = self._drawn % _BLOCK
        if not at:
            block = np.random.default_rng([*self._seed, self._drawn // _BLOCK])
            self._choices = block.random(_BLOCK)
        self._drawn += 1
        place = int(self._choices[at] * len(self.held))
        last = self.held.pop()
        if place == len(self.held):
            return last
        number, self.held[place] = self.held[place], last
        return number


class Stream:
    """The records of a source, drawn through a buffer, epoch after epoch without end.

    Args:
        source: where they come from.
        max_rows: the first so many records only; None: all.
        buffer: the most records that wait in memory to be drawn.
        seed: of the order.
    """

    def __init__(
        self, source: Source, max_rows: int | None, *, buffer: int, seed: Sequence[int]
    ):
        self._source, self._max_rows = source, max_rows
        self._buffer, self._seed = buffer, tuple(seed)
        self._count: int | None = None  # of the records, once it is known

    def draws(self, start: int, rejects: Rejects) -> Iterator[Row | None]:
        """The records from a draw on; None in the place of one that cannot be read.

        Args:
            start: the number of the first draw, counted from 0.
            rejects: is given what cannot be read, the first time.

        Raises:
            InputError: the source cannot be read.
        """
        count = self._counted(start + self._buffer + 1)
        epoch, at = divmod(start, count) if start >= count else (0, start)
        while True:
            buffer = Buffer(self._buffer, (*self._seed, epoch))
            known = range(count)
            for _ in range(at):
                buffer.draw(known.__contains__)
            own = rejects if not epoch else Rejects(rejects.path, skip=True)
            held = set(buffer.held)
            reader = _Reader(self._parts(), held, buffer.read, own)
            while (number := buffer.draw(reader.exists)) is not None:
                yield reader.take(number)
            count = self._count = reader.read
            epoch, at = epoch + 1, 0

    def estimate(self) -> float:
        """About how many records there are, by the first part of them."""
        first = next(self._parts())
        files = max(1, len(sources.found(self._source).files))
        known = first.count / max(first.done, 1e-9) * files
        return min(known, self._max_rows or known)

    def _parts(self) -> Iterator[Part]:
        return sources.parts(self._source, self._max_rows)

    def _counted(self, enough: int) -> int:
        """The number of records, or one that is at least `enough`."""
        if self._count is not None:
            return self._count
        count = 0
        for part in self._parts():
            count += part.count
            if count >= enough:
                return count
        self._count = count
        return count


class _Reader:
    """The rows of a source that are wanted, as it is read on.

    Args:
        parts: of the source.
        before: the numbers of the wanted rows that come before `start`.
        start: from this number on all are wanted.
        rejects: is given those that cannot be read.

    Attributes:
        read: how many rows have been passed.
    """

    def __init__(
        self,
        parts: Iterator[Part],
        before: Collection[int],
        start: int,
        rejects: Rejects,
    ):
        self._parts, self._rejects = parts, rejects
        self._before, self._start = set(before), start
        self._rows: dict[int, Row | None] = {}
        self.read = 0

    def exists(self, number: int) -> bool:
        """Whether there is a row of this number; reads on as far as it takes."""
        while number >= self.read:
            part = next(self._parts, None)
            if part is None:
                return False
            numbers = range(self.read, self.read + part.count)
            self.read = numbers.stop
            if self.read <= self._start and self._before.isdisjoint(numbers):
                continue
            for own, row in zip(numbers, part.each(self._rejects), strict=True):
                if own >= self._start or own in self._before:
                    self._rows[own] = row
        return True

    def take(self, number: int) -> Row | None:
        """The row of a number that exists, which is forgotten."""
        self.exists(number)
        return self._rows.pop(number)
