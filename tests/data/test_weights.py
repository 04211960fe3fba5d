"""What records and messages count in the loss, from the file to a batch."""

import json

import numpy as np
import pytest

from jaxpeft import data
from jaxpeft.config import DataSection
from jaxpeft.errors import InputError
from jaxpeft.hf import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(asset_model):
    return load_tokenizer(asset_model)


@pytest.fixture
def loaded(tokenizer, tmp_path):
    """loaded(records, format): their examples, in the order of the file."""

    def load(records, format, **settings):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        source = {"path": str(path), "format": format, **settings}
        section = DataSection.model_validate({"train": source, "shuffle": False})
        return data.load_train(section, tokenizer, batch_size=len(records), seed=0)

    return load


def alpaca(**more):
    return {"instruction": "Say it.", "output": "So it is.", **more}


def test_a_record_s_weight_is_that_of_its_tokens(loaded):
    batches = loaded([alpaca(weight=0.5), alpaca(), alpaca(weight=0)], "alpaca")
    batch = batches[0]
    seen = batch["supervised"]
    assert seen[0].sum() == seen[1].sum() > 0 and not seen[2].any()
    assert set(batch["weights"][0][seen[0]]) == {0.5}
    assert set(batch["weights"][1][seen[1]]) == {1.0}
    assert not batch["weights"][2].any() and not batch["weights"][~seen].any()


def test_a_message_s_loss_weight_is_that_of_its_tokens_alone(loaded, tokenizer):
    def talk(*weights):
        turns = []
        for weight in weights:
            turns.append({"role": "user", "content": "Go on."})
            turn = {"role": "assistant", "content": "Yes."}
            turns.append(turn if weight is None else turn | {"loss_weight": weight})
        return {"messages": turns, "weight": 2}

    batch = loaded([talk(0.25, None), talk(None, None), talk(0, 1.5)], "messages")[0]
    weights = batch["weights"]
    one = int((weights[1] > 0).sum()) // 2
    for row, expected in ((0, [0.5] * one + [2.0] * one), (2, [3.0] * one)):
        np.testing.assert_array_equal(weights[row][weights[row] > 0], expected)


def test_without_any_there_is_no_such_array(loaded):
    assert "weights" not in loaded([alpaca(), alpaca(weight=1)], "alpaca")[0]


def test_the_column_may_have_another_name_or_stay_unread(loaded):
    records = [alpaca(weight="heavy", share="0.5"), alpaca(share=1, weight="light")]
    batch = loaded(records, "alpaca", fields={"weight": "share"})[0]
    assert set(batch["weights"][0]) == {0.0, 0.5}
    assert "weights" not in loaded(records, "alpaca", fields={"weight": None})[0]


@pytest.mark.parametrize("weight", [-1, "heavy", True, [1], float("inf")])
def test_a_weight_is_a_number_from_0(weight, loaded):
    with pytest.raises(InputError, match="train.jsonl:2.*number from"):
        loaded([alpaca(), alpaca(weight=weight)], "alpaca")
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss_weight": weight},
    ]
    with pytest.raises(InputError, match="turn 2.*loss_weight"):
        loaded([{"messages": turns}], "messages")
