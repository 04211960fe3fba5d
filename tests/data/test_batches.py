"""Batches: what they hold, their order, and that it depends on the step alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxpeft.data.batches import Batches, EvalBatches
from jaxpeft.data.examples import gather
from jaxpeft.data.render import Example

PAD = 99


def make_examples(count, *, first=0, longest=40, seed=0):
    """Example i is i, i, i, ..., so that its tokens say which it is."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(first, first + count):
        size = int(rng.integers(2, longest + 1))
        supervised = np.arange(size) >= size // 2
        made.append(Example(np.full(size, number, np.int32), supervised, 0))
    return made


def batches_of(*sources, weights=None, **settings):
    weights = weights or [1.0] * len(sources)
    data = gather(list(zip("abcd", weights, sources)))
    settings = {"batch_size": 4, "seed": 3, "max_length": 64, "pad_id": PAD} | settings
    return Batches(data, **settings)


def rows_of(batch):
    """(segment tokens) of every row, checked to be well formed on the way."""
    rows = []
    for r, segments in enumerate(batch["segments"]):
        used = int((segments > 0).sum())
        assert (segments[:used] > 0).all()  # padding is on the right
        row = []
        for segment in range(1, segments.max(initial=0) + 1):
            (at,) = np.nonzero(segments == segment)
            np.testing.assert_array_equal(np.diff(at), 1)
            np.testing.assert_array_equal(batch["positions"][r, at], np.arange(len(at)))
            tokens = batch["tokens"][r, at]
            np.testing.assert_array_equal(batch["targets"][r, at[:-1]], tokens[1:])
            assert batch["targets"][r, at[-1]] == 0
            assert not batch["supervised"][r, at[-1]]
            row.append((tuple(tokens), tuple(batch["supervised"][r, at])))
        for name, empty in (
            ("tokens", PAD),
            ("targets", 0),
            ("supervised", 0),
            ("positions", 0),
        ):
            assert (batch[name][r, used:] == empty).all()
        rows.append(row)
    return rows


def drawn(batches, steps):
    """The numbers of the examples of these steps, in order."""
    rows = [row for step in steps for row in rows_of(batches[step])]
    return [segment[0][0] for row in rows for segment in row]


SETTINGS = [
    {},
    {"shuffle": False},
    {"packing": True},
    {"packing": True, "shuffle": False},
]


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("settings", SETTINGS)
def test_batches_hold_the_examples_they_are_made_of(settings):
    examples = make_examples(19)
    batches = batches_of(examples, **settings)
    expected = {
        # supervised says of each position whether its *target* counts
        (tuple(e.tokens), (*e.supervised[1:], False))
        for e in examples
    }
    seen = {s for step in range(8) for row in rows_of(batches[step]) for s in row}
    assert seen == expected
    for name, dtype in [
        ("tokens", np.int32),
        ("targets", np.int32),
        ("supervised", bool),
        ("positions", np.int32),
        ("segments", np.int32),
    ]:
        assert batches[0][name].dtype == dtype


@pytest.mark.parametrize("settings", SETTINGS)
def test_random_access_and_iteration_agree_from_any_step(settings):
    batches = batches_of(make_examples(19), make_examples(7, first=50), **settings)
    straight = list(itertools.islice(batches.iterate(), 12))
    assert all(equal(batch, batches[step]) for step, batch in enumerate(straight))
    fresh = batches_of(make_examples(19), make_examples(7, first=50), **settings)
    resumed = list(itertools.islice(fresh.iterate(5), 7))
    assert all(equal(a, b) for a, b in zip(straight[5:], resumed, strict=True))


def test_file_order_without_shuffling():
    batches = batches_of(make_examples(10), shuffle=False)
    assert drawn(batches, range(5)) == list(range(10)) * 2
    assert batches.steps_per_epoch == 2.5
    assert batches.epoch(5) == 2.0


@pytest.mark.parametrize("packing", [False, True])
def test_every_epoch_has_every_example_once_in_another_order(packing):
    batches = batches_of(make_examples(30), packing=packing, batch_size=1)
    order = drawn(batches, range(90))
    epochs = [order[:30], order[30:60], order[60:90]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert epochs[0] != epochs[1] != epochs[2]
    other = batches_of(make_examples(30), packing=packing, batch_size=1, seed=4)
    assert drawn(other, range(90))[:30] != epochs[0]


def test_packed_epochs_are_counted_in_their_own_rows():
    batches = batches_of(make_examples(30), packing=True, batch_size=1)
    counts, step = [], 0
    for _ in range(3):
        seen, first = 0, step
        while seen < 30:
            seen += len(drawn(batches, [step]))
            step += 1
        counts.append(step - first)
        assert batches.epoch(step) == len(counts)
    assert batches.steps_per_epoch == counts[0]
    assert batches.epoch(1) == pytest.approx(1 / counts[0])
    assert batches.summary().rows == counts[0]
    # asked for the last epoch first, a new object answers the same
    again = batches_of(make_examples(30), packing=True, batch_size=1)
    assert equal(again[step - 1], batches[step - 1])


def test_packed_rows_have_one_shape():
    batches = batches_of(make_examples(30), packing=True, max_length=50)
    assert batches.lengths == (50,)
    assert {batches[step]["tokens"].shape for step in range(9)} == {(4, 50)}


def test_padded_rows_have_few_shapes():
    batches = batches_of(
        make_examples(200, longest=300), max_length=512, length_buckets=3
    )
    shapes = {batches[step]["tokens"].shape[1] for step in range(100)}
    assert shapes <= set(batches.lengths)
    assert len(batches.lengths) <= 3
    assert 300 <= batches.lengths[-1] <= 320


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}])
def test_sources_are_mixed_by_weight(settings):
    sources = make_examples(40), make_examples(20, first=50)
    batches = batches_of(*sources, weights=[3.0, 1.0], **settings)
    order = drawn(batches, range(40))
    for stop in (16, 80, 160):  # at any time, not only in the end
        share = sum(number >= 50 for number in order[:stop]) / stop
        assert share == pytest.approx(0.25, abs=1.5 / stop)
    # each source goes through all of its own before it starts over
    second = [number for number in order if number >= 50]
    assert sorted(second[:20]) == list(range(50, 70))


