"""The chosen row lengths against an exhaustive search."""

from itertools import combinations

import numpy as np
import pytest

from jaxpeft.data.buckets import batch_maxima, choose_lengths


def padded(lengths, weights, chosen):
    """Tokens of all rows, when each is padded to the smallest fitting length."""
    fit = [min(c for c in chosen if c >= length) for length in lengths]
    return float(np.dot(fit, weights))


@pytest.mark.parametrize("buckets", [1, 2, 3, 4])
def test_no_choice_of_as_many_lengths_pads_less(buckets):
    rng = np.random.default_rng(0)
    lengths, weights = rng.integers(1, 250, 40), rng.random(40)
    longest = int(lengths.max())
    chosen = choose_lengths(
        lengths, weights, buckets=buckets, longest=longest, limit=4096
    )
    assert len(chosen) <= buckets
    assert list(chosen) == sorted(set(chosen))
    assert all(length % 32 == 0 for length in chosen)
    assert 0 <= chosen[-1] - longest < 32
    least = min(
        padded(lengths, weights, (*some, chosen[-1]))
        for count in range(buckets)
        for some in combinations(range(32, chosen[-1], 32), count)
    )
    assert padded(lengths, weights, chosen) == pytest.approx(least)


def test_the_limit_is_never_exceeded():
    chosen = choose_lengths(
        np.array([20, 99, 100]), np.ones(3), buckets=3, longest=100, limit=100
    )
    assert chosen == (32, 100)


def test_very_long_contexts():
    lengths = np.array([100, 130_000])
    chosen = choose_lengths(
        lengths, np.array([0.9, 0.1]), buckets=2, longest=130_000, limit=131_072
    )
    assert len(chosen) == 2
    assert all(length % 32 == 0 for length in chosen)
    assert 100 <= chosen[0] <= 1024
    assert chosen[1] >= 130_000


def test_shuffled_maxima_follow_simulation():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 20, 60)
    values, often = batch_maxima([lengths], [1.0], batch_size=4, shuffle=True)
    assert often.sum() == pytest.approx(1.0)
    drawn = rng.choice(lengths, (20_000, 4)).max(axis=1)
    assert np.dot(values, often) == pytest.approx(drawn.mean(), rel=0.01)


def test_maxima_in_file_order_are_the_batches_own():
    values, often = batch_maxima(
        [np.array([1, 2, 9, 3, 4, 4, 5])], [1.0], batch_size=3, shuffle=False
    )
    # the third batch runs on into the next epoch: 5, 1, 2
    np.testing.assert_array_equal(values, [9, 4, 5])
    np.testing.assert_array_equal(often, [1, 1, 1])
