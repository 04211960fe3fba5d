"""A data set in numbers, by one pass over its tokens in blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from jaxpeft.data import Examples

BLOCK = 2**18  # tokens at a time: their intermediate results stay in a CPU's caches

# Odd numbers without a pattern, of splitmix64 and of the golden ratio.
_BY_TOKEN = np.uint64(0xBF58476D1CE4E5B9)
_BY_PLACE = np.uint64(0x9E3779B97F4A7C15)
_AGAIN = np.uint64(0x94D049BB133111EB)


class Repeats(NamedTuple):
    """Examples all of whose tokens are the same; of pairs, both.

    Attributes:
        count: how many repeat an earlier one.
        most: how often the most frequent one occurs.
        number: the first of those, counted from 0.
    """

    count: int
    most: int
    number: int


@dataclass(frozen=True)
class Statistics:
    """What the tokens of a data set say.

    Attributes:
        supervised: (examples,) the learned tokens of each.
        last: (examples,) the last learned token of each; -1 where there is none.
        wholes: (examples,) a hash over all tokens of each.
        prompts: (examples,) one over those before the first that is learned.
        occurs: how often each of the tokens asked for occurs.
        learned: how often it is learned.
    """

    supervised: Int64[np.ndarray, " examples"]
    last: Int32[np.ndarray, " examples"]
    wholes: UInt64[np.ndarray, " examples"]
    prompts: UInt64[np.ndarray, " examples"]
    occurs: Mapping[int, int]
    learned: Mapping[int, int]


def statistics(examples: Examples, ids: Sequence[int], vocab_size: int) -> Statistics:
    """The statistics of a data set; 200 million tokens take some seconds.

    Args:
        examples: the data, in memory or mapped from files.
        ids: the tokens to count, such as those that end a turn.
        vocab_size: one more than the largest token id.
    """
    count = len(examples)
    supervised, last = np.zeros(count, np.int64), np.full(count, -1, np.int32)
    wholes, prompts = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    occurs, learned = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    slots = np.full(vocab_size, -1, np.int16)  # of each token among those to count
    slots[list(ids)] = np.arange(len(ids))
    for numbers, tokens, mask, starts in _blocks(examples):
        found = slots[tokens]
        counted = np.flatnonzero(found >= 0)
        slot, is_learned = found[counted], mask[counted]
        occurs += np.bincount(slot, minlength=len(ids))
        learned += np.bincount(slot[is_learned], minlength=len(ids))
        own = np.add.reduceat(mask, starts, dtype=np.int64)
        hashes = _hashes(tokens, starts)
        supervised[numbers], wholes[numbers] = own, np.add.reduceat(hashes, starts)
        teaches = own > 0
        targets, until = np.flatnonzero(mask), np.cumsum(own)
        last[numbers[teaches]] = tokens[targets[until[teaches] - 1]]
        firsts = targets[(until - own)[teaches]]
        prompts[numbers] = wholes[numbers]
        prompts[numbers[teaches]] = _sums(hashes, starts[teaches], firsts)
    counts = (dict(zip(ids, some.tolist())) for some in (occurs, learned))
    return Statistics(supervised, last, wholes, prompts, *counts)


def _blocks(
    examples: Examples,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The numbers of some examples, their tokens and mask, and where each begins.

    Examples without tokens are left out.
    """
    begins = np.asarray(examples.starts)[: len(examples)]
    sizes = np.asarray(examples.lengths)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(examples):
        before = ends[first] - sizes[first]
        stop = int(np.searchsorted(ends, before + BLOCK, "right"))
        stop = max(stop, first + 1)
        numbers = first + np.flatnonzero(sizes[first:stop])
        first = stop
        if len(numbers):
            places = begins[numbers], begins[numbers] + sizes[numbers]
            starts = np.cumsum(sizes[numbers]) - sizes[numbers]
            tokens = _together(examples.tokens, *places)
            mask = _together(examples.supervised, *places)
            yield numbers, tokens, mask, starts


def _together(values: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Parts of an array one after another; nothing is copied where they are so."""
    if (begins[1:] == ends[:-1]).all():
        return np.asarray(values[begins[0] : ends[-1]])
    return np.concatenate([values[a:b] for a, b in zip(begins, ends)])


def _hashes(
    tokens: Int32[np.ndarray, " n"], starts: Int64[np.ndarray, " k"]
) -> UInt64[np.ndarray, " n"]:
    """A number for each token and its place in the example; they are added up."""
    sizes = np.diff(starts, append=len(tokens))
    mixed = np.arange(len(tokens), dtype=np.uint64)
    mixed -= np.repeat(starts.astype(np.uint64), sizes)
    mixed *= _BY_PLACE
    mixed += (tokens.astype(np.uint64) + np.uint64(1)) * _BY_TOKEN
    mixed ^= mixed >> np.uint64(29)
    mixed *= _AGAIN
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _sums(
    values: UInt64[np.ndarray, " n"],
    starts: Int64[np.ndarray, " k"],
    stops: Int64[np.ndarray, " k"],
) -> UInt64[np.ndarray, " k"]:
    """The sums of `values[start:stop]`, of parts that follow each other."""
    if not len(starts):
        return np.zeros(0, np.uint64)
    edges = np.column_stack([starts, stops]).reshape(-1)
    sums = np.add.reduceat(values, edges)[::2]
    return np.where(stops > starts, sums, np.uint64(0))


def records(
    hashes: UInt64[np.ndarray, " examples"], together: int
) -> UInt64[np.ndarray, " records"]:
    """The hashes of records of several examples each, such as a pair's.

    Args:
        hashes: of the examples.
        together: how many make a record.
    """
    factors = _AGAIN ** np.arange(together, dtype=np.uint64)
    return (hashes.reshape(-1, together) * factors).sum(axis=1, dtype=np.uint64)


def repeats(hashes: UInt64[np.ndarray, " records"]) -> Repeats:
    """How many records repeat an earlier one.

    Args:
        hashes: of the records.
    """
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = int(counts.max())
    number = int(first[counts == most].min())
    return Repeats(len(hashes) - len(counts), most, number)


def shared(
    some: UInt64[np.ndarray, " records"], others: UInt64[np.ndarray, " others"]
) -> int:
    """How many of some records are among others, too.

    Args:
        some: their hashes.
        others: the others' hashes.
    """
    return int(np.isin(some, others).sum())


def columns(examples: Examples) -> Mapping[str, np.ndarray]:
    """What each example carries besides its tokens, such as a label; (examples,)."""
    return getattr(examples, "columns", {})


def together(examples: Examples) -> int:
    """How many examples make a record: 2 are the two answers of a pair."""
    return getattr(examples, "together", 1)
