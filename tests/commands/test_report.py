"""What a run says of itself beside its metrics, also when it was stopped."""

import json
import os
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxpeft.rundir import sinks
from jaxpeft.train import hooks


@pytest.fixture
def stopping(monkeypatch):
    """A run is asked to stop after step 2, until the test takes it back."""
    log = hooks.Log.__call__

    def logged(self, moment):
        log(self, moment)
        if moment.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(hooks.Log, "__call__", logged)
    return monkeypatch


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_stopped_run_has_a_page_and_keeps_its_samples(
    stopping, trained, command, files, metrics, tmp_path
):
    run, changes = tmp_path / "run", {"data.eval": {"path": files["eval"]}}
    changes |= {"training.samples": 2, "training.max_steps": 4}
    changes |= {"training.report_to": "tensorboard"}
    assert trained("run", **changes).code == 75
    before = read(run / "samples.json")
    assert len(before) == 2
    assert all(row["before"] and row["after"] is None for row in before)
    done = command("report", "--run", str(run))
    wrote = f"wrote {run / 'report.html'} and loss.png\n"
    assert (done.code, done.out) == (0, wrote)
    assert (run / "loss.png").is_file()
    assert "not finished: step 2 logged so far" in (run / "report.html").read_text()
    assert not (run / "summary.json").exists()

    stopping.undo()
    done = trained("run", **changes)
    assert done.code == 0
    assert f"report:  {run / 'report.html'}" in done.out
    after = read(run / "samples.json")
    assert [{**row, "after": None} for row in after] == before
    for row in after:
        assert " ".join(row["after"].split())[:300] in done.out
    summary = read(run / "summary.json")
    assert (summary["steps"], summary["best_step"]) == (4, 4)
    assert not summary["stopped_early"]
    training, evaluations = metrics(run)
    seen = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, lines in (("train/loss", training), ("eval/loss", evaluations)):
        sent = [(one.step, pytest.approx(one.value)) for one in seen.Scalars(name)]
        key = name.replace("train/", "").replace("/", "_")
        assert [(line["step"], line[key]) for line in lines] == sent


def test_a_sink_that_is_not_installed_is_named_before_anything(
    trained, monkeypatch, tmp_path
):
    monkeypatch.setattr(sinks, "_installed", lambda name: False)
    done = trained("run", **{"training.report_to": ["wandb"], "model.path": "absent"})
    assert done.code == 2
    assert "pip install 'jaxpeft[wandb]'" in done.err
    assert not (tmp_path / "run").exists()


def test_the_summary_agrees_with_what_the_run_said(finished, metrics):
    summary = read(finished / "summary.json")
    training, evaluations = metrics(finished)
    assert summary["eval_loss_before"] == evaluations[0]["eval_loss"]
    assert summary["eval_loss_after"] == evaluations[-1]["eval_loss"]
    assert summary["tokens"] == training[-1]["tokens"]
    spent = summary["tokens"] / summary["tokens_per_second"]
    assert 0 < spent < summary["seconds"]
    # r = 4: q and o 32 x 32, k and v 32 x 16, gate, up and down 32 x 40; two layers.
    sizes = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 40)
    assert summary["trainable"] == 2 * 4 * sizes
    assert (
        summary["parameters"] - summary["trainable"]
        == 4096 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 40 + 2 * 32) + 32
    )


def test_a_directory_that_is_not_there_is_named(command, tmp_path):
    done = command("report", "--run", str(tmp_path / "none"))
    assert done.code == 2
    assert "is no directory; name the output_dir of a run or sweep" in done.err
