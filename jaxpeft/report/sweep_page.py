"""The page of a sweep: its points best first, what came out, and all their curves."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.report import page, plots, wording
from jaxpeft.report.charts import Chart, Series
from jaxpeft.rundir.files import METRICS, REPORT, finite
from jaxpeft.rundir.metrics import read_metrics
from jaxpeft.rundir.metrics import values as numbers
from jaxpeft.rundir.sweep_files import DROPPED, PointRecord, SweepRecord, read_sweep

LOSSES = ("eval_loss", "best_eval_loss", "train_loss")


def write_sweep(directory: Path) -> Path:
    """Writes `report.html` into a sweep's directory, at any time of its life.

    The page links to the points' own pages where they are.

    Args:
        directory: the sweep's directory.

    Returns:
        The path of the page.

    Raises:
        InputError: the directory is not that of a sweep.
    """
    directory = Path(directory)
    sweep = read_sweep(directory)
    keys = list(dict.fromkeys(key for p in sweep.points for key in p.values))
    charts = [_outcomes(sweep), *_curves(sweep)]
    target = directory / REPORT
    page.write(
        target,
        "sweep.html",
        title=directory.resolve().name,
        state=_state(sweep),
        keys=keys,
        measure=sweep.measure,
        what="" if sweep.what == "loss" else sweep.what,
        dropped=_dropped(sweep),
        rows=[_row(sweep, point, keys) for point in sweep.points],
        axes=[(key, wording.axis(value)) for key, value in sweep.axes.items()],
        remarks=sweep.remarks,
        charts=[chart.data() for chart in charts if chart.series],
    )
    return target


def _state(sweep: SweepRecord) -> str:
    ended = [
        p for p in sweep.points if p.row.get("status") not in ("waiting", "running")
    ]
    return f"{len(ended)} of {len(sweep.points)} points have ended"


def _dropped(sweep: SweepRecord) -> bool:
    """Whether points were dropped on the way, so that figures are of several steps."""
    return any(point.row.get("status") == DROPPED for point in sweep.points)


def _row(sweep: SweepRecord, point: PointRecord, keys: list[str]) -> dict[str, Any]:
    relative = point.directory.relative_to(sweep.directory) / REPORT
    seconds = point.row.get("seconds")
    return {
        "name": point.name,
        "link": relative.as_posix() if (sweep.directory / relative).exists() else "",
        "values": [wording.choice(point.values.get(key)) for key in keys],
        "status": point.row.get("status", ""),
        "why": point.row.get("why") or "",
        "score": _loss(finite(point.loss)),
        "losses": [_loss(point.row.get(key)) for key in LOSSES],
        "seconds": "" if seconds is None else wording.duration(seconds),
    }


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _outcomes(sweep: SweepRecord) -> Chart:
    outcome = plots.outcomes(sweep)
    series = [
        Series(
            name or "all points",
            np.asarray([point.values[outcome.key] for point in points], float),
            np.asarray([point.loss for point in points], float),
            points=True,
            line=outcome.joined,
        )
        for name, points in outcome.lines.items()
    ]
    which = "Last" if _dropped(sweep) else "Final"
    return Chart(
        f"{which} {sweep.measure} {sweep.what} over {outcome.key}",
        sweep.label,
        [one for one in series if np.isfinite(one.y).any()],
        x_label=plots.axis_label(outcome.key),
        x_log=outcome.logarithmic,
    )


def _curves(sweep: SweepRecord) -> list[Chart]:
    evaluations, trainings, seen = [], [], []
    for rank, point in enumerate(sweep.points):
        training, evaluation = read_metrics(point.directory / METRICS)
        seen += [*training, *evaluation]
        if evaluation:
            steps, losses = (
                numbers(evaluation, "step"),
                numbers(evaluation, "eval_loss"),
            )
            series = Series(point.name, steps, losses, points=True, color=rank)
            evaluations.append(series)
        if training:
            steps, losses = numbers(training, "step"), numbers(training, "loss")
            smooth = plots.smoothed(losses)
            trainings.append(Series(point.name, steps, losses, smooth, color=rank))
    label = plots.label_of_loss(seen)
    return [
        Chart(f"{kind} loss of all points, best first", label, series)
        for kind, series in (("Evaluation", evaluations), ("Training", trainings))
    ]
