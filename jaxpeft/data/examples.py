"""All examples of a data set in three flat arrays, and what is said of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxpeft.data.render import Example


@dataclass(frozen=True)
class SourceSummary:
    """What one source contributed. `supervised` counts target tokens."""

    path: str
    weight: float
    examples: int
    tokens: int
    supervised: int
    truncated: int
    without_target: int


@dataclass(frozen=True)
class Summary:
    """A data set in numbers, for the log.

    examples, tokens, supervised: after cutting at max_length.
    truncated: examples that were cut.
    without_target: examples with no supervised token left; nothing is learned of them.
    lengths: the row lengths that batches have; each is compiled once.
    rows: packed rows in the first epoch; None without packing.
    sources: the same per source.
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
    """Examples end to end: number i is `[starts[i], starts[i + 1])` of both arrays."""

    tokens: Int32[np.ndarray, " total"]
    supervised: Bool[np.ndarray, " total"]
    starts: Int64[np.ndarray, " examples+1"]
    sources: tuple[SourceSummary, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """Tokens in each example."""
        return np.diff(self.starts)

    @cached_property
    def source_starts(self) -> tuple[int, ...]:
        """The number of each source's first example, and one past the last."""
        counts = [0, *(source.examples for source in self.sources)]
        return tuple(int(n) for n in np.cumsum(counts))

    def question(self, index: int) -> tuple[list[int], list[int]]:
        """Example `index` as (what comes before its last answer, that answer)."""
        start, stop = self.starts[index : index + 2]
        tokens, learned = self.tokens[start:stop], self.supervised[start:stop]
        if not learned.any():
            return tokens.tolist(), []
        end = int(np.flatnonzero(learned)[-1]) + 1
        gaps = np.flatnonzero(~learned[:end])
        begin = int(gaps[-1]) + 1 if len(gaps) else 0
        return tokens[:begin].tolist(), tokens[begin:end].tolist()

    def summary(self, lengths: Sequence[int], rows: int | None = None) -> Summary:
        """Totals over the sources."""
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


def gather(sources: Sequence[tuple[str, float, Sequence[Example]]]) -> Examples:
    """The examples of all sources, given as (path, weight, examples), in order."""
    examples = [example for _, _, some in sources for example in some]
    sizes = [len(example.tokens) for example in examples]
    return Examples(
        tokens=np.concatenate([example.tokens for example in examples]),
        supervised=np.concatenate([example.supervised for example in examples]),
        starts=np.cumsum([0, *sizes], dtype=np.int64),
        sources=tuple(
            SourceSummary(
                path=path,
                weight=weight,
                examples=len(some),
                tokens=sum(len(e.tokens) for e in some),
                supervised=sum(int(e.supervised.sum()) for e in some),
                truncated=sum(e.truncated for e in some),
                without_target=sum(not e.supervised.any() for e in some),
            )
            for path, weight, some in sources
        ),
    )
