"""The log of training steps, also of those that have nothing to learn."""

import itertools
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from jaxpeft.rundir.metrics import MetricsFile, read_metrics
from jaxpeft.train import hooks, utilisation
from jaxpeft.train.loop import Moment
from jaxpeft.train.progress import BarProgress, PlainProgress
from jaxpeft.train.standing import Standing

METRICS = {"update_norm": 0.1, "skipped_in_row": 0.0}
SOUND = METRICS | {"loss": 2.5, "grad_norm": 1.0, "weight": 7.0}
EMPTY = METRICS | {"loss": 0.0, "grad_norm": 0.0, "weight": 0.0}
BROKEN = METRICS | {"loss": np.nan, "grad_norm": np.nan, "weight": 7.0}


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Steps of one run, given as their metrics -> the lines of its metrics.jsonl."""
    monkeypatch.setattr(hooks, "rate", lambda *_: 1e-3)
    monkeypatch.setattr(hooks, "mfu_per_speed", lambda run: None)

    def make(*steps, display=PlainProgress):
        run: Any = SimpleNamespace(batches=SimpleNamespace(epoch=lambda step: 0.0))
        file = MetricsFile(tmp_path / "metrics.jsonl", None)
        standing = Standing(run, file, cast(Any, None))
        program: Any = SimpleNamespace(state=lambda number: None)
        progress = display(len(steps), 0)
        hook = hooks.Log(program, [standing], progress, every=1, last=len(steps))
        for number, metrics in enumerate(steps, 1):
            hook(Moment(number, {k: np.float32(v) for k, v in metrics.items()}, [9]))
        progress.close()
        file.close()
        text = (tmp_path / "metrics.jsonl").read_text()
        return [json.loads(line)["loss"] for line in text.splitlines()]

    return make


def test_a_step_with_nothing_to_learn_has_no_loss_and_says_so_once(
    log, tmp_path, capsys
):
    assert log(SOUND, EMPTY, EMPTY, BROKEN) == [2.5, None, None, None]
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in said if "tok/s" in line] == [
        *("loss 2.5000", "loss none", "loss none", "loss nan")
    ]
    (told,) = [line for line in said if "no token" in line]
    assert told.startswith("step 2 has no loss") and "raise data.max_length" in told
    training, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert np.isnan([line["loss"] for line in training]).tolist() == [False] + 3 * [
        True
    ]


def test_a_bar_shows_it_too(log, capsys):
    assert log(EMPTY, display=BarProgress) == [None]
    assert "loss none" in capsys.readouterr().out


def test_the_mfu_is_that_of_the_speed_beside_it(log, tmp_path, capsys, monkeypatch):
    # 100 parameters of which 10 train: 420 operations a token, of 4200 a second.
    share = utilisation.per_token(100, 10, 0) / 4200
    monkeypatch.setattr(hooks, "mfu_per_speed", lambda run: share)
    seconds = itertools.count(0, 2)  # that pass from each look at the clock to the next
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(hooks, "time", clock)
    log(SOUND, SOUND)
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["tokens_per_second"] for line in lines] == [4.5, 4.5]  # 9 in 2 s
    assert [line["mfu"] for line in lines] == [0.45, 0.45]
    said = [line for line in capsys.readouterr().out.splitlines() if "tok/s" in line]
    assert len(said) == 2 and all("tok/s  MFU 45%  " in line for line in said)


def test_without_a_known_peak_nothing_is_said_of_it(log, tmp_path, capsys):
    log(SOUND)
    assert "mfu" not in json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "MFU" not in capsys.readouterr().out
