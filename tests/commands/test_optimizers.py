"""Optimizers and schedules that change what a run does, from command to files."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

EVERY = {"training.eval_steps": 2, "training.save_steps": 4}


@pytest.fixture
def changes(files):
    return {**EVERY, "data.eval": {"path": files["eval"]}}


@pytest.fixture
def resumed(trained, tmp_path):
    """resumed(**changes): runs, forgets what came after step 4, and goes on from there.

    Asserts that both ends are the same; returns the finished run's folder.
    """

    def run(**changes):
        straight = trained("run", **changes)
        assert straight.code == 0, straight.err
        shutil.copytree(tmp_path / "run", tmp_path / "again")
        shutil.rmtree(tmp_path / "again" / "checkpoints" / "8")
        again = trained("again", **changes)
        assert again.code == 0, again.err
        assert "continuing after step 4" in again.out
        assert again.digest == straight.digest
        return tmp_path / "run"

    return run


def evaluated(command, run):
    done = command("evaluate", "--run", str(run), "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["eval_loss"]


@pytest.mark.parametrize(
    "name",
    [
        *("adamw_8bit", "adalomo"),
        pytest.param("optax.lamb", marks=pytest.mark.slow),
        pytest.param("lora_rite", marks=pytest.mark.slow),
        pytest.param("lora_muon", marks=pytest.mark.slow),
    ],
)
def test_a_state_split_over_devices_takes_the_same_steps(
    name, command, settings, changes, metrics, on_eight, tmp_path
):
    full = {"adapter": {"method": "full"}} if name == "adalomo" else {}
    optimizer = {"name": name, "learning_rate": 1e-2}
    if "." in name:
        optimizer["quantize_state"] = True
    if name == "adamw_8bit":
        optimizer["min_quantized_size"] = 256
    losses = {}
    for mesh in ({"fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        count = math.prod(mesh.values())
        output, path = tmp_path / f"on-{count}", tmp_path / f"on-{count}.yaml"
        own = {"mesh": mesh, "optimizer": optimizer, "output_dir": str(output)}
        steps = {"training.max_steps": 4}
        path.write_text(yaml.safe_dump(settings(**changes, **full, **own, **steps)))
        if count == 1:
            done = command("train", "--config", str(path))
            assert done.code == 0, done.err
        else:
            on_eight(path)
        losses[count] = [line["loss"] for line in metrics(output)[0]]
    assert len(losses[8]) == 4
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)


def test_full_fine_tuning_writes_a_whole_model(
    resumed, changes, command, metrics, tmp_path
):
    run = resumed(
        **changes,
        **{
            "adapter": {"method": "full"},
            "optimizer": {"name": "adalomo", "learning_rate": 1e-2},
        },
    )
    losses = [line["eval_loss"] for line in metrics(run)[1]]
    assert losses[-1] < 0.95 * losses[0]
    assert not (run / "adapter").exists()
    assert evaluated(command, run) == pytest.approx(losses[-1], abs=1e-5)

    tokens = torch.tensor([[5, 17, 300, 4]])
    merged = tmp_path / "merged"
    done = command("export", "--run", str(run), "--to", "merged", "--out", str(merged))
    assert done.code == 0, done.err
    logits = [
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)(tokens).logits
        for p in (run / "model", merged)
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    out = str(tmp_path / "peft")
    done = command("export", "--run", str(run), "--to", "peft", "--out", out)
    assert done.code == 2 and "use --to merged" in done.err
    asked = ["--prompt", "hello", "--max-new-tokens", "4"]
    done = command("generate", "--run", str(run), *asked)
    assert done.code == 0, done.err


def test_averaged_parameters_are_evaluated_and_kept(resumed, changes, command, metrics):
    name = {"name": "schedule_free_adamw", "learning_rate": 1e-2}
    run = resumed(**changes, optimizer=name)
    losses = [line["eval_loss"] for line in metrics(run)[1]]
    assert losses[-1] < losses[0]
    # The adapter that was written is the one that was evaluated.
    assert evaluated(command, run) == pytest.approx(losses[-1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora_rite", "lora_muon", "riemannian_adamw"])
def test_those_made_for_lora_learn_and_resume(name, resumed, changes, metrics):
    rate = {"lora_rite": 0.02, "lora_muon": 0.1, "riemannian_adamw": 1e-2}[name]
    run = resumed(
        **changes,
        **{
            "optimizer": {"name": name, "learning_rate": rate, "max_grad_norm": None},
            "model.quantization": "int8",
            "adapter.use_rslora": True,
            "training.gradient_accumulation_steps": 2,
        },
    )
    losses = [line["eval_loss"] for line in metrics(run)[1]]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.slow
def test_one_of_optax_finds_its_rate_by_the_loss_and_resumes(resumed, changes, metrics):
    run = resumed(**changes, optimizer={"name": "momo", "quantize_state": True})
    losses = [line["eval_loss"] for line in metrics(run)[1]]
    assert losses[-1] < 0.99 * losses[0]


def test_the_evaluation_loss_lowers_the_rate_and_a_resumed_run_knows(
    resumed, changes, metrics
):
    # No evaluation is better by so much: each one but the first halves the rate.
    schedule = {
        "name": "reduce_lr_on_plateau",
        "patience": 0,
        "factor": 0.5,
        "threshold": 0.9,
    }
    run = resumed(**changes, schedule=schedule)
    rates = [line["learning_rate"] for line in metrics(run)[0]]
    expected = 1e-2 * np.array([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_group_of_parameters_has_its_own_rate(trained, tmp_path):
    groups = [{"pattern": r".*q_proj.*", "learning_rate_factor": 0.0}]
    done = trained("run", **{"optimizer.groups": groups, "training.max_steps": 2})
    assert done.code == 0, done.err
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    b = {name: value for name, value in adapter.items() if "lora_B" in name}
    assert {name for name, value in b.items() if np.any(value)} == {
        name for name in b if "up_proj" in name
    }
