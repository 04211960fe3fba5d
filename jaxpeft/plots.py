"""The pictures of a run and of a sweep: losses and learning rates over the steps."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.run_files import METRICS, Point, Sweep, read_metrics, values

LOSS, STEP, RATE = "loss (nats per token)", "step (updates)", "rate (per update)"
DECADE = 10.0  # values that span more are drawn on a logarithmic axis


def plot_losses(metrics: Path, target: Path, title: str) -> None:
    """Draws `metrics.jsonl` to a PNG: both losses above, the learning rate below.

    The best evaluation is marked where there are several.
    """
    pyplot = _pyplot()
    training, evaluation = read_metrics(metrics)
    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1), layout="constrained"
    )
    steps, losses = values(training, "step"), values(training, "loss")
    if len(steps):
        top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
        top.plot(steps, smoothed(losses), color="tab:blue", label="training, smoothed")
    if evaluation:
        _plot_evaluations(top, evaluation)
    top.set_title(title)
    top.set_ylabel(LOSS)
    top.grid(alpha=0.3)
    if len(steps) or evaluation:
        top.legend()
    bottom.plot(steps, values(training, "learning_rate"), color="tab:green")
    bottom.set_ylabel(f"learning {RATE}")
    bottom.set_xlabel(STEP)
    bottom.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _plot_evaluations(axes: Any, lines: list[dict]) -> None:
    steps, losses = values(lines, "step"), values(lines, "eval_loss")
    axes.plot(
        *(steps, losses), color="tab:orange", marker="o", ms=4, label="evaluation"
    )
    best = best_evaluation(lines)
    if best is not None:
        step, loss = best
        axes.plot(
            *(step, loss),
            linestyle="",
            color="tab:red",
            marker="*",
            ms=12,
            label=f"best evaluation: {loss:.4f} at step {step}",
        )


def best_evaluation(lines: list[dict]) -> tuple[int, float] | None:
    """(step, loss) of the lowest evaluation loss, the first of equal ones; or None."""
    losses = values(lines, "eval_loss")
    if not np.isfinite(losses).any():
        return None
    at = int(np.nanargmin(losses))
    return int(lines[at]["step"]), float(losses[at])


def plot_sweep(sweep: Sweep, target: Path, title: str) -> None:
    """Draws a sweep to a PNG: what came out over the first axis, and all the curves."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 5.5), layout="constrained"
    )
    figure.suptitle(title)
    _plot_outcomes(left, sweep)
    for rank, point in enumerate(sweep.points):
        training, evaluation = read_metrics(point.directory / METRICS)
        if sweep.measure == "evaluation":
            steps, losses = values(evaluation, "step"), values(evaluation, "eval_loss")
        else:
            steps, losses = values(training, "step"), values(training, "loss")
            losses = smoothed(losses)
        color = pyplot.get_cmap("tab20")(rank % 20)
        right.plot(steps, losses, marker="o", ms=3, color=color, label=point.name)
    right.set_xlabel(STEP)
    right.set_ylabel(f"{sweep.measure} {LOSS}")
    right.grid(alpha=0.3)
    if 0 < len(sweep.points) <= 30:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        right.legend(fontsize="x-small", title="best first", **beside)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _plot_outcomes(axes: Any, sweep: Sweep) -> None:
    key, lines = outcomes(sweep)
    for name, points in lines.items():
        where = [point.values[key] for point in points]
        losses = [point.loss for point in points]
        axes.plot(where, losses, marker="o", label=name or "all points")
    if spans_decades([p.values[key] for points in lines.values() for p in points]):
        axes.set_xscale("log")
    axes.set_xlabel(axis_label(key))
    axes.set_ylabel(f"final {sweep.measure} {LOSS}")
    axes.grid(alpha=0.3)
    if 1 < len(lines) <= 16:
        axes.legend(fontsize="small")


def outcomes(sweep: Sweep) -> tuple[str, dict[str, list[Point]]]:
    """The first numeric axis, and the points along it for each choice of the others.

    Without such an axis the key is "" and there are no points.
    """
    key = next((k for k, v in sweep.axes.items() if v and all(map(_number, v))), "")
    lines: dict[str, list[Point]] = defaultdict(list)
    for point in sweep.points if key else ():
        others = [f"{_short(k)}={v}" for k, v in point.values.items() if k != key]
        lines[" ".join(others)].append(point)
    return key, {
        name: sorted(lines[name], key=lambda point: point.values[key])
        for name in sorted(lines)
    }


def spans_decades(numbers: list[float]) -> bool:
    """Whether numbers, all above zero, lie so far apart that logarithms show more."""
    if not numbers or min(numbers) <= 0:
        return False
    return bool(max(numbers) > DECADE * min(numbers))


def axis_label(key: str) -> str:
    """The name of a configuration key at an axis, with its unit where it has one."""
    if not key:
        return "no axis has numbers"
    rate = _short(key) == "learning_rate"
    return f"{key} (per update)" if rate else key


def smoothed(losses: np.ndarray) -> np.ndarray:
    """A debiased exponential average over about a twentieth of the points.

    NaN and infinities are passed over; before the first finite value it is NaN.
    """
    keep = 1 - 1 / max(1.0, len(losses) / 20)
    average, weight, out = 0.0, 0.0, []
    for value in losses:
        if np.isfinite(value):
            average = keep * average + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(average / weight if weight else np.nan)
    return np.asarray(out)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _pyplot() -> Any:
    """Imported where a picture is drawn: it takes most of a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
