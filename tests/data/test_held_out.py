"""The share of the training data that `data.eval_split` sets aside."""

import json

import pytest

from jaxpeft.data.held_out import divided
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError

ROWS = [Row({"text": f"record {n}", "n": n}, f"row {n}") for n in range(1000)]


def values(rows):
    return [json.dumps(row.value, sort_keys=True) for row in rows]


def test_every_record_is_on_one_side_in_its_order():
    train, held = divided(ROWS, 0.1)
    assert (len(train), len(held)) == (900, 100)
    assert sorted([*train, *held], key=ROWS.index) == ROWS
    assert [ROWS.index(row) for row in held] == sorted(map(ROWS.index, held))
    # Neither the first nor the last: from all parts of the file.
    numbers = [row.value["n"] for row in held]
    assert all(15 <= sum(n // 250 == part for n in numbers) <= 35 for part in range(4))


def test_which_ones_does_not_depend_on_the_order_of_the_file():
    turned = [Row(dict(reversed(row.value.items())), "") for row in reversed(ROWS)]
    assert set(values(divided(turned, 0.1)[1])) == set(values(divided(ROWS, 0.1)[1]))


def test_equal_records_are_on_one_side():
    train, held = divided([*ROWS, *ROWS[:500]], 0.1)
    assert not set(values(train)) & set(values(held))


def test_a_side_without_records_is_refused():
    assert len(divided(ROWS[:2], 0.01)[1]) == 1
    for rows in (ROWS[:1], [ROWS[0], ROWS[0]], []):
        with pytest.raises(InputError, match="leaves none to train on"):
            divided(rows, 0.5)
