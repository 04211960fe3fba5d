"""Pairs of answers and labelled ones: formats, masks, cuts, what is said of them."""

import json

import numpy as np
import pytest

from jaxpeft.config.data import DataSection
from jaxpeft.data import load_train
from jaxpeft.data.columns import string
from jaxpeft.data.preference import LABELLED, PAIRS
from jaxpeft.errors import InputError

USER = {"role": "user", "content": "Which?"}


def assistant(content):
    return {"role": "assistant", "content": content}


def gpt(value):
    return {"from": "gpt", "value": value}


HUMAN = {"from": "human", "value": "Which?"}
# One pair, however it is written.
WRITTEN = {
    "alpaca": ("alpaca", {"instruction": "Which?", "chosen": "A", "rejected": "B"}),
    "alpaca, turns": (
        "alpaca",
        {"instruction": "Which?", "chosen": [assistant("A")], "rejected": "B"},
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": [HUMAN], "chosen": gpt("A"), "rejected": gpt("B")},
    ),
    "sharegpt, lists": (
        "sharegpt",
        {"conversations": [HUMAN], "chosen": [gpt("A")], "rejected": [gpt("B")]},
    ),
    "texts": ("messages", {"prompt": "Which?", "chosen": "A", "rejected": "B"}),
    "explicit": (
        "messages",
        {"prompt": [USER], "chosen": [assistant("A")], "rejected": [assistant("B")]},
    ),
    "messages": (
        "messages",
        {"messages": [USER], "chosen": assistant("A"), "rejected": assistant("B")},
    ),
    "common part": (
        "messages",
        {"chosen": [USER, assistant("A")], "rejected": [USER, assistant("B")]},
    ),
    "json text": (
        "prompt_completion",
        {
            "prompt": json.dumps([USER]),
            "chosen": json.dumps([assistant("A")]),
            "rejected": "B",
        },
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_however_a_pair_is_written_it_is_the_same(name):
    format, record = WRITTEN[name]
    sample = PAIRS.readers[format](record, {})
    talks = [[(m["role"], m["content"]) for m in t.messages] for t in sample.items]
    assert talks == [
        [("user", "Which?"), ("assistant", answer)] for answer in ("A", "B")
    ]


def test_only_what_follows_the_common_part_is_learned():
    before = [USER, assistant("Say more."), USER]
    record = {
        "chosen": [*before, assistant("A"), USER, assistant("C")],
        "rejected": [*before, assistant("B")],
    }
    chosen, rejected = PAIRS.readers["messages"](record, {}).items
    learned = [m["content"] for m in chosen.messages if "weight" not in m]
    assert learned == ["Which?", "Which?", "A", "Which?", "C"]
    assert [m.get("weight") for m in rejected.messages] == [None, 0, None, None]
    equal = {"chosen": [USER, assistant("A")], "rejected": [USER, assistant("A")]}
    one, other = PAIRS.readers["messages"](equal, {}).items
    assert one == other and len(one.messages) == 2


@pytest.mark.parametrize(
    "format, record, message",
    [
        ("alpaca", {"instruction": "Which?", "chosen": "A"}, "'rejected' is missing"),
        (
            "messages",
            {"prompt": "Which?", "chosen": [], "rejected": "B"},
            "column 'chosen': the answer is empty",
        ),
        (
            "messages",
            {"prompt": "Which?", "chosen": [USER], "rejected": "B"},
            "begins with a turn of 'user'",
        ),
        ("messages", {"chosen": "A", "rejected": "B"}, "same prompt; give the prompt"),
        (
            "messages",
            {"chosen": [USER], "rejected": [USER]},
            "same prompt; give the prompt",
        ),
        (
            "sharegpt",
            {"conversations": [HUMAN], "chosen": gpt("A"), "rejected": 3},
            "'rejected' has to be a list",
        ),
    ],
)
def test_what_no_pair_can_be_read_from(format, record, message):
    with pytest.raises(InputError, match=message):
        PAIRS.readers[format](record, {})


def test_labels():
    record = {"instruction": "Which?", "output": "A", "kto_tag": "False"}
    fields = {"label": "kto_tag"}
    sample = LABELLED.readers["alpaca"](record, fields)
    assert (len(sample.items), sample.columns) == (1, {"label": 0.0})
    with_messages = {"messages": [USER, assistant("A")], "label": True}
    assert LABELLED.readers["messages"](with_messages, {}).columns == {"label": 1.0}
    completion = {"prompt": [USER], "completion": [assistant("A")], "label": True}
    assert LABELLED.readers["messages"](completion, {}).items == (
        LABELLED.readers["messages"](with_messages, {}).items
    )
    turns = {"conversations": [HUMAN, gpt("A")], "label": True}
    assert LABELLED.readers["sharegpt"](turns, {}).items[0].messages[-1] == assistant(
        "A"
    )
    with pytest.raises(InputError, match="'kto_tag' has to be true or false"):
        LABELLED.readers["alpaca"](record | {"kto_tag": 2}, fields)
    for said, label in ((1, 1.0), ("0", 0.0)):
        sample = LABELLED.readers["alpaca"](record | {"kto_tag": said}, fields)
        assert sample.columns == {"label": label}
    assert string(record, {}, "output") == "A"


def load(write, tokenizer, records, kind, **settings):
    train = {"path": write("d.json", records), "format": "alpaca"}
    section = DataSection.model_validate({"train": train, "max_length": 64, **settings})
    return load_train(section, tokenizer, batch_size=2, seed=0, kind=kind)


def test_equal_pairs_are_counted_after_cutting(write, tokenizer):
    pair = {"instruction": "Which?", "chosen": "A", "rejected": "B"}
    long = " ".join(f"word{n}" for n in range(80))
    cut = pair | {"chosen": f"{long} A", "rejected": f"{long} B"}
    same = pair | {"rejected": "A"}
    examples = load(write, tokenizer, [pair, cut, same], PAIRS).examples
    (source,) = examples.sources
    assert any("in 2 of 3 pairs" in line for line in source.remarks)
    assert np.all(np.diff(examples.lengths.reshape(-1, 2), axis=1) == 0)
    with pytest.raises(InputError, match="in all 1 pairs"):
        load(write, tokenizer, [same], PAIRS)


def test_labels_are_counted(write, tokenizer):
    answer = {"instruction": "Which?", "output": "A", "label": True}
    both = [answer, answer | {"label": False}, answer]
    even = load(write, tokenizer, both[:2], LABELLED).examples.sources[0]
    assert not any("are wanted" in line for line in even.remarks)
    batches = load(write, tokenizer, both, LABELLED)
    assert sorted(batches.examples.columns["label"]) == [0.0, 1.0, 1.0]
    (source,) = batches.examples.sources
    assert any("2 answers are wanted, 1 are not" in line for line in source.remarks)
    assert set(batches[0]) > {"label", "tokens"}
