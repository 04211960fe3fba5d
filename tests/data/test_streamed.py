"""Batches of sources that are drawn while they are read, the same at every start."""

import itertools
import json
import re

import numpy as np
import pytest

from jaxpeft.config import DataSection
from jaxpeft.data import load_train
from jaxpeft.errors import InputError


@pytest.fixture
def load(tokenizer, monkeypatch):
    """Training batches of a section `data` that is streamed."""
    monkeypatch.setattr("jaxpeft.data.streamed._CHUNK", 16)

    def make(train, *, batch_size=4, seed=0, vocab_size=None, **section):
        keys = {"streaming": True, "shuffle_buffer": 9, "max_length": 64, **section}
        data = DataSection.model_validate({"train": train, **keys})
        sizes = {"batch_size": batch_size, "vocab_size": vocab_size}
        return load_train(data, tokenizer, seed=seed, **sizes)

    return make


def records(count, first=0):
    return [
        {"instruction": f"question {n}", "output": f"answer {n} " + "word " * (n % 5)}
        for n in range(first, first + count)
    ]


def lines(some):
    return "\n".join(map(json.dumps, some))


EMPTY = -1


def numbers(batch, tokenizer):
    """The number of the record in each row, or EMPTY."""
    texts = [
        tokenizer.decode(row[segments > 0])
        for row, segments in zip(batch["tokens"], batch["segments"], strict=True)
    ]
    found = [re.findall(r"question (\d+)", text) for text in texts]
    return [int(numbers[0]) if numbers else EMPTY for numbers in found]


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


@pytest.mark.slow
def test_a_row_is_what_it_is_without_streaming(write, load, tokenizer):
    """The same records in another order: row by row as stored examples give them."""
    path = write("d.jsonl", lines(records(30)))
    stored = load({"path": path}, streaming=False, shuffle=False, batch_size=1)
    streamed = load({"path": path}, batch_size=1)
    batches = list(itertools.islice(streamed.iterate(), 30))
    drawn = [number for batch in batches for number in numbers(batch, tokenizer)]
    assert sorted(drawn) == list(range(30))
    for batch in batches[:5]:
        (number,) = numbers(batch, tokenizer)
        expected, size = stored[number], int((batch["segments"] > 0).sum())
        for name, values in batch.items():
            assert np.array_equal(values[:, :size], expected[name][:, :size])
    in_order = load({"path": path}, shuffle=False)
    assert numbers(in_order[3], tokenizer) == [12, 13, 14, 15]


@pytest.mark.slow
def test_batches_are_the_same_wherever_they_are_taken_up(write, load):
    """Through the ends of epochs, and of two sources by weight."""
    write("d/1.jsonl", lines(records(11)))
    write("d/2.json", records(14, 11))
    one = write("d/1.jsonl", lines(records(11)))
    two = write("e.csv", "instruction,output\n" + "question 99,x\n" * 7)
    for train in (
        {"path": str(one).removesuffix("/1.jsonl")},
        [{"path": one, "weight": 2}, {"path": two}],
    ):
        batches = load(train)
        whole = list(itertools.islice(batches.iterate(), 20))
        for start in (1, 7, 19):
            own = itertools.islice(load(train).iterate(start), 20 - start)
            for batch, expected in zip(own, whole[start:], strict=True):
                assert same(batch, expected)
        assert same(batches[7], whole[7])
        assert not same(batches.reseeded(1)[7], whole[7])


def test_sources_are_drawn_by_their_weights(write, load, tokenizer):
    one = write("d.jsonl", lines(records(50)))
    two = write("e.jsonl", lines(records(9, 100)))
    batches = load([{"path": one, "weight": 3}, {"path": two}])
    drawn = [
        number
        for batch in itertools.islice(batches.iterate(), 20)
        for number in numbers(batch, tokenizer)
    ]
    assert sum(number >= 100 for number in drawn) == 20
    assert abs(batches.steps_per_epoch - 59 / 4) < 1
    assert abs(batches.epoch(30) - 2) < 0.2


BAD = [*map(json.dumps, records(40)), '{"instruction": "x"}', "nothing"]


def test_a_record_that_cannot_be_used_ends_the_run_or_leaves_its_row_empty(
    write, load, tokenizer, monkeypatch
):
    monkeypatch.setattr("jaxpeft.data.load._SAMPLE", 16)
    path = write("d.jsonl", "\n".join(BAD))
    batches = load({"path": path}, shuffle=False)
    with pytest.raises(InputError) as caught:
        list(itertools.islice(batches.iterate(), 11))
    assert "d.jsonl:42: not valid JSON" in str(caught.value)
    half = load({"path": write("e.jsonl", "\n".join(BAD[:-1]))}, shuffle=False)
    with pytest.raises(InputError, match=r"\(row 41\): column 'output' is missing"):
        list(itertools.islice(half.iterate(), 11))

    batches = load({"path": path}, shuffle=False, on_error="skip")
    some = list(itertools.islice(batches.iterate(), 21))
    assert numbers(some[10], tokenizer) == [EMPTY, EMPTY, 0, 1]
    assert not some[10]["supervised"][:2].any()
    skipped = batches.summary().sources[0].skipped
    places = [row.place.split("/")[-1] for row in skipped]
    assert places == ["d.jsonl:42", "d.jsonl:41 (row 41)"]


def test_what_comes_after_the_first_records_is_checked_too(write, load, monkeypatch):
    monkeypatch.setattr("jaxpeft.data.load._SAMPLE", 16)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    weighed = [talk[0], {**talk[1], "loss_weight": 0.5}]
    rows = [{"messages": talk}] * 20 + [{"messages": weighed}]
    path = write("d.jsonl", lines(rows))
    batches = load({"path": path, "format": "messages"}, shuffle=False)
    assert "weights" not in batches[0]
    with pytest.raises(InputError, match="a weight other than 1 comes first after"):
        batches[5]


def test_the_fingerprint_changes_with_data_and_order(write, load):
    path = write("d.jsonl", lines(records(30)))
    known = [
        load({"path": path}).fingerprint,
        load({"path": path}, seed=1).fingerprint,
        load({"path": path}, shuffle_buffer=8).fingerprint,
        load({"path": path}, batch_size=2).fingerprint,
        load({"path": path, "max_samples": 29}).fingerprint,
    ]
    assert load({"path": path}).fingerprint == known[0]
    write("d.jsonl", lines(records(30, 1)))
    assert len({*known, load({"path": path}).fingerprint}) == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"packing": True}, "packing: found true beside data.streaming"),
        ({"eval_split": 0.1}, r"eval_split: found 0\.1 beside data\.streaming"),
    ],
)
def test_what_does_not_go_with_streaming(load, keys, message):
    with pytest.raises(ValueError, match=message):
        load({"path": "d.json"}, **keys)
