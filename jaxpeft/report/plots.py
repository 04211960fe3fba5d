"""The pictures of a run and of a sweep: losses and learning rates over the steps."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.replacing import replacing
from jaxpeft.report.wording import choice
from jaxpeft.rundir.files import METRICS
from jaxpeft.rundir.metrics import (
    best_evaluation,
    read_metrics,
    unit_of_loss,
    values,
)
from jaxpeft.rundir.sweep_files import PointRecord, SweepRecord

STEP, RATE = "step (updates)", "rate (per update)"
MARGIN, ACCURACY = "rewards/margins", "rewards/accuracies"
FACTOR = 5.0  # values that span it are drawn on a logarithmic axis
SEED = "seed"


def label_of_loss(lines: list[dict]) -> str:
    """What an axis of losses says.

    Args:
        lines: entries of the metrics, of one run or of several alike.
    """
    return f"loss ({unit_of_loss(lines)})"


def plot_losses(metrics: Path, target: Path, title: str) -> None:
    """Draws `metrics.jsonl` to a PNG: both losses above, the learning rate below.

    The best evaluation is marked. Where answers have rewards, their margin and the
    share of pairs in which the chosen one's is the higher stand between the two.

    Args:
        metrics: the `metrics.jsonl`.
        target: the PNG to write.
        title: what stands above.
    """
    training, evaluation = read_metrics(metrics)
    has_rewards = any(MARGIN in line for line in training)
    heights = (3, 2, 1) if has_rewards else (3, 1)
    high = 2 + 2 * len(heights)
    figure = _figure(8, high)
    top, *middle, bottom = figure.subplots(
        len(heights), 1, sharex=True, height_ratios=heights
    )
    # Margins that are looked for need a second drawing: every run ends with this one.
    inch = 1 / high
    figure.subplots_adjust(
        *(0.14, 0.55 * inch, 0.92 if has_rewards else 0.97, 1 - 0.4 * inch), hspace=0.1
    )
    for axes in middle:
        _plot_rewards(axes, training, evaluation)
    steps, losses = values(training, "step"), values(training, "loss")
    if len(steps):
        top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
        top.plot(steps, smoothed(losses), color="tab:blue", label="training, smoothed")
    if evaluation:
        _plot_evaluations(top, evaluation)
    top.set_title(_literal(title))
    top.set_ylabel(label_of_loss([*training, *evaluation]))
    top.grid(alpha=0.3)
    if len(steps) or evaluation:
        top.legend()
    bottom.plot(steps, values(training, "learning_rate"), color="tab:green")
    bottom.yaxis.set_major_formatter("{x:.3g}")  # no power of ten above the axis
    bottom.set_ylabel("learning rate\n(per update)")
    bottom.set_xlabel(STEP)
    bottom.grid(alpha=0.3)
    _save(figure, target)


def _plot_rewards(axes: Any, training: list[dict], evaluation: list[dict]) -> None:
    """The margin of rewards, and on an axis of its own the share of pairs."""
    steps, margins = values(training, "step"), values(training, MARGIN)
    axes.plot(steps, margins, color="tab:blue", alpha=0.3, linewidth=1)
    axes.plot(steps, smoothed(margins), color="tab:blue", label="training, smoothed")
    at, shares = values(evaluation, "step"), values(evaluation, f"eval_{ACCURACY}")
    held_out = values(evaluation, f"eval_{MARGIN}")
    axes.plot(at, held_out, color="tab:orange", marker="o", ms=4, label="evaluation")
    axes.set_ylabel("margin of rewards")
    axes.grid(alpha=0.3)
    if np.isfinite(shares).any():
        right = axes.twinx()
        right.plot(at, shares, color="tab:purple", marker="s", ms=3, linestyle=":")
        right.set_ylabel("chosen preferred (share)", color="tab:purple")
        right.set_ylim(-0.02, 1.02)
    axes.legend(loc="upper left")


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


def plot_sweep(sweep: SweepRecord, target: Path, title: str) -> None:
    """Draws a sweep to a PNG: what came out over the first axis, and all the curves.

    Args:
        sweep: the sweep as it was read.
        target: the PNG to write.
        title: what stands above.
    """
    outcome = outcomes(sweep)
    width, columns = (13, 2) if outcome.key else (8, 1)
    figure = _figure(width, 5.5, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    color = _colors()
    figure.suptitle(_literal(title))
    right, seen = axes[0, -1], []
    if outcome.key:
        _plot_outcomes(axes[0, 0], sweep, outcome)
    for rank, point in enumerate(sweep.points):
        training, evaluation = read_metrics(point.directory / METRICS)
        if sweep.measure == "evaluation":
            steps, losses = values(evaluation, "step"), values(evaluation, "eval_loss")
        else:
            steps, losses = values(training, "step"), values(training, "loss")
            losses = smoothed(losses)
        seen += [*training, *evaluation]
        style = {"marker": "o", "ms": 3, "color": color(rank % 20)}
        right.plot(steps, losses, label=_literal(point.name), **style)
    right.set_xlabel(STEP)
    right.set_ylabel(f"{sweep.measure} {label_of_loss(seen)}")
    right.grid(alpha=0.3)
    if 0 < len(sweep.points) <= 30:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        right.legend(fontsize="x-small", title="best first", **beside)
    _save(figure, target)


def _plot_outcomes(axes: Any, sweep: SweepRecord, outcome: "Outcomes") -> None:
    key = outcome.key
    for name, points in outcome.lines.items():
        where = [point.values[key] for point in points]
        losses = [point.loss for point in points]
        style = "-" if outcome.joined else ""
        label = _literal(name or "all points")
        axes.plot(where, losses, linestyle=style, marker="o", label=label)
    if outcome.logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(axis_label(key))
    axes.set_ylabel(f"final {sweep.measure} {sweep.label}")
    axes.grid(alpha=0.3)
    if 1 < len(outcome.lines) <= 16:
        axes.legend(fontsize="small")


@dataclass(frozen=True)
class Outcomes:
    """What came out of a sweep over one of its keys.

    Attributes:
        key: that key of the configuration; "" where none has numbers.
        lines: the points along it, for each choice of the other keys, or all of them
            where a search has drawn those.
        joined: whether a line through them says anything.
    """

    key: str
    lines: dict[str, list[PointRecord]]
    joined: bool

    @property
    def logarithmic(self) -> bool:
        """Whether the values lie so far apart that their logarithms show more."""
        points = [point for line in self.lines.values() for point in line]
        numbers = [point.values[self.key] for point in points]
        if not numbers or min(numbers) <= 0:
            return False
        return bool(max(numbers) >= FACTOR * min(numbers))


def outcomes(sweep: SweepRecord) -> Outcomes:
    """The points over the first key that has numbers; a seed is the last choice."""
    keys = sorted(sweep.axes, key=lambda key: key == SEED)
    known = (k for k in keys if all(_number(p.values.get(k)) for p in sweep.points))
    key = next(known, "")
    joined = all(isinstance(axis, list) for axis in sweep.axes.values())
    lines: dict[str, list[PointRecord]] = defaultdict(list)
    for point in sweep.points if key else ():
        values_of = point.values.items()
        others = [f"{_short(k)}={choice(v)}" for k, v in values_of if k != key]
        lines[" ".join(others) if joined else ""].append(point)
    ordered = {
        name: sorted(lines[name], key=lambda point: point.values[key])
        for name in sorted(lines)
    }
    return Outcomes(key, ordered, joined)


def axis_label(key: str) -> str:
    """The name of a configuration key at an axis, with its unit where it has one."""
    rate = _short(key) == "learning_rate"
    return f"{key} (per update)" if rate else key


def smoothed(losses: np.ndarray) -> np.ndarray:
    """A debiased exponential average over about a twentieth of the points.

    NaN and infinities are passed over; before the first finite value it is NaN.

    Args:
        losses: (points,).

    Returns:
        An array of the same shape.
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


def _literal(text: str) -> str:
    """The text for matplotlib, to which what stands between dollars is mathematics."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float, **settings: Any) -> Any:
    """A figure of so many inches, which no window knows of.

    matplotlib is imported where a picture is drawn: it takes half a second.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **settings)


def _colors() -> Any:
    """Twenty colours that are told apart, by their numbers."""
    from matplotlib import colormaps

    return colormaps["tab20"]


def _save(figure: Any, target: Path) -> None:
    with replacing(target) as partial:
        figure.savefig(partial, dpi=120, format="png", pil_kwargs={"compress_level": 3})
