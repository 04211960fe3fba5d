"""Losses and gradients that are not finite: skipped, counted, and never saved."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpeft.assembly import run
from jaxpeft.train import course


@pytest.fixture
def poison(monkeypatch):
    """poison(steps): the base weights are NaN while these steps (from 1) are taken."""
    micro_batches = run.Run.micro_batches

    def during(steps):
        weights = {}

        def poisoned(self, batch):
            if not weights:
                weights[False] = self.frozen
                weights[True] = jax.tree.map(lambda x: x * jnp.nan, self.frozen)
            self.frozen = weights[next(number) in steps]
            return micro_batches(self, batch)

        number = itertools.count(1)
        monkeypatch.setattr(run.Run, "micro_batches", poisoned)

    return during


def test_a_few_bad_steps_are_skipped_and_counted(trained, metrics, poison, tmp_path):
    poison([3, 4, 7])
    done = trained("run", **{"training.max_nonfinite_steps": 2})
    assert done.code == 0
    assert "warning: 3 steps had no finite gradient: skipped" in done.err
    training, _ = metrics(tmp_path / "run")  # null, not NaN, which is no JSON
    assert [s["step"] for s in training if s["loss"] is None] == [3, 4, 7]
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
    assert (tmp_path / "run" / "loss.png").is_file()


@pytest.mark.parametrize("steps", [range(3, 9), range(6, 9)], ids=["early", "at_end"])
def test_too_many_in_a_row_end_the_run(trained, poison, tmp_path, steps):
    poison(list(steps))
    done = trained("run", **{"training.max_nonfinite_steps": 2})
    assert done.code == 3
    assert f"error: step {steps[0] + 2}: the loss or gradient was not" in done.err
    assert "training.max_nonfinite_steps" in done.err
    assert "optimizer.learning_rate" in done.err
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_absurd_rate_ends_with_nothing_saved_that_is_not_finite(
    trained, monkeypatch, tmp_path
):
    saved = []
    save = course.Checkpoints.save

    def seen(self, step, state, extra, **options):
        saved.append(jax.device_get((state.params, state.opt_state)))
        return save(self, step, state, extra, **options)

    monkeypatch.setattr(course.Checkpoints, "save", seen)
    done = trained(
        "run",
        **{
            "optimizer.learning_rate": 1e30,
            "training.max_nonfinite_steps": 3,
            "training.save_steps": 1,
        },
    )
    assert done.code == 3
    assert "in 4 steps in a row" in done.err
    assert saved
    for leaf in jax.tree.leaves(saved):
        assert np.isfinite(leaf).all()
    assert not (tmp_path / "run" / "adapter").exists()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert any(json.loads(line)["loss"] is None for line in text.splitlines())
