"""A configuration beside its objective: data sets by name, and rows of a batch."""

import json

import pytest

from jaxpeft.assembly import configuration
from jaxpeft.errors import InputError
from jaxpeft.objectives import OBJECTIVES

PAIR = {"columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}
INFO = {
    "answers": {"columns": {"prompt": "q", "response": "a"}},
    "pairs": {"ranking": True, **PAIR},
    "labelled": {"columns": {"prompt": "q", "response": "a", "kto_tag": "wanted"}},
}
# What each learns of, by what its records are in the documentation.
LEARNS = {"sft": "answers", "classification": "answers", "kto": "labelled"}


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_an_objective_finds_its_own_kind_of_data_sets(objective, tmp_path):
    for name, entry in INFO.items():
        entry["file_name"] = f"{name}.jsonl"
        (tmp_path / f"{name}.jsonl").write_text("{}")
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    right = LEARNS.get(objective, "pairs")
    for name in INFO:
        cfg = configuration.open_config(
            "jaxpeft:quickstart.yaml",
            [
                f"objective={{name: {objective}}}",
                f"data.train={{path: {tmp_path}, name: {name}}}",
                "data.eval=null",
                *("training.eval_steps=null", "training.samples=0"),
            ],
        )
        if name != right:
            with pytest.raises(InputError, match=rf"dataset_info.json, {name}: "):
                configuration.named(cfg)
            continue
        (source,) = configuration.named(cfg).data.train
        assert source.path == str(tmp_path / f"{name}.jsonl") and source.name is None
        assert source.fields is not None and source.fields["instruction"] == "q"
        # What was found is what the run writes down, and is found again as it is.
        again = cfg.model_copy(update={"data": configuration.named(cfg).data})
        assert configuration.named(again) == again


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["training.batch_size=1"], "training.batch_size"),
        (
            ["training.batch_size=4", "training.gradient_accumulation_steps=4"],
            "training.batch_size",
        ),
        (["data.eval_batch_size=1"], "data.eval_batch_size"),
    ],
)
def test_an_answer_that_has_none_to_be_weighed_with_is_refused(changes, key):
    own = ["objective={name: kto}", "training.samples=0", *changes]
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", own)
    with pytest.raises(InputError, match=f"^{key}: a micro-batch has 1 row") as error:
        configuration.objective(cfg)
    assert len(error.value.problems) == 1
