"""Batches for training and evaluation, each a pure function of its number.

A batch is a dict of numpy arrays, all (batch, length): `tokens` and `targets` int32,
`supervised` bool (the target counts), `positions` int32 (from 0 in each example) and
`segments` int32 (1, 2, ... per example of a row; 0 is padding, always on the right).
Where tokens count unlike in the loss there is `weights` float32 as well (of the
target), and (batch,) of each column that the examples have, 0 in rows without any.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from jaxpeft.data.buckets import batch_maxima, choose_lengths
from jaxpeft.data.examples import Examples, Summary
from jaxpeft.data.order import DrawOrder
from jaxpeft.data.packing import PackedRows

Batch = dict[str, np.ndarray]

PREFETCH = 8  # batches that are made ahead


def collate(
    examples: Examples,
    rows: Sequence[np.ndarray],
    length: int,
    pad_id: int,
    wanted: np.ndarray | None = None,
) -> Batch:
    """The batch that holds the given examples in its rows.

    Args:
        examples: the data, example by example.
        rows: for each row the numbers of its examples, in order; a row without any is
            all padding. Where examples have columns, it holds one at most.
        length: tokens in a row; the examples of a row fit in it.
        pad_id: the token that fills rows up.
        wanted: (rows,) bool, of which rows this process needs the tokens; of the others
            nothing is read, and only `positions` and `segments` say how long they are.
            None: of all.

    Returns:
        The batch, as in the module's text.
    """
    shape = (len(rows), length)
    tokens = np.full(shape, pad_id, np.int32)
    targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    supervised = np.zeros(shape, bool)
    weights = None if examples.weights is None else np.zeros(shape, np.float32)
    columns = {n: np.zeros(len(rows), x.dtype) for n, x in examples.columns.items()}
    for r, row in enumerate(rows):
        at = 0
        for segment, number in enumerate(row, 1):
            first = int(examples.starts[number])
            last = first + int(examples.lengths[number])
            stop = at + last - first
            positions[r, at:stop] = np.arange(stop - at)
            segments[r, at:stop] = segment
            if wanted is not None and not wanted[r]:
                at = stop
                continue
            tokens[r, at:stop] = examples.tokens[first:last]
            if stop > at:
                targets[r, at : stop - 1] = examples.tokens[first + 1 : last]
                supervised[r, at : stop - 1] = examples.supervised[first + 1 : last]
            if weights is not None and examples.weights is not None and stop > at:
                weights[r, at : stop - 1] = examples.weights[first + 1 : last]
            for name, values in examples.columns.items():
                columns[name][r] = values[number]
            at = stop
    return {
        "tokens": tokens,
        "targets": targets,
        "supervised": supervised,
        "positions": positions,
        "segments": segments,
        **({} if weights is None else {"weights": weights}),
        **columns,
    }


def _rows_of(records: Any, together: int) -> np.ndarray:
    """The rows of records: (rows, 1), the number of the example in each."""
    first = np.asarray(records, np.int64)[:, None] * together
    return (first + np.arange(together)).reshape(-1, 1)


def bucket_lengths(
    examples: Examples,
    batch_size: int,
    shuffle: bool,
    buckets: int,
    limit: int,
    *,
    longest: int | None = None,
) -> tuple[int, ...]:
    """The row lengths that batches are padded to, chosen by how long they come.

    Args:
        examples: the data.
        batch_size: rows in a batch.
        shuffle: whether examples are drawn in another order than theirs.
        buckets: how many lengths there may be.
        limit: the most tokens that a row may have.
        longest: the tokens of the longest row that may come; None: of the longest
            example.
    """
    weights = [source.weight for source in examples.sources]
    bounds = zip(examples.record_starts[:-1], examples.record_starts[1:])
    maxima, often = batch_maxima(
        [examples.longest[a:b] for a, b in bounds],
        [weight / sum(weights) for weight in weights],
        batch_size=batch_size // examples.together,
        shuffle=shuffle,
    )
    longest = longest or int(examples.lengths.max())
    return choose_lengths(maxima, often, buckets=buckets, longest=longest, limit=limit)


def fitting(lengths: Sequence[int], needed: int) -> int:
    """The shortest of some row lengths that has room.

    Args:
        lengths: the row lengths, ascending, the last of which has room.
        needed: tokens.
    """
    return next(length for length in lengths if length >= needed)


class Batches:
    """Endless training batches: `batches[step]`, or `batches.iterate(start_step)`.

    Both give the same content, which depends on the data, the settings and the step
    alone: to resume is to start at a step. Batches run on across epochs; no example
    is dropped at an epoch's end. Unpacked rows are padded to one of `lengths`; packed
    rows always have `max_length`.

    Args:
        examples: the data, example by example.
        batch_size: rows in a batch; whole records of examples drawn together.
        seed: the seed of shuffling and, with packing, of the order of the rows.
        max_length: the most tokens that a row may have.
        pad_id: the token that fills rows up.
        shuffle: draw every epoch in an order of its own; else in that of the files.
        packing: put several examples into one row; of examples without columns that
            are drawn alone.
        length_buckets: how many row lengths may occur, without packing.

    Attributes:
        batch_size: rows in a batch.
        examples: the data, example by example.
        lengths: all row lengths that occur, ascending.
        fingerprint: changes with the data or anything that orders it.
        wanted: (batch_size,) bool, the rows whose tokens this process needs, see
            `collate`; None: all.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        seed: int,
        max_length: int,
        pad_id: int = 0,
        shuffle: bool = True,
        packing: bool = False,
        length_buckets: int = 4,
    ):
        self._settings = {
            "batch_size": batch_size,
            "max_length": max_length,
            "pad_id": pad_id,
            "shuffle": shuffle,
            "packing": packing,
            "length_buckets": length_buckets,
        }
        self.batch_size, self._seed = batch_size, seed
        self.examples, self._pad_id = examples, pad_id
        self.wanted: np.ndarray | None = None
        weights = [source.weight for source in examples.sources]
        order = DrawOrder(examples.record_starts, weights, seed=seed, shuffle=shuffle)
        records = batch_size // examples.together
        self._rows = None
        if packing:
            import grain

            self.lengths: tuple[int, ...] = (max_length,)
            self._rows = PackedRows(
                examples, order, max_length, seed if shuffle else None
            )
            self._stream = grain.MapDataset.source(self._rows)
        else:
            self.lengths = bucket_lengths(
                examples, batch_size, shuffle, length_buckets, max_length
            )
            self._stream = order.dataset
        self._batches = self._stream.batch(records, batch_fn=self._collate)
        self.fingerprint: str = _fingerprint(
            examples,
            seed=seed,
            shuffle=shuffle,
            packing=packing,
            batch_size=batch_size,
            weights=weights,
            max_length=max_length,
            lengths=self.lengths,
            pad_id=pad_id,
        )

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"batches are numbered from 0; there is no batch {step}")
        batch = self._batches[step]
        assert batch is not None  # nothing is ever filtered
        return batch

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from `start_step` on, made ahead of their use in a thread.

        Args:
            start_step: the number of the first batch, counted from 0.

        Yields:
            The batches `start_step`, `start_step + 1`, ... without an end.
        """
        import grain

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
        ahead = iter(self._batches[start_step:].to_iter_dataset(options))
        with closing(ahead):
            yield from ahead

    def reseeded(self, seed: int) -> "Batches":
        """The batches of the same data in the order of another seed."""
        return self._made(self.examples, seed)

    def over(self, examples: Examples) -> "Batches":
        """The same batches of examples that have more columns."""
        return self._made(examples, self._seed)

    def _made(self, examples: Examples, seed: int) -> "Batches":
        batches = Batches(examples, seed=seed, **self._settings)
        batches.wanted = self.wanted
        return batches

    def in_order(self, batch_size: int) -> "EvalBatches":
        """Batches of every example once, unpacked.

        Args:
            batch_size: rows in a batch.
        """
        names = ("max_length", "pad_id", "length_buckets")
        settings = {name: self._settings[name] for name in names}
        return EvalBatches(self.examples, batch_size=batch_size, **settings)

    @property
    def steps_per_epoch(self) -> float:
        """The steps that see every example once; of the first epoch, if packed."""
        rows = self._rows.count(0) if self._rows else len(self.examples)
        return rows / self.batch_size

    def epoch(self, step: int) -> float:
        """The epochs completed, in fractions, when `step` steps have been taken."""
        if self._rows is None:
            return step * self.batch_size / len(self.examples)
        return self._rows.epoch_at(step * self.batch_size)

    def summary(self) -> Summary:
        """The data in numbers, for the log."""
        rows = self._rows.count(0) if self._rows else None
        return self.examples.summary(self.lengths, rows)

    def _collate(self, elements: Sequence[Any]) -> Batch:
        if self._rows is None:
            rows = [*_rows_of(elements, self.examples.together)]
        else:
            rows = [np.atleast_1d(element) for element in elements]
        needed = max(int(self.examples.lengths[row].sum()) for row in rows)
        length = fitting(self.lengths, needed)
        return collate(self.examples, rows, length, self._pad_id, self.wanted)


class EvalBatches:
    """Evaluation batches: every example once, in order, or some of them.

    The last batch is filled up with empty rows.

    Args:
        examples: the data, example by example.
        batch_size: rows in a batch, of one example each; whole records of examples
            drawn together.
        max_length: the most tokens that a row may have.
        pad_id: the token that fills rows up.
        length_buckets: how many row lengths may occur.
        at_most: records to use, spread evenly over the data; None: all.

    Attributes:
        batch_size: rows in a batch.
        examples: the data, example by example.
        numbers: those of the examples that are used, ascending.
        lengths: all row lengths that occur, ascending.
        fingerprint: changes with the data that are used or the batch size.
        wanted: as of `Batches`.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        max_length: int,
        pad_id: int = 0,
        length_buckets: int = 4,
        at_most: int | None = None,
    ):
        self._settings = {
            "batch_size": batch_size,
            "max_length": max_length,
            "pad_id": pad_id,
            "length_buckets": length_buckets,
        }
        self.batch_size = batch_size
        self.examples, self._pad_id = examples, pad_id
        self.wanted: np.ndarray | None = None
        records = examples.record_starts[-1]
        count = min(records, at_most or records)
        drawn = np.arange(count) * records // count
        self.numbers = _rows_of(drawn, examples.together)[:, 0]
        used = examples.lengths[self.numbers]
        maxima, often = batch_maxima(
            [used], [1.0], batch_size=batch_size, shuffle=False
        )
        self.lengths = choose_lengths(
            maxima,
            often,
            buckets=length_buckets,
            longest=int(used.max()),
            limit=max_length,
        )
        some = {} if count == records else {"at_most": count}
        self.fingerprint: str = _fingerprint(
            examples, batch_size=batch_size, max_length=max_length, **some
        )

    def at_most(self, count: int | None) -> "EvalBatches":
        """Batches of so many of the records, spread evenly; None: of all."""
        return self._made(self.examples, count)

    def over(self, examples: Examples) -> "EvalBatches":
        """The same batches of examples that have more columns."""
        return self._made(examples, len(self.numbers) // examples.together)

    def _made(self, examples: Examples, at_most: int | None) -> "EvalBatches":
        batches = EvalBatches(examples, at_most=at_most, **self._settings)
        batches.wanted = self.wanted
        return batches

    def share(self) -> str:
        """What part of the data is used, in words; empty: all of them."""
        used, all_of_them = len(self.numbers), len(self.examples)
        return "" if used == all_of_them else f"{used:,} of {all_of_them:,} examples"

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"there is no batch {number} among {len(self)}")
        first = number * self.batch_size
        used = self.numbers[first : first + self.batch_size]
        length = fitting(self.lengths, int(self.examples.lengths[used].max()))
        empty = [np.array([], np.int64)] * (self.batch_size - len(used))
        rows = [*used.reshape(-1, 1), *empty]
        return collate(self.examples, rows, length, self._pad_id, self.wanted)

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))

    def summary(self) -> Summary:
        """The data in numbers, for the log."""
        return self.examples.summary(self.lengths)


def _fingerprint(examples: Examples, **settings: Any) -> str:
    """A hash over all that the examples are, and the settings."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(examples.digest.encode())
    digest.update(repr(examples.source_starts).encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