def test_many_sources_are_mixed_one_example_at_a_time():
    sources = [make_examples(2, first=2 * n) for n in range(40)]
    data = gather([(str(n), 1.0, source) for n, source in enumerate(sources)])
    batches = Batches(data, batch_size=1, seed=3, max_length=64)
    first = next(batches.iterate(5))
    assert equal(first, batches[5])


def test_one_example_is_enough():
    assert drawn(batches_of(make_examples(1)), range(2)) == [0] * 8
    assert drawn(batches_of(make_examples(1), packing=True), range(2)) == [0] * 8


def test_examples_without_tokens_leave_an_empty_row():
    empty = Example(np.zeros(0, np.int32), np.zeros(0, bool), 0)
    examples = [*make_examples(2), empty]
    batches = batches_of(examples, shuffle=False, batch_size=3)
    assert [len(row) for row in rows_of(batches[0])] == [1, 1, 0]
    assert sorted(drawn(batches_of(examples, packing=True, batch_size=1), [0])) == [
        0,
        1,
    ]


def test_the_fingerprint_follows_data_and_order():
    examples = make_examples(6)
    base = batches_of(examples).fingerprint
    assert batches_of(make_examples(6)).fingerprint == base
    changed = [e._replace(supervised=~e.supervised) for e in examples]
    others = [
        batches_of(changed),
        batches_of(examples[::-1]),
        batches_of(examples[:3], examples[3:]),
        batches_of(examples, weights=[2.0]),
        *(
            batches_of(examples, **{name: value})
            for name, value in [
                ("seed", 4),
                ("batch_size", 2),
                ("shuffle", False),
                ("packing", True),
            ]
        ),
    ]
    prints = {base, *(other.fingerprint for other in others)}
    assert len(prints) == len(others) + 1


def test_there_is_no_batch_before_the_first():
    with pytest.raises(IndexError, match="numbered from 0"):
        batches_of(make_examples(3))[-1]


def test_evaluation_goes_through_once_and_fills_up():
    data = gather([("a", 1.0, make_examples(10))])
    batches = EvalBatches(data, batch_size=4, max_length=64, pad_id=PAD)
    assert len(batches) == len(list(batches)) == 3
    assert drawn(batches, range(3)) == list(range(10))
    last = batches[2]
    assert last["tokens"].shape[0] == 4
    assert not last["segments"][2:].any()
    assert {b["tokens"].shape[1] for b in batches} <= set(batches.lengths)
    with pytest.raises(IndexError):
        batches[3]


def test_evaluation_of_some_examples_spreads_them_evenly():
    data = gather([("a", 1.0, make_examples(10))])
    every = EvalBatches(data, batch_size=3, max_length=64, pad_id=PAD)
    some = every.at_most(4)
    assert len(some) == 2 and drawn(some, range(2)) == [0, 2, 5, 7]
    assert (every.share(), some.share()) == ("", "4 of 10 examples")
    assert some.fingerprint != every.fingerprint
    for count in (None, 10, 99):
        assert every.at_most(count).fingerprint == every.fingerprint


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_process_reads_the_rows_of_its_devices_alone(settings):
    class Counted:
        def __init__(self, values):
            self.values, self.read, self.dtype = values, 0, values.dtype

        def __getitem__(self, wanted):
            self.read += wanted.stop - wanted.start
            return self.values[wanted]

    whole = batches_of(make_examples(30), **settings)
    counted = dataclasses.replace(
        whole.examples, tokens=Counted(np.asarray(whole.examples.tokens))
    )
    own = Batches(counted, seed=3, batch_size=4, max_length=64, pad_id=PAD, **settings)
    for mine in ([True, False, False, True], [False, True, True, False]):
        own.wanted = np.array(mine)
        counted.tokens.read = 0
        for step in range(4):
            mixed, batch = own[step], whole[step]
            for name in batch:
                np.testing.assert_array_equal(mixed[name][mine], batch[name][mine])
            # How long each row is, all processes know.
            np.testing.assert_array_equal(mixed["segments"], batch["segments"])
            assert not mixed["supervised"][~own.wanted].any()
        used = sum((whole[step]["segments"][mine] > 0).sum() for step in range(4))
        assert counted.tokens.read < 2 * used  # once as tokens, once as targets
