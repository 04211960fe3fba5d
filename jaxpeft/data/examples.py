"""All examples of a data set in three flat arrays, and what is said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from jaxpeft.data.formats import SFT
from jaxpeft.data.kinds import Kind
from jaxpeft.data.rejects import Skipped
from jaxpeft.data.render import Example


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
    """

    examples: int
    tokens: int
    supervised: int
    truncated: int
    without_target: int
    lengths: tuple[int, ...]
    rows: int | None
    sources: tuple[SourceSummary, ...]


@dataclass(frozen=True)
class Examples:
    """All examples of a data set, end to end in flat arrays.

    Example i is the part `[starts[i], starts[i] + lengths[i])` of `tokens`,
    `supervised` and `weights`.

    Attributes:
        tokens: the token ids of all examples.
        supervised: whether a token is itself a target that counts in the loss.
        starts: where each example begins.
        lengths: the number of tokens in each.
        left_out: the tokens that each example had more before it was cut at max_length.
        sources: what each source contributed, in the order of the examples.
        columns: (examples,) values of each of the kind's columns.
        weights: what each token counts in the loss; None: 1 where it is supervised.
        together: how many examples are a record's, which are always drawn together.
    """

    tokens: Int32[np.ndarray, " total"]
    supervised: Bool[np.ndarray, " total"]
    starts: Int64[np.ndarray, " examples"]
    lengths: Int64[np.ndarray, " examples"]
    left_out: Int32[np.ndarray, " examples"]
    sources: tuple[SourceSummary, ...]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Float32[np.ndarray, " total"] | None = None
    together: int = 1

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
            tokens=len(self.tokens),
            supervised=int(self.supervised.sum()),
            truncated=sum(source.truncated for source in self.sources),
            without_target=sum(source.without_target for source in self.sources),
            lengths=tuple(lengths),
            rows=rows,
            sources=self.sources,
        )


def gather(
    sources: Sequence[tuple[str, float, Sequence[Example]]],
    remarks: Sequence[Sequence[str]] = (),
    kind: Kind = SFT,
    skipped: Sequence[tuple[Skipped, ...]] = (),
) -> Examples:
    """The examples of all sources together, one source after another.

    Args:
        sources: (path, weight, examples) of each source.
        remarks: on each source, see `SourceSummary`; empty: there are none.
        kind: names the columns, and how many examples are drawn together.
        skipped: the rows of each source that were left out; empty: there are none.
    """
    left_out = skipped or [()] * len(sources)
    said = remarks or [()] * len(sources)
    examples = [example for _, _, own in sources for example in own]
    lengths = np.array([len(example.tokens) for example in examples], np.int64)
    weights = None
    if any(example.weights is not None for example in examples):
        weights = np.concatenate(
            [
                e.supervised.astype("f4") if e.weights is None else e.weights
                for e in examples
            ]
        )
    return Examples(
        tokens=np.concatenate([example.tokens for example in examples]),
        supervised=np.concatenate([example.supervised for example in examples]),
        starts=np.cumsum([0, *lengths[:-1]], dtype=np.int64),
        lengths=lengths,
        left_out=np.array([example.left_out for example in examples], np.int32),
        sources=tuple(
            SourceSummary(
                path=path,
                weight=weight,
                examples=len(own),
                tokens=sum(len(e.tokens) for e in own),
                supervised=sum(int(e.supervised.sum()) for e in own),
                truncated=sum(e.truncated for e in own),
                without_target=sum(not e.supervised.any() for e in own),
                remarks=tuple(own_remarks),
                skipped=own_skipped,
            )
            for (path, weight, own), own_remarks, own_skipped in zip(
                sources, said, left_out, strict=True
            )
        ),
        columns={
            name: np.array([example.columns[name] for example in examples], dtype)
            for name, dtype in kind.columns.items()
        },
        weights=weights,
        together=kind.together,
    )
