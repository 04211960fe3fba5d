"""Packing keeps every example whole, exactly once, in few rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpeft.data.packing import pack


@given(
    lengths=st.lists(st.integers(0, 16), max_size=60),
    seed=st.none() | st.integers(0, 3).map(lambda n: (n, 0)),
    window=st.sampled_from([5, 4096]),
)
def test_rows_hold_every_example_once_within_capacity(lengths, seed, window):
    sizes = np.array(lengths, np.int64)
    plan = pack(sizes, 16, seed=seed, window=window)
    rows = [plan.row(r) for r in range(len(plan))]
    assert sorted(plan.members) == [i for i, size in enumerate(lengths) if size]
    assert all(0 < sizes[row].sum() <= 16 for row in rows)
    assert all(list(row) == sorted(row) for row in rows)
    # best fit leaves at most one row half empty in each window
    if window > len(lengths):
        assert sum(sizes[row].sum() <= 8 for row in rows) <= 1


def test_in_order_rows_follow_their_first_example():
    plan = pack(np.array([3, 5, 8, 5, 3]), 8, seed=None)
    assert [list(plan.row(r)) for r in range(len(plan))] == [[0, 3], [1, 4], [2]]


def test_the_seed_decides_the_order():
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    a, b, c = (pack(lengths, 64, seed=(7, epoch)) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(a.members, b.members)
    assert not np.array_equal(a.members, c.members)


def test_little_room_is_wasted():
    lengths = np.random.default_rng(0).integers(1, 200, 20_000)
    plan = pack(lengths, 512, seed=(0, 0))
    assert lengths.sum() / (len(plan) * 512) > 0.99
