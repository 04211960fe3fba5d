"""Draw every schedule, one panel each, to docs/schedules.png.

    python scripts/plot_schedules.py [target.png]

The two that an evaluation loss steers are shown with the loss that they are given.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from jaxpeft.optim.schedules.plateau import observe, rate_factor
from jaxpeft.optim.schedules.table import SCHEDULES, make_scale, make_schedule

TARGET = Path(__file__).parents[1] / "docs" / "schedules.png"
RATE, STEPS, WARMUP, EVERY = 2e-4, 1000, 100, 20
SHOWN: dict[str, list[dict[str, Any]]] = {
    "constant": [{}],
    "linear": [{}],
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{"num_cycles": 3}],
    "cosine_with_min_lr": [{"min_lr_rate": 0.1}, {"min_lr_rate": 0.4}],
    "cosine_warmup_with_min_lr": [{"min_lr_rate": 0.1, "warmup_lr_rate": 0.5}],
    "polynomial": [{"power": 2.0}, {"power": 0.5}],
    "inverse_sqrt": [{}, {"timescale": 400}],
    "warmup_stable_decay": [
        {"decay_steps": 300},
        {"decay_steps": 300, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
    ],
    "step": [{"step_size": 300, "gamma": 0.5}, {"milestones": [500, 750]}],
    "reduce_lr_on_plateau": [{"patience": 3, "factor": 0.3}],
    "greedy": [{"patience": 2, "factor": 0.8, "min_lr": 2e-5, "max_lr": 3e-4}],
}
COLORS = ("tab:blue", "tab:orange")


def evaluations() -> tuple[np.ndarray, np.ndarray]:
    """(steps, losses) of a run that learns, rests on a plateau, and gets worse."""
    steps = np.arange(EVERY, STEPS + 1, EVERY)
    falling = 1.2 + 1.6 * np.exp(-steps / 140)
    rising = 0.5 * np.clip((steps - 600) / 400, 0, 1) ** 2
    noise = np.random.default_rng(0).normal(0, 0.01, len(steps))
    return steps, falling + rising + noise


def steered(section: dict[str, Any], rates: np.ndarray) -> np.ndarray:
    """The rates of a schedule whose factor follows the evaluations."""
    scale = make_scale(section, RATE)
    if scale is None:
        return rates
    state, factors = scale.init({}), np.ones(len(rates))
    for step, loss in zip(*evaluations(), strict=True):
        state = observe(state, loss)
        factors[step:] = float(rate_factor(state))
    return rates * factors


def draw(axes: Axes, name: str) -> None:
    """The panel of a schedule."""
    steps = jnp.arange(STEPS)
    for options, color in zip(SHOWN[name], COLORS, strict=False):
        section = {"name": name, "warmup_steps": WARMUP, **options}
        rates = np.asarray(jax.vmap(make_schedule(RATE, section, STEPS))(steps))
        label = "\n".join(f"{k}: {v}" for k, v in options.items())
        rates = steered(section, rates) * 1e4
        axes.plot(steps, rates, color=color, label=label or "default")
    axes.axvspan(0, WARMUP, color="0.92", zorder=0.5)
    axes.set_title(name, fontsize=10, fontweight="bold")
    axes.grid(alpha=0.3)
    axes.set_xlim(0, STEPS)
    if any(SHOWN[name]):
        axes.legend(fontsize=7, handlelength=1.2, frameon=True, framealpha=0.9)


def draw_losses(axes: Axes, label: str) -> None:
    """The evaluations that the panel's rate follows, on an axis of their own."""
    right = axes.twinx()
    right.patch.set_visible(False)
    right.plot(*evaluations(), color="0.55", linewidth=1, linestyle=":", marker=".")
    right.lines[0].set_markersize(3)
    right.set_ylabel(label, color="0.4", fontsize=9)
    right.tick_params(axis="y", colors="0.4", labelsize=8)
    right.set_ylim(0, 3.2)


def main(target: Path) -> None:
    """Draws them all."""
    missing = set(SCHEDULES.entries) ^ set(SHOWN)
    if missing:
        raise SystemExit(f"SHOWN and SCHEDULES differ: {sorted(missing)}")
    figure, grid = pyplot.subplots(
        3, 4, figsize=(15, 8.5), sharex=True, sharey=True, layout="constrained"
    )
    for axes, name in zip(grid.flat, SHOWN, strict=True):
        draw(axes, name)
    draw_losses(grid[2, 2], "")
    draw_losses(grid[2, 3], "evaluation loss, dotted\n(nats per token)")
    grid[0, 0].set_ylim(0, 3.2)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for axes in grid[:, 0]:
        axes.set_ylabel("learning rate (1e-4)")
    grid[0, 0].text(WARMUP / 2, 2.1, "warmup", fontsize=9, ha="center", rotation=90)
    figure.suptitle(
        f"learning_rate: {RATE:g}, {STEPS} steps, warmup_steps: {WARMUP} (shaded)"
    )
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
