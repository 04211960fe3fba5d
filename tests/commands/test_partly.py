"""Runs that train a part of the model's own weights, from command to model."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from .conftest import write_config

LAST = {"adapter": {"method": "full", "trainable_layers": 1}}
RUN = {
    **LAST,
    "optimizer.learning_rate": 1e-3,
    "training.max_steps": 6,
    "training.save_steps": 3,
}


@pytest.fixture
def ended(trained, files, tmp_path):
    """A run of the last layer, in tmp_path / "run"."""
    done = trained("run", **RUN, **{"data.eval": {"path": files["eval"]}})
    assert done.code == 0, done.err
    return done


def test_the_last_layer_alone(ended, command, trained, files, tiny, tmp_path):
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    base = load_file(tiny / "model.safetensors")
    assert weights.keys() == base.keys()
    moved = {k for k in base if not np.array_equal(weights[k], base[k])}
    own = {k for k in base if k.startswith("model.layers.1.")}
    assert moved == own
    count = sum(base[k].size for k in own)
    assert f"{count:,} ({count / sum(w.size for w in base.values()):.2%})" in ended.out
    assert "trained weights" in ended.out

    # What was evaluated last is what the written model gives.
    losses = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(s) for s in losses if "eval_loss" in s][-1]["eval_loss"]
    found = command("evaluate", "--run", str(tmp_path / "run"))
    assert found.code == 0
    assert float(found.out.split()[1]) == pytest.approx(last, abs=1e-4)
    to = ["--to", "merged", "--out", str(tmp_path / "merged")]
    assert command("export", "--run", str(tmp_path / "run"), *to).code == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(np.array_equal(merged[k], weights[k]) for k in weights)

    # Continued from its middle it ends as it did.
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.rmtree(run / "model")
    again = trained("run", **RUN, **{"data.eval": {"path": files["eval"]}})
    assert again.code == 0 and "continuing after step 3" in again.out
    assert again.digest == ended.digest
    continued = load_file(run / "model" / "model.safetensors")
    assert all(np.array_equal(continued[k], weights[k]) for k in weights)


def test_a_plan_counts_what_trains(command, trained, settings, tmp_path):
    def planned(*arguments, **changes):
        path = write_config(tmp_path / "plan.yaml", settings(**changes))
        given = ["--config", str(path), "output_dir=nowhere", "--json", *arguments]
        done = command("plan", *given)
        assert done.code == 0, done.err
        return json.loads(done.out)

    whole = planned(**{"adapter": {"method": "full"}})
    part = planned(**LAST)
    assert part["parameters"] == whole["parameters"] == whole["trainable"]
    layers = part["trainable"] * 2
    assert whole["parameters"] - layers == 4096 * 32 + 32  # the embedding, a norm
    assert part["adapters"] == 4 * part["trainable"]
    assert part["optimizer"] <= 8 * part["trainable"] + 16
    assert 0 < part["activations"] == whole["activations"] // 2
    many = planned("--devices", "8", mesh={"data": 1, "fsdp": 8}, **eight(LAST))
    assert many["optimizer"] < 1.2 * part["optimizer"] / 8


def eight(changes):
    return {**changes, "training.batch_size": 8}


def test_layer_by_layer_updates_need_all_layers(trained):
    adalomo = {**LAST, "optimizer": {"name": "adalomo"}, "training.max_steps": 1}
    done = trained("by itself", **adalomo)
    assert done.code == 0 and "updates after the whole backward pass" in done.out
    done = trained("asked for", **adalomo, **{"training.fused_backward": True})
    assert done.code == 2 and "where a part of the model trains" in done.err


@pytest.mark.parametrize(
    "adapter, said",
    [
        ({"bias": "all"}, "adapter.bias: found 'all' with method full"),
        ({"trainable_layers": 3}, "adapter.trainable_layers: found 3; the model has 2"),
        ({"target_modules": ["lm_head"]}, "'lm_head' means no module"),
        ({"trainable_layers": "1"}, "adapter.trainable_layers"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(adapter, said, trained):
    done = trained("run", adapter={"method": "full", **adapter})
    assert done.code == 2 and said in done.err, done.err
