"""The share of the training data that `data.eval_split` sets aside."""

import json

import numpy as np
import pytest

from jaxpeft.data.conversation import Sample
from jaxpeft.data.held_out import _hash, hashed, held_out, remark
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError


def record(n, **more):
    """A record that becomes a document, and has a column that nobody reads."""
    row = Row({"text": f"record {n}", "n": n, **more}, f"row {n}")
    return row, Sample((f"record {n}",))


ROWS = [record(n) for n in range(1000)]


def divided(rows, share):
    """The records to train on and those held out, each in their order."""
    sides = held_out(np.array([hashed(*one) for one in rows], "V32"), share)
    return [[one for one, own in zip(rows, sides) if own == side] for side in (0, 1)]


def values(rows):
    return [json.dumps(row.value, sort_keys=True) for row, _ in rows]


def test_every_record_is_on_one_side_in_its_order():
    train, held = divided(ROWS, 0.1)
    assert (len(train), len(held)) == (900, 100)
    assert sorted([*train, *held], key=ROWS.index) == ROWS
    assert [ROWS.index(row) for row in held] == sorted(map(ROWS.index, held))
    # Neither the first nor the last: from all parts of the file.
    numbers = [row.value["n"] for row, _ in held]
    assert all(15 <= sum(n // 250 == part for n in numbers) <= 35 for part in range(4))


def test_which_ones_does_not_depend_on_the_order_of_the_file():
    turned = [
        (Row(dict(reversed(row.value.items())), ""), item)
        for row, item in reversed(ROWS)
    ]
    assert set(values(divided(turned, 0.1)[1])) == set(values(divided(ROWS, 0.1)[1]))


def test_equal_records_are_on_one_side():
    train, held = divided([*ROWS, *ROWS[:500]], 0.1)
    assert not set(values(train)) & set(values(held))


def test_records_are_equal_by_what_is_trained_on():
    rows = [record(n, id=k) for n in range(300) for k in range(2)]
    train, held = divided(rows, 0.3)
    assert not {s.items for _, s in train} & {s.items for _, s in held}
    assert len(held) == 180
    # Without equal ones it is the lowest hashes of the whole records.
    lowest = sorted(ROWS, key=lambda one: _hash(one[0].value))[:100]
    assert sorted(values(lowest)) == sorted(values(divided(ROWS, 0.1)[1]))


@pytest.mark.parametrize("kinds", [50, 30, 3])
def test_many_equal_records_leave_the_share_near(kinds):
    """50 equal ones and others, of which some are held out until the share is met."""
    rows = [record(0)] * 50 + [record(1 + n % kinds) for n in range(50)]
    train, held = divided(rows, 0.5)
    assert not {s.items for _, s in train} & {s.items for _, s in held}
    assert len(train) + len(held) == 100
    assert 49 <= len(held) <= 50 or (kinds == 3 and len(held) >= 32)
    assert not remark("d.json", 50, 100, 0.5)


def test_a_share_that_cannot_be_met_is_said():
    rows = [record(n % 2) for n in range(100)]
    train, held = divided(rows, 0.1)
    assert (len(train), len(held)) == (50, 50)
    (line,) = remark("d.json", 50, 100, 0.1)
    assert "d.json: data.eval_split 0.1 would be 10 of 100 records, but 50 are" in line


def test_a_side_without_records_is_refused():
    assert len(divided(ROWS[:2], 0.01)[1]) == 1
    for rows in (ROWS[:1], [ROWS[0], ROWS[0]], []):
        with pytest.raises(InputError, match="leaves none to train on"):
            divided(rows, 0.5)
