"""A shuffled buffer: each record once an epoch, the same wherever it is taken up."""

import itertools
import json

import pytest

from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import Source, jsonl, part
from jaxpeft.data.stream import Stream


@pytest.fixture
def stream(write, monkeypatch):
    """A stream over so many records in parts of a few, and another at each call."""
    monkeypatch.setattr(jsonl, "SIZE", 40)
    monkeypatch.setattr(part, "SIZE", 40)

    def make(count, buffer, seed=0, name="d.jsonl", max_rows=None):
        lines = "\n".join(json.dumps({"a": n}) for n in range(count))
        path = write(name, lines)
        return Stream(Source(path), max_rows, buffer=buffer, seed=[seed])

    return make


def drawn(stream, start, count):
    rows = itertools.islice(stream.draws(start, Rejects("d")), count)
    return [number_of(row) for row in rows]


def number_of(row):
    return row and row.value["a"]


@pytest.mark.parametrize("buffer", [1, 7, 50, 1000])
def test_every_epoch_has_each_record_once(stream, buffer):
    numbers = drawn(stream(50, buffer), 0, 150)
    for epoch in range(3):
        own = numbers[50 * epoch : 50 * (epoch + 1)]
        assert sorted(own) == list(range(50))
        # One is drawn before as many as wait have been read.
        assert all(number - at < buffer for at, number in enumerate(own))
    if buffer == 1:
        assert numbers[:50] == list(range(50))
    else:
        assert numbers[:50] != numbers[50:100]
        assert numbers != drawn(stream(50, buffer, seed=1), 0, 150)


@pytest.mark.parametrize("buffer", [1, 7, 50, 1000])
def test_it_is_taken_up_anywhere(stream, buffer):
    whole = drawn(stream(50, buffer), 0, 170)
    for start in (0, 1, 23, 49, 50, 51, 99, 100, 133):
        assert drawn(stream(50, buffer), start, 37) == whole[start : start + 37]


def test_the_order_is_uniform_where_all_records_wait(stream):
    """Each is the first draw about equally often: 200 seeds, 10 of each expected."""
    first = [drawn(stream(20, 20, seed), 0, 1)[0] for seed in range(200)]
    counts = [first.count(number) for number in range(20)]
    chi_squared = sum((count - 10) ** 2 / 10 for count in counts)
    assert chi_squared < 43.8  # of 19 degrees of freedom: 1 in 1000 is above


def test_only_parts_that_are_wanted_are_looked_into(stream, monkeypatch):
    looked = []
    each = jsonl.Lines.each

    def counted(self, rejects):
        looked.append(self.number)
        return each(self, rejects)

    made = stream(2000, 5)
    monkeypatch.setattr(jsonl.Lines, "each", counted)
    assert len(drawn(made, 1900, 3)) == 3
    assert len(looked) < 30  # of 400


def test_the_first_rows_alone_and_those_that_cannot_be_read(stream, write):
    assert sorted(drawn(stream(50, 9, max_rows=13), 0, 13)) == list(range(13))
    path = write("e.jsonl", '{"a": 0}\nbad\n{"a": 2}\n')
    rejects = Rejects(path, skip=True)
    own = Stream(Source(path), None, buffer=2, seed=[0])
    rows = list(itertools.islice(own.draws(0, rejects), 9))
    assert sorted(map(str, map(number_of, rows[:3]))) == [
        "0",
        "2",
        "None",
    ]
    assert rejects.count == 1  # not again in other epochs


def test_how_many_there_are_is_estimated(stream):
    assert 400 < stream(500, 5).estimate() < 700
    assert stream(500, 5, max_rows=20).estimate() == 20
