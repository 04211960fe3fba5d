"""The picture of a run: losses and the learning rate over the steps."""

import json
from pathlib import Path

import numpy as np


def read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """(training lines, evaluation lines) of a `metrics.jsonl`, null read as NaN."""
    lines = [
        {k: np.nan if v is None else v for k, v in json.loads(line).items()}
        for line in path.read_text().splitlines()
    ]
    training = [line for line in lines if "loss" in line]
    return training, [line for line in lines if "eval_loss" in line]


def plot_losses(metrics: Path, target: Path, title: str) -> None:
    """Draws `metrics.jsonl` to a PNG: both losses above, the learning rate below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training, evaluation = read_metrics(metrics)
    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1), layout="constrained"
    )
    steps = [line["step"] for line in training]
    losses = np.asarray([line["loss"] for line in training], float)
    if len(steps):
        top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
        top.plot(steps, _smoothed(losses), color="tab:blue", label="training, smoothed")
    if evaluation:
        top.plot(
            [line["step"] for line in evaluation],
            [line["eval_loss"] for line in evaluation],
            color="tab:orange",
            marker="o",
            markersize=4,
            label="evaluation",
        )
    top.set_title(title)
    top.set_ylabel("loss (nats per token)")
    top.grid(alpha=0.3)
    if len(steps) or evaluation:
        top.legend()
    bottom.plot(steps, [line["learning_rate"] for line in training], color="tab:green")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A debiased exponential average over about a twentieth of the points."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    average, weight, out = 0.0, 0.0, []
    for value in values:
        if np.isfinite(value):
            average = keep * average + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(average / weight if weight else np.nan)
    return np.asarray(out)
