"""What stands in the directory of a run or of a sweep, read at any time of its life."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.errors import InputError

METRICS, PLOT, SAMPLES = "metrics.jsonl", "loss.png", "samples.json"
SUMMARY, ENVIRONMENT, REPORT = "summary.json", "environment.json", "report.html"
SWEEP, SWEEP_PLOT = "sweep.json", "sweep.png"


def read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """(training lines, evaluation lines) of a `metrics.jsonl`, see `read_lines`."""
    lines = read_lines(path)
    training = [line for line in lines if "loss" in line]
    return training, [line for line in lines if "eval_loss" in line]


def read_lines(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, null read as NaN.

    A file that is not there has none, and a last line without its end, which a run may
    be writing, does not count. Raises InputError for any other line that is no object.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n") and line.strip():
            lines.append(_entry(path, number, line))
    return lines


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        int(entry["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}, line {number}: found {line.strip()[:60]!r}, which is no JSON "
            "object with a step; delete the line"
        ) from error
    return {key: math.nan if v is None else v for key, v in entry.items()}


def values(lines: list[dict], key: str) -> np.ndarray:
    """One number a line, float64; NaN where a line lacks it."""
    return np.asarray([line.get(key, math.nan) for line in lines], float)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is absent or only half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, moved into place so that nobody reads half of it."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def finite(value: float | None) -> float | None:
    """The number as JSON can hold it: None for NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Point:
    """One run of a sweep, and the loss that it ended with: NaN if it has none."""

    name: str
    directory: Path
    values: dict[str, Any]
    loss: float
    row: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A `sweep.json`: its axes as they were given, its points best first.

    measure: "evaluation", or "training" where no point has been evaluated. remarks:
    what the sweep's end said of them.
    """

    directory: Path
    axes: dict[str, Any]
    points: tuple[Point, ...]
    measure: str
    remarks: tuple[str, ...] = ()


def read_sweep(directory: Path) -> Sweep:
    """The sweep in a directory; points without a loss stand last, in their order.

    Raises InputError where there is no `sweep.json`, or not one of a sweep.
    """
    path = directory / SWEEP
    if not path.is_file():
        raise InputError(
            f"{str(directory)!r} holds no {SWEEP}; name the directory of a sweep"
        )
    content = read_json(path)
    try:
        rows = [dict(row) for row in content["points"]]
        evaluated = any(row.get("eval_loss") is not None for row in rows)
        likely = "eval_loss" if evaluated or not rows else "train_loss"
        key = content.get("judged_by", likely)
        points = [_point(directory, row, key) for row in rows]
        axes = dict(content.get("axes", {}))
        remarks = tuple(map(str, content.get("remarks", ())))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: found no object with points, each with its name and directory; "
            "run the sweep again, which writes it anew"
        ) from error
    points.sort(key=lambda point: (math.isnan(point.loss), point.loss))
    measure = "training" if key == "train_loss" else "evaluation"
    return Sweep(directory, axes, tuple(points), measure, remarks)


def _point(directory: Path, row: dict[str, Any], key: str) -> Point:
    judged = None if row.get("status") == "diverged" else row.get(key)
    loss = math.nan if judged is None else float(judged)
    values = dict(row.get("values", {}))
    return Point(str(row["name"]), directory / row["directory"], values, loss, row)
