"""What the script of a page draws: curves of few enough points, with their units."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpeft.report import plots
from jaxpeft.rundir.files import finite
from jaxpeft.rundir.metrics import values
from jaxpeft.rundir.outcome import USUAL

MOST = 1500  # points of a curve in a page; a screen shows no more


@dataclass(frozen=True)
class Series:
    """A curve of a chart.

    Attributes:
        name: what the legend calls it.
        x: where its points lie, (points,).
        y: their values, (points,); what is not finite is a gap.
        smooth: values to show beside `y` where noise would hide it, (points,), or None.
        points: whether each point has a dot.
        best: the index of a point to mark, or None.
        color: the number of its color; None: its place among the curves.
        line: whether a line joins the points.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    smooth: np.ndarray | None = None
    points: bool = False
    best: int | None = None
    color: int | None = None
    line: bool = True


@dataclass(frozen=True)
class Chart:
    """Curves over one axis; units stand in the titles of the axes and at values.

    Attributes:
        title: the chart's title.
        y_label: the title of the vertical axis, with its unit.
        series: the curves.
        x_label: the title of the horizontal axis, with its unit.
        x_log: whether the horizontal axis is logarithmic.
        y_log: whether the vertical axis is logarithmic.
    """

    title: str
    y_label: str
    series: list[Series]
    x_label: str = plots.STEP
    x_log: bool = False
    y_log: bool = False

    def data(self) -> dict[str, Any]:
        """The chart as JSON holds it: null for what is not finite."""
        return {
            "title": self.title,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xLog": self.x_log,
            "yLog": self.y_log,
            "series": [
                {"color": at if one.color is None else one.color, **_series_data(one)}
                for at, one in enumerate(self.series)
            ],
        }


# Figures of objectives that compare answers: title, axis, names.
GROUPS = (
    (
        "Preferred answers",
        "share of pairs (0 to 1)",
        ("rewards/accuracies", "longer/rewarded", "longer/chosen"),
    ),
    (
        "Rewards",
        "beta times log-ratio (no unit)",
        ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    ),
    (
        "Log-probabilities of answers",
        "nats",
        ("logps/chosen", "logps/rejected"),
    ),
)


def run_charts(training: list[dict], evaluation: list[dict]) -> list[Chart]:
    """The charts of a run, without those that would be empty.

    Args:
        training: the training lines of its metrics.
        evaluation: the evaluation lines of its metrics.
    """
    label = plots.label_of_loss([*training, *evaluation])
    charts = [
        Chart("Loss", label, _losses(training, evaluation)),
        Chart("Learning rate", plots.RATE, _curves(training, learning_rate="rate")),
        Chart(
            "Norms of gradient and update",
            "global L2 norm (no unit)",
            _curves(training, grad_norm="gradient", update_norm="update"),
            y_log=True,
        ),
        Chart(
            "Evaluation accuracy",
            "share of tokens predicted (0 to 1)",
            _curves(evaluation, eval_accuracy="accuracy"),
        ),
        Chart(
            "Other figures of evaluations",
            "score (as the metric has it)",
            _curves(evaluation, **_others(evaluation)),
        ),
        *_groups(training, evaluation),
        Chart(
            "Speed", "tokens per second", _curves(training, tokens_per_second="speed")
        ),
    ]
    return [chart for chart in charts if chart.series]


def _others(evaluation: list[dict]) -> dict[str, str]:
    """{key: name} of what evaluations give besides what every one of them does."""
    names = dict.fromkeys(name for line in evaluation for name in line)
    return {
        n: n.removeprefix("eval_") for n in names if n not in USUAL and "/" not in n
    }


def _groups(training: list[dict], evaluation: list[dict]) -> list[Chart]:
    """A chart of the figures of each group, such as `rewards/chosen` and its like."""
    charts = []
    for title, label, names in GROUPS:
        trained = {name: f"{name} in training" for name in names}
        held_out = {f"eval_{name}": f"{name} in evaluations" for name in names}
        series = [*_curves(training, **trained), *_curves(evaluation, **held_out)]
        charts.append(Chart(title, label, series))
    return charts


def _losses(training: list[dict], evaluation: list[dict]) -> list[Series]:
    series = []
    if training:
        losses = values(training, "loss")
        steps, smooth = values(training, "step"), plots.smoothed(losses)
        series.append(Series("training", steps, losses, smooth))
    if evaluation:
        steps, losses = values(evaluation, "step"), values(evaluation, "eval_loss")
        best = int(np.nanargmin(losses)) if np.isfinite(losses).any() else None
        series.append(Series("evaluation", steps, losses, points=True, best=best))
    return series


def _curves(lines: list[dict], **names: str) -> list[Series]:
    """A curve for each key that any line has a number for."""
    steps = values(lines, "step")
    curves = {name: values(lines, key) for key, name in names.items()}
    return [
        Series(name, steps, y, points=len(y) <= 40)
        for name, y in curves.items()
        if np.isfinite(y).any()
    ]


def _series_data(series: Series) -> dict[str, Any]:
    kept = thinned(series.y, MOST)
    smooth = None if series.smooth is None else _numbers(series.smooth[kept])
    best = series.best
    return {
        "name": series.name,
        "x": _numbers(series.x[kept]),
        "y": _numbers(series.y[kept]),
        "smooth": smooth,
        "points": series.points and len(kept) <= 100,
        "line": series.line,
        "best": None
        if best is None
        else [float(series.x[best]), float(series.y[best])],
    }


def thinned(y: np.ndarray, most: int) -> np.ndarray:
    """The indices of values that keep every peak: extremes of equal parts.

    The first and the last are among them. A part without a finite value keeps one of
    its own, so that gaps stay gaps.

    Args:
        y: (points,).
        most: how many to keep at most.

    Returns:
        Indices in ascending order; all of them where there are no more than `most`.
    """
    if len(y) <= most:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), most // 2 - 1):
        known = part[np.isfinite(y[part])]
        if len(known):
            kept |= {known[np.argmin(y[known])], known[np.argmax(y[known])]}
        else:
            kept.add(part[0])
    return np.asarray(sorted(int(at) for at in kept))


def _numbers(array: np.ndarray) -> list[float | int | None]:
    """Numbers of six digits, whole ones as such; null for what is not finite."""
    return [_number(value) for value in array.tolist()]


def _number(value: float) -> float | int | None:
    known = finite(value)
    if known is None or not known.is_integer() or abs(known) > 2**53:
        return None if known is None else float(f"{known:.6g}")
    return int(known)
