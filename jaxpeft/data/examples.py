"""All examples of a data set in flat arrays, and what is said of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from jaxpeft.data.blocks import Joined, Ones
from jaxpeft.data.formats import SFT
from jaxpeft.data.kinds import Kind
from jaxpeft.data.making import Made, arrays_of
from jaxpeft.data.rejects import Rejects, Skipped
from jaxpeft.data.render import Example
from jaxpeft.data.store import Stored, Writer


@dataclass(frozen=True)
class SourceSummary:
    """What one source of examples contributed.

    Attributes:
        path: the file or folder.
        weight: its share in the mixture, relative to the other sources' weights.
        examples: the number of examples.
        tokens: the tokens in them, after cutting at max_length.
        supervised: the tokens that count in the loss as targets.
        truncated: the examples that were cut.
        without_target: the examples with no supervised token left, of which nothing is
            learned.
        remarks: what a user should know besides, such as rows left out.
        skipped: the rows that were left out, since they cannot be used.
    """

    path: str
    weight: float
    examples: int
    tokens: int
    supervised: int
    truncated: int
    without_target: int
    remarks: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A data set in numbers, for the log.

    Attributes:
        examples: the number of examples.
        tokens: the tokens in them, after cutting at max_length.
        supervised: the tokens that count in the loss as targets.
        truncated: the examples that were cut.
        without_target: the examples with no supervised token left, of which nothing is
            learned.
        lengths: the row lengths that batches have; each is compiled once.
        rows: the packed rows in the first epoch; None without packing.
        sources: the numbers of each source.
        sampled: whether they are those of the first records alone.
    """

    examples: int
    tokens: int
    supervised: int
    truncated: int
    without_target: int
    lengths: tuple[int, ...]
    rows: int | None
    sources: tuple[SourceSummary, ...]
    sampled: bool = False


