"""Directories of runs and sweeps made by hand, with what is hard to show in them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><script>window.hit = 1</script><b>Köln</b> “東京” & \"'🙂"
RATES = (1e-5, 1e-4, 1e-3)


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run(name, steps=, every=, summary=): a run's directory under tmp_path."""

    def make(
        name: str, steps: int = 40, every: int | None = 10, summary: bool = True
    ) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: 1\n# {HOSTILE}\n", encoding="utf-8")
        lines = [line for step in range(steps + 1) for line in _lines(step, every)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "metrics.jsonl").write_text(text)
        if summary:
            _write(run / "summary.json", _summary(steps))
            sample = {"reference": "Rain.", "before": HOSTILE, "after": "Sun."}
            _write(run / "samples.json", [{"prompt": HOSTILE, **sample}])
            environment = {"versions": {"jax": "0.10.2"}, "command": HOSTILE}
            _write(run / "environment.json", environment)
        return run

    return make


@pytest.fixture
def sweep(make_run, tmp_path) -> Path:
    """The directory of a sweep over three rates and two seeds, one point diverged."""
    points: list[dict[str, Any]] = []
    for rate in RATES:
        for seed in (1, 2):
            place = f"points/{len(points):02}"
            make_run(f"sweep/{place}")
            loss = None if (rate, seed) == (1e-3, 2) else abs(math.log10(rate) + 4) + 1
            points.append(
                {
                    "name": f"learning_rate={rate} seed={seed}",
                    "directory": place,
                    "values": {"optimizer.learning_rate": rate, "seed": seed},
                    "status": "diverged" if loss is None else "done",
                    "eval_loss": loss and loss + seed / 100,
                    "best_eval_loss": loss,
                    "train_loss": loss,
                    "seconds": 61.0,
                }
            )
    axes = {"optimizer.learning_rate": list(RATES), "seed": [1, 2]}
    _write(tmp_path / "sweep" / "sweep.json", {"axes": axes, "points": points})
    return tmp_path / "sweep"


def _lines(step: int, every: int | None) -> list[dict[str, Any]]:
    """The lines of a step: the loss is 3 - step / 100, and not finite at step 7."""
    lines: list[dict[str, Any]] = []
    if step:
        training = {"loss": None if step == 7 else 3 - step / 100, "tokens": step * 10}
        rates = {"learning_rate": 1e-4, "grad_norm": 1.5, "tokens_per_second": 100.0}
        lines.append({"step": step, **training, **rates, "epoch": step / 10})
    if every and step % every == 0:
        # Lowest at step 30.
        evaluated = {"eval_loss": 2 + (step - 30) ** 2 / 1000, "eval_accuracy": 0.5}
        lines.append({"step": step, **evaluated})
    return lines


def _summary(steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "seconds": 3725.0,
        "tokens_per_second": 1234.5,
        "peak_memory_bytes": 3 * 2**30,
        "peak_memory_of": "process",
        "parameters": 1_000_000,
        "trainable": 12_500,
        "eval_loss_before": 2.9,
        "stopped_early": False,
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
