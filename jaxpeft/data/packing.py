"""Packing: examples of unequal length into rows of one length, little of it wasted."""

from typing import NamedTuple

import numpy as np

# Examples considered together. Larger windows fill rows hardly better, while within
# one, examples of like length meet the same partners again in every epoch.
WINDOW = 4096


class Plan(NamedTuple):
    """Which examples share a row: row r holds `members[starts[r] : starts[r + 1]]`.

    members are positions in the order that was packed, each exactly once; starts has
    one entry more than there are rows.
    """

    members: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> np.ndarray:
        """The positions in row `number`."""
        return self.members[self.starts[number] : self.starts[number + 1]]


def pack(
    lengths: np.ndarray, capacity: int, *, seed: tuple[int, ...] | None, window=WINDOW
) -> Plan:
    """Rows of at most `capacity` tokens, by best fit decreasing within each window.

    Args:
        lengths: (n,) of the examples in the order they come; 0 is left out.
        capacity: tokens in a row; no length exceeds it.
        seed: rows of a window come in this random order; None keeps them in the order
            of their first example.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    rows: list[list[int]] = []
    for start in range(0, len(lengths), window):
        some = _best_fit(lengths[start : start + window], capacity, start)
        if rng is None:
            some.sort(key=lambda row: row[0])
        else:
            some = [some[i] for i in rng.permutation(len(some))]
        rows += some
    sizes = [len(row) for row in rows]
    members = [member for row in rows for member in row]
    return Plan(np.array(members, np.int64), np.cumsum([0, *sizes], dtype=np.int64))


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
