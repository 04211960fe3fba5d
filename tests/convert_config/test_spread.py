"""DeepSpeed's files become the mesh by what they say, or else by their own name."""

import json

import pytest

from jaxpeft.convert_config.llamafactory import from_llamafactory

OFFLOAD = "deepspeed: offload"
NONE, CPU = {"device": "none"}, {"device": "cpu"}
# What DeepSpeed is told: whether weights are split here, and what is listed.
CONTENTS = [
    ({"train_batch_size": "auto"}, False, []),
    ({"zero_optimization": {"stage": 0}}, False, []),
    ({"zero_optimization": {"stage": 2}}, True, []),
    ({"zero_optimization": {"stage": 3, "offload_param": NONE}}, True, []),
    ({"zero_optimization": {"stage": 3, "offload_param": CPU}}, True, [OFFLOAD]),
    ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, True, [OFFLOAD]),
    ({"zero_optimization": {"stage": "auto"}}, False, ["deepspeed"]),
]
NAMES = [
    ("examples/deepspeed/ds_z0_config.json", False, []),
    ("examples/deepspeed/ds_z2_config.json", True, []),
    ("examples/deepspeed/ds_z3_offload_config.json", True, [OFFLOAD]),
    ("zero2.json", True, []),
    ("zero_stage_3.json", True, []),
    ("zero1/ds_config.json", False, ["deepspeed"]),
    ("ds_config_zero10.json", False, ["deepspeed"]),
    ("resize2.json", False, ["deepspeed"]),
]


def check(deepspeed, split, missing):
    keys = {"model_name_or_path": "org/model", "dataset": "mine"}
    draft = from_llamafactory(keys | {"deepspeed": deepspeed})
    mesh = {"mesh.data": 1, "mesh.fsdp": -1} if split else {}
    assert {k: v for k, v in draft.settings.items() if "mesh." in k} == mesh
    assert [key for key in draft.missing if "deepspeed" in key] == missing
    idle = any("deepspeed" in keys for keys in draft.idle.values())
    assert idle == (not split and "deepspeed" not in missing)


@pytest.mark.parametrize(("content", "split", "missing"), CONTENTS, ids=str)
def test_a_file_that_is_there_decides_by_its_content(content, split, missing, tmp_path):
    path = tmp_path / "zero1" / "ds_z1_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    check(str(path), split, missing)
    check(content, split, missing)


@pytest.mark.parametrize(("name", "split", "missing"), NAMES)
def test_of_a_file_that_is_elsewhere_the_name_decides(name, split, missing):
    check(name, split, missing)
