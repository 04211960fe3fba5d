"""What objectives that weigh answers refuse of the data and of the keys."""

import json

import pytest
import transformers

from jaxpeft import config, objectives
from jaxpeft.config.data import DataSection
from jaxpeft.errors import InputError

PAIR = {"instruction": "Which?", "chosen": "A", "rejected": "B"}
WANTED = {"instruction": "Which?", "output": "A", "label": True}


@pytest.fixture
def load(tmp_path, asset_model):
    """load(objective, records, **settings of the section `data`)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(asset_model)

    def read(objective, records, **settings):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(records))
        train = {"path": str(path), "format": "alpaca"}
        section = DataSection.model_validate({"train": train, **settings})
        return objective.load_train(section, tokenizer, batch_size=2, seed=0)

    return read


def test_kto_needs_both_labels(load):
    kto = objectives.kto()
    with pytest.raises(InputError, match="the label of all 2 answers is true"):
        load(kto, [WANTED, WANTED])
    both = load(kto, [WANTED, WANTED | {"label": False}])
    assert sorted(both[0]["label"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    "records, settings, message",
    [
        ([{"instruction": "Which?", "chosen": "A"}], {}, "'rejected' is missing"),
        ([PAIR], {"train_on": "all"}, "data.train_on: found all"),
        ([PAIR], {"packing": True}, "data.packing: found true"),
    ],
)
def test_pairs_that_cannot_be_weighed(load, records, settings, message):
    with pytest.raises(InputError, match=message):
        load(objectives.dpo(), records, **settings)


def test_a_key_of_another_objective():
    table = objectives.OBJECTIVES
    (problem,) = config.check_call("objective", "orpo", table, {"gamma": 1.0})
    assert problem.startswith("objective.gamma: found 1.0") and "'simpo'" in problem
    (problem,) = config.check_call("objective", "dpo", table, {"continues": True})
    assert "set by the run itself" in problem
