"""The endless sequence of packed rows, planned epoch by epoch."""

import threading

import numpy as np

from jaxpeft.data.examples import Examples
from jaxpeft.data.order import ENDLESS, DrawOrder
from jaxpeft.data.packing import Plan, pack

# Kept at a time: batches run across an epoch's end, and are made ahead of their use.
_PLANS = 3


class PackedRows:
    """Row number -> the examples in it; a data source for grain.

    Each epoch is packed by itself, so a row's place follows from the numbers of rows
    in all epochs before; those are kept, and the last few plans.
    """

    def __init__(
        self, examples: Examples, order: DrawOrder, capacity: int, seed: int | None
    ):
        self._examples, self._order = examples, order
        self._capacity, self._seed = capacity, seed
        self._first_rows = [0]  # of each epoch planned so far, and of the next
        self._plans: dict[int, tuple[Plan, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> np.ndarray:
        with self._lock:
            epoch = self._epoch_of(index)
            plan, drawn = self._plan(epoch)
        return drawn[plan.row(index - self._first_rows[epoch])]

    def count(self, epoch: int) -> int:
        """Rows in an epoch."""
        with self._lock:
            while len(self._first_rows) <= epoch + 1:
                self._plan(len(self._first_rows) - 1)
        return self._first_rows[epoch + 1] - self._first_rows[epoch]

    def epoch_at(self, row: int) -> float:
        """Epochs that the rows before `row` amount to."""
        with self._lock:
            epoch = self._epoch_of(row)
        first, following = self._first_rows[epoch : epoch + 2]
        return epoch + (row - first) / (following - first)

    def _epoch_of(self, row: int) -> int:
        while self._first_rows[-1] <= row:
            self._plan(len(self._first_rows) - 1)
        return int(np.searchsorted(self._first_rows, row, "right")) - 1

    def _plan(self, epoch: int) -> tuple[Plan, np.ndarray]:
        if epoch not in self._plans:
            drawn = self._order.epoch(epoch)
            seed = None if self._seed is None else (self._seed, epoch)
            lengths = self._examples.lengths[drawn]
            self._plans[epoch] = (pack(lengths, self._capacity, seed=seed), drawn)
            if len(self._plans) > _PLANS:
                del self._plans[next(iter(self._plans))]
            if epoch == len(self._first_rows) - 1:
                rows = len(self._plans[epoch][0])
                self._first_rows.append(self._first_rows[-1] + rows)
        return self._plans[epoch]
