"""Training batches of sources that are drawn while they are read.

A batch is a pure function of its number here too, since the order of the draws is: a
record that cannot be used, and is left out, leaves its place in the batch empty.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxpeft.data import formats, sources
from jaxpeft.data.batches import PREFETCH, Batch, bucket_lengths, collate, fitting
from jaxpeft.data.examples import Examples, Summary
from jaxpeft.data.kinds import Kind
from jaxpeft.data.making import arrays_of
from jaxpeft.data.order import ENDLESS
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.render import Example, Renderer
from jaxpeft.data.sources import Row, source_of
from jaxpeft.data.stream import Stream
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.config import DataSection

# Records that are rendered in one call.
_CHUNK = 256

Drawn = tuple[int, Row | None]  # the number of the source, and its next record


class StreamBatches:
    """Endless training batches, read and rendered as they are needed.

    Args:
        sample: the examples of the first records of each source, which say how long
            rows are padded, and what the records are like.
        section: the configuration's section `data`.
        tokenizer: the model's tokenizer, with its chat template.
        batch_size: rows in a batch; whole records of examples drawn together.
        seed: the seed of the order.
        pad_id: the token that fills rows up.
        vocab_size: rows of the model's embedding; None: that is not checked.
        kind: what records become.

    Attributes:
        batch_size: rows in a batch.
        examples: the sample.
        lengths: all row lengths that occur, ascending.
        fingerprint: changes with the data or anything that orders it.
        wanted: (batch_size,) bool, the rows whose tokens this process needs, see
            `collate`; None: all.
    """

    def __init__(
        self,
        sample: Examples,
        section: "DataSection",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        vocab_size: int | None,
        kind: Kind,
    ):
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "pad_id": pad_id,
            "vocab_size": vocab_size,
            "kind": kind,
        }
        self.batch_size, self.examples = batch_size, sample
        self.wanted: np.ndarray | None = None
        self._section, self._tokenizer, self._kind = section, tokenizer, kind
        self._vocab_size, self._pad_id = vocab_size, pad_id
        self._records = batch_size // kind.together
        self.lengths = bucket_lengths(
            sample,
            batch_size,
            section.shuffle,
            section.length_buckets,
            section.max_length,
            longest=section.max_length,
        )
        self._streams = [
            Stream(
                source_of(source),
                source.max_samples,
                buffer=section.shuffle_buffer if section.shuffle else 1,
                seed=(seed, number),
            )
            for number, source in enumerate(section.train)
        ]
        skip = section.on_error == "skip"
        self._rejects = [
            Rejects(str(source_of(source)), skip=skip) for source in section.train
        ]
        # Where those stand that are left out: they come again in every epoch.
        self._known: list[set[str]] = [set() for _ in section.train]
        self.fingerprint: str = self._fingerprint(seed)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"batches are numbered from 0; there is no batch {step}")
        return next(self._batches(step))

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from `start_step` on, made ahead of their use in a thread.

        Args:
            start_step: the number of the first batch, counted from 0.

        Yields:
            The batches `start_step`, `start_step + 1`, ... without an end.

        Raises:
            InputError: a record cannot be used, and is not to be left out.
        """
        batches = self._batches(start_step)
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(next, batches) for _ in range(PREFETCH))
            try:
                while True:
                    yield ahead.popleft().result()
                    ahead.append(pool.submit(next, batches))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def reseeded(self, seed: int) -> "StreamBatches":
        """The batches of the same data in the order of another seed."""
        batches = StreamBatches(
            self.examples, self._section, self._tokenizer, seed=seed, **self._settings
        )
        batches.wanted = self.wanted
        return batches

    @cached_property
    def steps_per_epoch(self) -> float:
        """About how many steps see every record once, by the first part of each."""
        return sum(stream.estimate() for stream in self._streams) / self._records

    def epoch(self, step: int) -> float:
        """About how many epochs are completed when `step` steps have been taken."""
        return step / self.steps_per_epoch

    def summary(self) -> Summary:
        """The sample in numbers, for the log, and the records that were left out."""
        summary = self.examples.summary(self.lengths)
        each = [
            replace(source, skipped=(*source.skipped, *rejects.skipped()))
            for source, rejects in zip(summary.sources, self._rejects, strict=True)
        ]
        return replace(summary, sources=tuple(each), sampled=True)

    def _batches(self, start: int) -> Iterator[Batch]:
        section = self._section
        renderer = Renderer(
            self._tokenizer,
            max_length=section.max_length,
            train_on=section.train_on,
            split=False,
            kind=self._kind,
        )
        draws = self._draws(start * self._records)
        size = self._records * -(-_CHUNK // self._records)
        while True:
            made = self._rendered(list(itertools.islice(draws, size)), renderer)
            for at in range(0, size, self._records):
                yield self._batch(made[at : at + self._records])

    def _draws(self, start: int) -> Iterator[Drawn]:
        """The draws from one on, each source in turn as often as its weight says."""
        if len(self._streams) == 1:
            rows = self._streams[0].draws(start, self._rejects[0])
            yield from ((0, row) for row in rows)
            return
        import grain

        turns = grain.MapDataset.mix(
            [
                grain.MapDataset.source(_Turns(number))
                for number in range(len(self._streams))
            ],
            weights=[source.weight for source in self._section.train],
        )
        opened: dict[int, Iterator[Row | None]] = {}
        for turn in itertools.count(start):
            number, at = cast(tuple[int, int], turns[turn])
            if number not in opened:
                rejects = self._rejects[number]
                opened[number] = self._streams[number].draws(at, rejects)
            yield number, next(opened[number])

    def _rendered(
        self, drawn: Sequence[Drawn], renderer: Renderer
    ) -> list[list[Example]]:
        """The examples of each draw; none where its record is left out."""
        examples: list[list[Example]] = [[] for _ in drawn]
        for number, source in enumerate(self._section.train):
            rejects, known, usable = self._rejects[number], self._known[number], []
            found = Rejects(rejects.path, skip=True)
            for at, (own, row) in enumerate(drawn):
                if own != number:
                    continue
                rejects.rows += 1
                some = [] if row is None or row.place in known else [row]
                layout = (source.format, source.fields, found, self._kind)
                usable += [(at, *one) for one in formats.readable(some, *layout)]
            samples = [sample for _, _, sample in usable]
            places = [row.place for _, row, _ in usable]
            for which, made in renderer.render(samples, places, found):
                examples[usable[which][0]] = made
            for place, reason in found.listed:
                if place not in known:
                    known.add(place)
                    rejects.add(InputError(f"{place}: {reason}"))
            if not rejects.skip:
                rejects.settle(rejects.rows)
        return examples

    def _batch(self, records: Sequence[Sequence[Example]]) -> Batch:
        together, examples, rows = self._kind.together, [], []
        for own in records:
            first = len(examples)
            numbers = range(first, first + together) if own else [None] * together
            rows += [np.array([] if n is None else [n], np.int64) for n in numbers]
            examples += own
        some = self._gathered(examples)
        needed = max((len(example.tokens) for example in examples), default=1)
        length = fitting(self.lengths, needed)
        return collate(some, rows, length, self._pad_id, self.wanted)

    def _gathered(self, examples: Sequence[Example]) -> Examples:
        """The examples of a batch, in flat arrays."""
        arrays = arrays_of(examples, self._kind.columns)
        largest = int(arrays["tokens"].max(initial=0))
        if self._vocab_size is not None and largest >= self._vocab_size:
            raise InputError(
                f"{self._tokenizer.name_or_path}: the tokenizer gives token id "
                f"{largest}, but the model's embedding has {self._vocab_size} rows; "
                "use the tokenizer that belongs to this model"
            )
        weights = arrays.get("weights")
        if self.examples.weights is None and weights is not None:
            raise InputError(
                f"data.streaming: a weight other than 1 comes first after the "
                f"{len(self.examples):,} examples that the program is made for; give "
                "one of the first records its weight, or set streaming to false"
            )
        if self.examples.weights is not None and weights is None:
            weights = arrays["supervised"].astype(np.float32)
        lengths = arrays["lengths"]
        return Examples(
            tokens=arrays["tokens"],
            supervised=arrays["supervised"],
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            left_out=arrays["left_out"],
            sources=(),
            columns={name: arrays[name] for name in self._kind.columns},
            weights=weights,
            together=self._kind.together,
        )

    def _fingerprint(self, seed: int) -> str:
        """A hash over the sources, the sample, and whatever makes batches of them."""
        section = self._section
        about = {
            "sources": [
                [
                    sources.identity(source_of(source)),
                    source.model_dump(exclude={"path", "name", "split", "revision"}),
                ]
                for source in section.train
            ],
            "sample": self.examples.digest,
            "settings": [self.batch_size, seed, self._pad_id, self.lengths],
            "section": section.model_dump(
                include={
                    *("max_length", "shuffle", "shuffle_buffer"),
                    *("train_on", "on_error"),
                }
            ),
        }
        text = json.dumps(about, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Turns:
    """(source, 0), (source, 1), ...: a data source for grain to mix.

    Args:
        number: of the source.
    """

    def __init__(self, number: int):
        self._number = number

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._number, int(index)