@dataclass(frozen=True)
class Examples:
    """All examples of a data set, end to end in flat arrays.

    Example i is the part `[starts[i], starts[i] + lengths[i])` of `tokens`,
    `supervised` and `weights`.

    Attributes:
        tokens: (total,) int32, the token ids of all examples. As `supervised` and
            `weights` it may be a `blocks.Joined`, of which slices are read.
        supervised: (total,) bool, whether a token is itself a target that counts in the
            loss.
        starts: where each example begins.
        lengths: the number of tokens in each.
        left_out: the tokens that each example had more before it was cut at max_length.
        sources: what each source contributed, in the order of the examples.
        columns: (examples,) values of each of the kind's columns.
        weights: (total,) float32, what each token counts in the loss where it is
            supervised; None: 1.
        together: how many examples are a record's, which are always drawn together.
        largest: the largest token id of the sources; -1: it is not known.
        digest: a hash of all that the examples are.
    """

    tokens: Any
    supervised: Any
    starts: Int64[np.ndarray, " examples"]
    lengths: Int64[np.ndarray, " examples"]
    left_out: Int32[np.ndarray, " examples"]
    sources: tuple[SourceSummary, ...]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Any = None
    together: int = 1
    largest: int = -1
    digest: str = ""

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def source_starts(self) -> tuple[int, ...]:
        """The number of each source's first example, and one past the last."""
        counts = [0, *(source.examples for source in self.sources)]
        return tuple(int(n) for n in np.cumsum(counts))

    @cached_property
    def record_starts(self) -> tuple[int, ...]:
        """The number of each source's first record, and one past the last.

        A record is what is drawn: `together` examples, the first of which has its
        number times `together`.
        """
        return tuple(start // self.together for start in self.source_starts)

    @cached_property
    def longest(self) -> Int64[np.ndarray, " records"]:
        """The tokens in the longest example of each record."""
        return self.lengths.reshape(-1, self.together).max(axis=1)

    def with_column(self, name: str, values: np.ndarray) -> "Examples":
        """The same examples with one more value each, or another one.

        Args:
            name: of the column.
            values: (examples,).
        """
        return replace(self, columns={**self.columns, name: values})

    def question(self, index: int) -> tuple[list[int], list[int]]:
        """The prompt and the answer that an example ends with.

        Args:
            index: the example's number.

        Returns:
            The token ids before its last answer, and those of that answer; the answer
                is empty where no token is supervised.
        """
        start = self.starts[index]
        stop = start + self.lengths[index]
        tokens, learned = self.tokens[start:stop], self.supervised[start:stop]
        if not learned.any():
            return tokens.tolist(), []
        end = int(np.flatnonzero(learned)[-1]) + 1
        gaps = np.flatnonzero(~learned[:end])
        begin = int(gaps[-1]) + 1 if len(gaps) else 0
        return tokens[:begin].tolist(), tokens[begin:end].tolist()

    def summary(self, lengths: Sequence[int], rows: int | None = None) -> Summary:
        """The data in numbers, summed over the sources.

        Args:
            lengths: the row lengths that batches have, in tokens.
            rows: the packed rows in the first epoch; None without packing.
        """
        return Summary(
            examples=len(self),
            tokens=sum(source.tokens for source in self.sources),
            supervised=sum(source.supervised for source in self.sources),
            truncated=sum(source.truncated for source in self.sources),
            without_target=sum(source.without_target for source in self.sources),
            lengths=tuple(lengths),
            rows=rows,
            sources=self.sources,
        )


class Share(NamedTuple):
    """What of a source's examples a data set has.

    Attributes:
        path: the source.
        weight: its share in the mixture, relative to the other sources' weights.
        stored: all its examples.
        chosen: (records,) bool, those that the data set has; None: all.
        remarks: what a user should know besides.
        skipped: the rows that were left out, since they cannot be used.
    """

    path: str
    weight: float
    stored: Stored
    chosen: np.ndarray | None = None
    remarks: Sequence[str] = ()
    skipped: tuple[Skipped, ...] = ()

    def of_examples(self, name: str) -> np.ndarray:
        """A value of each example: an array that the store has one of.

        Args:
            name: of the array.
        """
        values = np.asarray(self.stored.arrays[name])
        if self.chosen is None:
            return values
        return values[np.repeat(self.chosen, self.stored.arrays["counts"])]

    @property
    def starts(self) -> np.ndarray:
        """Where each example begins in the store."""
        lengths = self.stored.arrays["lengths"]
        starts = np.cumsum(lengths) - lengths
        if self.chosen is None:
            return starts
        return starts[np.repeat(self.chosen, self.stored.arrays["counts"])]

    def summary(self) -> SourceSummary:
        """What the source contributes, in numbers."""
        learned = self.of_examples("learned")
        return SourceSummary(
            path=self.path,
            weight=self.weight,
            examples=len(learned),
            tokens=int(self.of_examples("lengths").sum()),
            supervised=int(learned.sum()),
            truncated=int((self.of_examples("left_out") > 0).sum()),
            without_target=int((learned == 0).sum()),
            remarks=tuple(self.remarks),
            skipped=self.skipped,
        )


def joined(shares: Sequence[Share], kind: Kind = SFT) -> Examples:
    """The examples of all sources together, one source after another.

    Args:
        shares: of each source.
        kind: names the columns, and how many examples are drawn together.
    """
    stores = [share.stored.arrays for share in shares]
    sizes = [len(store["tokens"]) for store in stores]
    before = np.cumsum([0, *sizes[:-1]])

    def together(name: str) -> np.ndarray:
        return np.concatenate([share.of_examples(name) for share in shares])

    weights = None
    if any("weights" in store for store in stores):
        weights = Joined(
            [s.get("weights", Ones(n)) for s, n in zip(stores, sizes, strict=True)]
        )
    digest = hashlib.blake2b(digest_size=16)
    for share in shares:
        digest.update(share.stored.digest.encode())
        digest.update(b"" if share.chosen is None else share.chosen.tobytes())
    return Examples(
        tokens=Joined([store["tokens"] for store in stores]),
        supervised=Joined([store["supervised"] for store in stores]),
        starts=np.concatenate(
            [share.starts + first for share, first in zip(shares, before, strict=True)]
        ),
        lengths=together("lengths"),
        left_out=together("left_out"),
        sources=tuple(share.summary() for share in shares),
        columns={name: together(name) for name in kind.columns},
        weights=weights,
        together=kind.together,
        largest=max(share.stored.about.largest for share in shares),
        digest=digest.hexdigest(),
    )


def gather(
    sources: Sequence[tuple[str, float, Sequence[Example]]], kind: Kind = SFT
) -> Examples:
    """The data set of examples that are in memory, one source after another.

    Args:
        sources: (path, weight, examples) of each source.
        kind: names the columns, and how many examples are drawn together.
    """
    shares = []
    for path, weight, examples in sources:
        records = len(examples) // kind.together
        writer = Writer(path, kind.columns, None)
        writer.append(
            Made(
                arrays={
                    **arrays_of(examples, kind.columns),
                    "counts": np.full(records, kind.together, np.int32),
                    "hashes": np.zeros(records, "V32"),
                    "empty": np.zeros(records, bool),
                },
                rejects=Rejects(path),
            )
        )
        shares.append(Share(path, weight, writer.in_memory()))
    return joined(shares, kind)
