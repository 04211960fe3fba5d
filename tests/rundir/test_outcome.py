"""Samples and summary of a run from metrics made by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.rundir import outcome

LINES = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.5, "tokens": 100, "tokens_per_second": 50.0},
    {"step": 2, "loss": None, "tokens": 400, "tokens_per_second": 100.0},
    {"step": 2, "eval_loss": 2.0},
    {"step": 3, "loss": 2.0, "tokens": 500, "tokens_per_second": 20.0},
    {"step": 3, "eval_loss": None},
]


def kept(directory, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    summary = outcome.keep_summary(
        directory,
        steps=3,
        seconds=12.34567,
        parameters=1000,
        trainable=10,
        stopped_early=False,
    )
    assert json.loads((directory / "summary.json").read_text()) == summary
    return summary


def test_the_summary_is_that_of_the_metrics(tmp_path):
    summary = kept(tmp_path, LINES)
    assert summary["tokens_per_second"] == 50.0  # 500 tokens in 2 + 3 + 5 seconds
    assert summary["eval_loss_before"] == 3.0
    assert summary["eval_loss_after"] is None
    assert (summary["best_step"], summary["best_eval_loss"]) == (2, 2.0)
    assert (summary["train_loss"], summary["tokens"]) == (2.0, 500)
    assert summary["seconds"] == 12.346


@pytest.mark.parametrize("lines", [[], LINES[1:2]], ids=["nothing", "no evaluation"])
def test_what_there_was_none_of_is_null(tmp_path, lines):
    summary = kept(tmp_path, lines)
    for key in ("eval_loss_before", "eval_loss_after", "best_eval_loss", "best_step"):
        assert summary[key] is None
    assert summary["tokens_per_second"] == (50.0 if lines else None)


def test_a_last_step_with_nothing_to_learn_has_no_loss(tmp_path):
    assert kept(tmp_path, LINES[:3])["train_loss"] is None


def test_the_peak_holds_what_is_in_memory():
    array = jax.block_until_ready(jnp.ones((64, 2**20), jnp.float32))
    peak, whose = outcome.peak_memory()
    assert peak >= array.nbytes
    assert whose == ("process" if jax.default_backend() == "cpu" else "device")


def test_a_device_that_counts_is_asked(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.memory_stats = lambda: {"peak_bytes_in_use": peak}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(7)])
    assert outcome.peak_memory() == (7, "device")


def test_answers_before_stay_beside_those_after(tmp_path):
    outcome.keep_before(tmp_path, [("a", "ra", "zz"), ("b", "rb", "yy")])
    outcome.keep_after(tmp_path, [("b", "rb", "B"), ("c", "rc", "C")])
    assert json.loads((tmp_path / "samples.json").read_text()) == [
        {"prompt": "b", "reference": "rb", "before": "yy", "after": "B"},
        {"prompt": "c", "reference": "rc", "before": None, "after": "C"},
    ]
