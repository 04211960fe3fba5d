"""Packing: examples of unequal length into rows of one length, little of it wasted.

`pack` plans the rows of one epoch; `PackedRows` is the endless sequence of them.
"""

import threading
from typing import NamedTuple

import numpy as np

from jaxpeft.data.examples import Examples
from jaxpeft.data.order import ENDLESS, DrawOrder

# Examples considered together. Larger windows fill rows hardly better, while within
# one, examples of like length meet the same partners again in every epoch.
WINDOW = 4096
# Kept at a time: batches run across an epoch's end, and are made ahead of their use.
_KEPT_EPOCHS = 3


class Rows(NamedTuple):
    """Which examples share a row: row r holds `members[starts[r] : starts[r + 1]]`.

    Attributes:
        members: (examples,) int64, positions in the order that was packed, each exactly
            once.
        starts: (rows + 1,) int64, where each row begins, and where the last one ends.
    """

    members: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> np.ndarray:
        """The positions of the examples in one row."""
        return self.members[self.starts[number] : self.starts[number + 1]]


def pack(
    lengths: np.ndarray, capacity: int, *, seed: tuple[int, ...] | None, window=WINDOW
) -> Rows:
    """Rows of at most `capacity` tokens, by best fit decreasing within each window.

    Args:
        lengths: (n,) int, tokens in each example in the order they come; 0 is left
            out.
        capacity: tokens in a row; no length exceeds it.
        seed: the rows of a window come in the random order of this seed; None keeps
            them in the order of their first example.
        window: how many examples in turn are considered together.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    rows: list[list[int]] = []
    for start in range(0, len(lengths), window):
        planned = _best_fit(lengths[start : start + window], capacity, start)
        if rng is None:
            planned.sort(key=lambda row: row[0])
        else:
            planned = [planned[i] for i in rng.permutation(len(planned))]
        rows += planned
    sizes = [len(row) for row in rows]
    members = [member for row in rows for member in row]
    return Rows(np.array(members, np.int64), np.cumsum([0, *sizes], dtype=np.int64))


def _best_fit(lengths: np.ndarray, capacity: int, start: int) -> list[list[int]]:
    """Rows of one window, each with its members in order, counted from `start`.

    Bit n of `free` says that some row has exactly n tokens left, so that the tightest
    row for an example is one shift and one lowest bit away.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    free = 0
    decreasing = np.argsort(-lengths, kind="stable")
    sizes = lengths.tolist()
    for i in decreasing.tolist():
        size = sizes[i]
        if size == 0:
            break
        fitting = free >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                free ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(start + i)
        room -= size
        with_room[room].append(row)
        free |= 1 << room
    for row in rows:
        row.sort()
    return rows


class PackedRows:
    """The endless sequence of packed rows; a data source for grain.

    Item r is the numbers of the examples in row r. Each epoch is packed by itself, so a
    row's place follows from the numbers of rows in all epochs before; those are kept,
    and the last few plans.

    Args:
        examples: the data, example by example.
        order: the order in which examples are drawn.
        capacity: tokens in a row.
        seed: the seed of the order of the rows; None: the order of their first example.
    """

    def __init__(
        self, examples: Examples, order: DrawOrder, capacity: int, seed: int | None
    ):
        self._examples, self._order = examples, order
        self._capacity, self._seed = capacity, seed
        self._first_rows = [0]  # of each epoch planned so far, and of the next
        self._epochs: dict[int, tuple[Rows, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> np.ndarray:
        with self._lock:
            epoch = self._epoch_of(index)
            plan, drawn = self._rows_of(epoch)
        return drawn[plan.row(index - self._first_rows[epoch])]

    def count(self, epoch: int) -> int:
        """The number of rows in an epoch."""
        with self._lock:
            while len(self._first_rows) <= epoch + 1:
                self._rows_of(len(self._first_rows) - 1)
        return self._first_rows[epoch + 1] - self._first_rows[epoch]

    def epoch_at(self, row: int) -> float:
        """The epochs, in fractions, that the rows before `row` amount to."""
        with self._lock:
            epoch = self._epoch_of(row)
        first, following = self._first_rows[epoch : epoch + 2]
        return epoch + (row - first) / (following - first)

    def _epoch_of(self, row: int) -> int:
        while self._first_rows[-1] <= row:
            self._rows_of(len(self._first_rows) - 1)
        return int(np.searchsorted(self._first_rows, row, "right")) - 1

    def _rows_of(self, epoch: int) -> tuple[Rows, np.ndarray]:
        if epoch not in self._epochs:
            drawn = self._order.epoch(epoch)
            seed = None if self._seed is None else (self._seed, epoch)
            lengths = self._examples.lengths[drawn]
            self._epochs[epoch] = (pack(lengths, self._capacity, seed=seed), drawn)
            if len(self._epochs) > _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            if epoch == len(self._first_rows) - 1:
                rows = len(self._epochs[epoch][0])
                self._first_rows.append(self._first_rows[-1] + rows)
        return self._epochs[epoch]
