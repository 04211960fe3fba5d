"""The statistics, counted again one token at a time."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxpeft.data.examples import gather
from jaxpeft.data.render import Example
from jaxpeft.look import statistics
from jaxpeft.look.histogram import histogram

IDS = [2, 5, 7]


class Apart(SimpleNamespace):
    """Some of the examples that lie in a store."""

    def __len__(self):
        return len(self.starts)


def make():
    """Short examples of few tokens, so that many are equal; some are empty."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        size = int(rng.integers(0, 6))
        supervised = rng.random(size) < 0.4
        supervised[:1] = False
        found.append(Example(rng.integers(0, 9, size).astype("i4"), supervised, 0))
    return found


@pytest.mark.parametrize("block", [1, 7, 2**18])
@pytest.mark.parametrize("every", [1, 2])
def test_statistics_are_those_of_counting(every, block, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", block)
    data, made = gather([("a", 1.0, make())]), make()[::every]
    starts, lengths = data.starts[: len(data)][::every], data.lengths[::every]
    arrays = {"tokens": data.tokens, "supervised": data.supervised}
    examples: Any = Apart(**arrays, starts=starts, lengths=lengths)
    own = statistics.statistics(examples, IDS, 9)
    occurs, learned = Counter(), Counter()
    for number, example in enumerate(made):
        tokens, mask = example.tokens.tolist(), example.supervised.tolist()
        occurs.update(tokens)
        taught = [token for token, one in zip(tokens, mask) if one]
        learned.update(taught)
        assert own.supervised[number] == len(taught)
        assert own.last[number] == (taught[-1] if taught else -1)
    assert own.occurs == {i: occurs[i] for i in IDS}
    assert own.learned == {i: learned[i] for i in IDS}
    wholes = [tuple(example.tokens.tolist()) for example in made]
    prompts = [tokens[: first(example)] for tokens, example in zip(wholes, made)]
    for hashes, texts in ((own.wholes, wholes), (own.prompts, prompts)):
        assert len(set(zip(hashes.tolist(), texts))) == len(set(texts))
        assert len(set(hashes.tolist())) == len(set(texts))
    counts = Counter(wholes)
    again = statistics.repeats(own.wholes)
    assert again.count == len(wholes) - len(counts)
    assert again.most == max(counts.values()) == counts[wholes[again.number]]
    some, others = own.wholes[:40], own.wholes[40:]
    expected = sum(tokens in set(wholes[40:]) for tokens in wholes[:40])
    assert statistics.shared(some, others) == expected


def first(example):
    """Where the first learned token stands; all of them where there is none."""
    found = np.flatnonzero(example.supervised)
    return int(found[0]) if len(found) else None


def test_a_pair_is_another_when_its_answers_change_places():
    one, two = np.array([1, 2, 1, 2, 2, 1], np.uint64), np.array([1, 2], np.uint64)
    pairs = statistics.records(one, 2)
    assert statistics.repeats(pairs).count == 1
    assert statistics.shared(statistics.records(two, 2), pairs[2:]) == 0
    assert statistics.repeats(statistics.records(one, 1)).count == 4


@pytest.mark.parametrize(
    "lengths", [[5], [7, 7], range(1, 400), [*range(40), 10_000], [250_000, 3, 3]]
)
def test_the_bars_count_every_example_once(lengths):
    array = np.array(lengths)
    bars = histogram(array)
    assert 0 < len(bars) <= 17
    for bar in bars:
        assert bar.count == sum(bar.first <= n <= bar.last for n in lengths)
    assert sum(bar.count for bar in bars) == len(lengths)
    for left, right in zip(bars, bars[1:]):
        assert right.first == left.last + 1
