"""What stands in the directory of a sweep, read at any time of its life."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.rundir.files import METRICS, read_json
from jaxpeft.rundir.metrics import read_lines, unit_of_loss

SWEEP, SWEEP_PLOT = "sweep.json", "sweep.png"
DROPPED = "dropped"  # the status of a point that others were better than on the way


@dataclass(frozen=True)
class PointRecord:
    """One run of a sweep, and the loss that it ended with.

    Attributes:
        name: what the sweep calls it.
        directory: its run directory.
        values: key of the configuration -> its value in this run.
        loss: the loss that the sweep is judged by, or another figure; NaN if it has
            none.
        row: its entry in `sweep.json`.
    """

    name: str
    directory: Path
    values: dict[str, Any]
    loss: float
    row: dict[str, Any]


@dataclass(frozen=True)
class SweepRecord:
    """A `sweep.json` as it was read.

    Attributes:
        directory: the sweep's directory.
        axes: the axes as they were given.
        points: the runs, best first.
        measure: "evaluation", or "training" where no point has been evaluated.
        remarks: what the sweep's end said of the points.
        what: the figure that the points are judged by.
    """

    directory: Path
    axes: dict[str, Any]
    points: tuple[PointRecord, ...]
    measure: str
    remarks: tuple[str, ...] = ()
    what: str = "loss"

    @property
    def label(self) -> str:
        """The same for an axis, with its unit, as the first point's figures tell it."""
        if self.what != "loss":
            return self.what
        lines: list[dict] = []
        if self.points:
            lines = read_lines(self.points[0].directory / METRICS)
        return f"loss ({unit_of_loss(lines)})"


def read_sweep(directory: Path) -> SweepRecord:
    """The sweep in a directory; points without a loss stand last, in their order.

    Args:
        directory: the sweep's directory.

    Raises:
        InputError: there is no `sweep.json`, or not one of a sweep.
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
    sign = -1 if content.get("prefers_greater") else 1
    # Of those that were dropped the ones that came farthest, whatever their figures:
    # those of other steps say nothing of them.
    points.sort(key=lambda p: (math.isnan(p.loss), -_reached(p.row), sign * p.loss))
    measure = "training" if key == "train_loss" else "evaluation"
    what = key.removeprefix("best_").removeprefix("eval_").removeprefix("train_")
    return SweepRecord(directory, axes, tuple(points), measure, remarks, what)


def _reached(row: dict[str, Any]) -> float:
    """How many rungs a point has reached that was dropped; infinity for all others."""
    return len(row.get("scores", ())) if row.get("status") == DROPPED else math.inf


def _point(directory: Path, row: dict[str, Any], key: str) -> PointRecord:
    if key not in row:  # a figure of the user's choice, under a name of its own
        key = "best_figure" if key.startswith("best_") else "figure"
    judged = None if row.get("status") == "diverged" else row.get(key)
    loss = math.nan if judged is None else float(judged)
    values = dict(row.get("values", {}))
    return PointRecord(
        str(row["name"]), directory / row["directory"], values, loss, row
    )
