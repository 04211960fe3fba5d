"""Runs made to overfit: when they end, and which of their steps is kept."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

# Eight examples, learned by heart within a few steps.
OVERFIT = {
    "adapter": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "optimizer.learning_rate": 2e-2,
    "training.max_steps": 40,
    "training.eval_steps": 2,
    "training.save_steps": 2,
    "training.save_total_limit": None,
    "training.early_stopping_patience": 4,
}


@pytest.fixture(scope="module")
def overfit(files):
    train = {"path": files["train"], "max_samples": 8}
    return {**OVERFIT, "data.train": train, "data.eval": {"path": files["eval"]}}


def test_an_overfit_run_stops_and_writes_its_best_step(
    trained, overfit, metrics, command, tmp_path
):
    done = trained("run", **overfit)
    assert done.code == 0, done.err
    run = tmp_path / "run"
    training, evaluations = metrics(run)
    losses = [line["eval_loss"] for line in evaluations[1:]]  # without step 0
    best = int(np.argmin(losses))
    step = evaluations[1:][best]["step"]
    # It did overfit: the evaluation got worse while training went on getting better.
    falling = [line["loss"] for line in training[step:]]
    assert losses[-1] > losses[best] and falling[-1] < falling[0]
    assert len(losses) == best + 1 + 4 < 20
    assert f"lowest evaluation loss: {losses[best]:.4f} after step {step}" in done.out

    written = command("evaluate", "--run", str(run), "--json")
    found = json.loads(written.out)["eval_loss"]
    assert found == pytest.approx(losses[best], abs=1e-5)

    # Cut off in the middle of the patience count, it ends where it ended.
    again = tmp_path / "again"
    shutil.copytree(run, again)
    last, middle = evaluations[-1]["step"], step + 4
    for folder in (again / "checkpoints").iterdir():
        if int(folder.name) > middle:
            shutil.rmtree(folder)
    assert middle < last
    interrupted = trained("again", **overfit)
    assert interrupted.code == 0, interrupted.err
    assert f"continuing after step {middle}" in interrupted.out
    assert interrupted.digest == done.digest
    assert metrics(again)[1] == evaluations
    adapters = [
        load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (run, again)
    ]
    for name, value in adapters[0].items():
        np.testing.assert_array_equal(adapters[1][name], value)

    # Once more, it finds itself at its end.
    assert trained("again", **overfit).digest == done.digest


def test_a_threshold_ends_it_sooner_and_the_last_step_can_be_kept(
    trained, overfit, metrics, command, tmp_path
):
    changes = {
        "training.early_stopping_threshold": 100.0,
        "training.load_best_model_at_end": False,
    }
    done = trained("run", **{**overfit, **changes})
    assert done.code == 0, done.err
    evaluations = metrics(tmp_path / "run")[1]
    # The first one counts as an improvement on nothing.
    assert [line["step"] for line in evaluations] == [0, 2, 4, 6, 8, 10]
    assert "stopped early after step 10: 4 evaluations without an improvement by" in (
        done.out
    )
    written = command("evaluate", "--run", str(tmp_path / "run"), "--json")
    found = json.loads(written.out)["eval_loss"]
    assert found == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-5)


def test_a_lost_best_checkpoint_is_told(trained, overfit, metrics, tmp_path):
    overfit = {**overfit, "training.save_total_limit": 1, "training.save_steps": 5}
    assert trained("run", **overfit).code == 0
    evaluations = metrics(tmp_path / "run")[1]
    best = min(evaluations[1:], key=lambda line: line["eval_loss"])["step"]
    checkpoints = tmp_path / "run" / "checkpoints"
    # A limit of one: the newest, and the best beside it.
    kept = {int(folder.name) for folder in checkpoints.iterdir()}
    assert kept == {best, evaluations[-1]["step"]}
    shutil.rmtree(checkpoints / str(best))
    done = trained("run", **overfit)
    assert done.code == 0
    assert f"{best} cannot be used: it is gone" in done.err
    assert "the parameters of the last step are written in its place" in done.err


def test_the_best_needs_evaluations(trained):
    done = trained("run", **{"training.load_best_model_at_end": True})
    assert done.code == 2
    assert "training.load_best_model_at_end: found true; needs evaluation" in done.err
