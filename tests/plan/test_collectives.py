"""The collectives of compiled programs: read from text, and those of real steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpeft.plan.collectives import Collective, collectives, totals

ROOT = Path(__file__).parents[2]
GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7}}"
TEXT = f"""HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

%inner (x: f32[8]) -> f32[8] {{
  %ag = bf16[16,8]{{1,0}} all-gather(%x), channel_id=1, replica_groups=[4,2]<=[8], dimensions={{0}}, metadata={{op_name="jit(f)/dot" id=7}}
  ROOT %r = f32[8] copy(%x)
}}

%body (x: f32[8]) -> f32[8] {{
  %w = f32[8] while(%x), condition=%cond.1, body=%inner, backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %rs = f32[2,4]{{1,0}} reduce-scatter(%w), {GROUPS}, to_apply=%add
}}

%cond.1 (x: f32[8]) -> pred[] {{
  ROOT %p = pred[] constant(true)
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %w = (f32[8], s32[]) while(%x), condition=%cond.1, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %ar = (f32[8]{{0}}, f32[2]{{0}}) all-reduce(%w, %x), replica_groups=mesh['a'=4,'b'=1,'c'=2] {{'a','c'}}, to_apply=%add
  %t = f32[6] all-gather(%x), replica_groups=mesh['a'=3,'b'=8] {{'a'}}
  %s = (bf16[4], bf16[16]) all-gather-start(%x), {GROUPS}
  %d = bf16[16] all-gather-done(%s)
  ROOT %cp = f32[8] collective-permute(%w), source_target_pairs={{{{0,1}},{{1,0}}}}
}}
"""  # noqa: E501


def test_loops_groups_and_what_only_starts_are_read():
    found = collectives(TEXT)
    assert sorted(found) == [
        Collective("all-gather", 24, (0, 8, 16), 1, ""),
        Collective("all-gather", 32, (0, 1, 2, 3), 1, ""),
        Collective("all-gather", 256, (0, 1), 15, "jit(f)/dot"),
        Collective("all-reduce", 40, tuple(range(8)), 1, ""),
        Collective("collective-permute", 32, (0, 1), 1, ""),
        Collective("reduce-scatter", 128, (0, 1, 2, 3), 5, ""),
    ]
    assert totals(found) == {
        "all-gather": 32 * 3 / 4 + 24 * 2 / 3 + 256 * 15 / 2,
        "all-reduce": 2 * 40 * 7 / 8,
        "collective-permute": 32,
        "reduce-scatter": 128 * 5 * 3 / 4,
    }


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("{{1,3},{5,7}}", (1, 3)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
    ],
)
def test_who_takes_part(groups, first):
    [one] = [x for x in collectives(TEXT.replace("[4,2]<=[8]", groups)) if x.times > 9]
    assert one.group == first


def test_groups_in_a_form_that_is_not_known_are_no_guess():
    text = TEXT.replace("replica_groups=[4,2]<=[8]", "replica_groups=new")
    with pytest.raises(ValueError, match="a new way"):
        collectives(text)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The figures of scripts/mesh_check.py for LoRA with AdamW."""
    path = tmp_path_factory.mktemp("mesh") / "steps.json"
    command = [sys.executable, "scripts/mesh_check.py", "--json", str(path)]
    meshes = ["data 8", "fsdp 8", "tensor 8", "data 2, fsdp 2, tensor 2"]
    done = subprocess.run(
        [*command, "--only", "lora", "--steps", "5", "--meshes", *meshes],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name.split("; ")[1]: x for name, x in json.loads(path.read_text()).items()}


def of_step(steps, mesh):
    return [Collective(**one) for one in steps[mesh]["collectives"]]


@pytest.mark.slow
def test_losses_are_those_of_one_device(steps):
    assert len(steps) == 4
    assert max(found["apart"] for found in steps.values()) <= 1e-5


@pytest.mark.slow
def test_data_parallelism_moves_the_adapters_gradients_alone(steps):
    found = of_step(steps, "data 8")
    assert {one.kind for one in found} == {"all-reduce"}
    moved = sum(one.nbytes * one.times for one in found)
    adapters = steps["data 8"]["adapters"]
    assert 0.99 * adapters <= moved <= 1.01 * adapters


@pytest.mark.slow
def test_fsdp_gathers_the_weights_a_layer_at_a_time(steps):
    found = of_step(steps, "fsdp 8")
    gathers = [one for one in found if one.kind == "all-gather"]
    # The largest kernel of a layer, and the head, which is gathered once for the loss.
    kernel, head = 4 * 2048 * 8192, 4 * 2048 * 128_256
    assert max(one.nbytes for one in gathers if one.times > 1) == kernel
    assert [one.nbytes for one in gathers if one.nbytes > kernel] == [head]
    # Nothing but the forward and the backward pass gathers: no optimizer state.
    assert all("jvp(" in one.name for one in gathers)


@pytest.mark.slow
def test_what_a_device_keeps_falls_with_the_devices(steps):
    # Half of each adapter has no axis that fsdp splits, and its moments neither.
    whole = steps["data 8"]
    replicated = whole["adapters"] + whole["optimizer"]
    assert steps["fsdp 8"]["weights"] <= 1.1 * whole["weights"] / 8
    assert steps["fsdp 8"]["kept"] <= 1.1 * whole["kept"] / 8 + replicated
    assert steps["tensor 8"]["weights"] <= 1.1 * whole["weights"] / 8
