"""The curve of a learning-rate range test, and the rates that it suggests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.errors import InputError

FIRST = 5  # steps whose mean is the loss before anything was learned
WINDOW = 10  # the smoothed loss looks back over a tenth of the steps
SUGGESTED = "between"  # the rule whose rate is suggested; why: docs/learning_rate.md
RULES = {
    "steepest": "steepest descent of the smoothed loss",
    "tenth": "a tenth of the rate at its minimum",
    "between": "half-way, in the logarithm, from the steepest descent to the minimum",
}


@dataclass(frozen=True)
class Curve:
    """The training loss of each step of a range test whose rate rises evenly.

    Attributes:
        rates: (n,), the learning rate of each step taken.
        losses: (n,), in nats per token; the last one may have diverged.
        steps: how many the whole range would have had.
    """

    rates: np.ndarray
    losses: np.ndarray
    steps: int

    @property
    def smoothed(self) -> np.ndarray:
        """The losses' debiased exponential averages, see `averages`."""
        return averages(self.losses, self.steps)

    @property
    def diverged(self) -> bool:
        """Whether the test ended before its range did."""
        return diverged(self.losses, self.steps)


def averages(losses: Sequence[float] | np.ndarray, steps: int) -> np.ndarray:
    """The exponential averages of losses, debiased.

    Each is the sum of w^(n-i) loss_i over that of w^(n-i), w being such that a tenth of
    a test's `steps` count. What is not finite stays so.

    Args:
        losses: of the steps taken.
        steps: how many the whole range would have had.

    Returns:
        (n,), one for each loss.
    """
    keep = max(0.0, 1 - WINDOW / steps)
    average, weight, out = 0.0, 0.0, []
    for loss in losses:
        average = keep * average + (1 - keep) * float(loss)
        weight = keep * weight + (1 - keep)
        out.append(average / weight)
    return np.asarray(out)


def filled(losses: Sequence[float | None]) -> list[float]:
    """The losses of a range test, also of steps whose batch had nothing to learn.

    Those have the loss of the step before them, the first ones that of the first after.

    Args:
        losses: of the steps taken; None where there was nothing to learn.

    Returns:
        A loss for each; nothing where none has one.
    """
    last = next((loss for loss in losses if loss is not None), None)
    whole = []
    for loss in losses if last is not None else ():
        last = last if loss is None else loss
        whole.append(last)
    return whole


def diverged(losses: Sequence[float] | np.ndarray, steps: int) -> bool:
    """Whether the losses so far have left the valley that a range test looks for.

    That is where the last loss is not finite or twice the first (and 2 nats above it),
    and where the smoothed loss has climbed from its lowest point by half of the way
    that it came down, and by a tenth of the first loss besides: noise alone does not
    climb so far.

    Args:
        losses: of the steps taken.
        steps: how many the whole range would have had.
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) <= FIRST:
        return False
    smoothed = averages(losses, steps)
    first, best = float(np.mean(losses[:FIRST])), float(smoothed.min())
    if losses[-1] > first + max(first, 2.0):
        return True
    return bool(smoothed[-1] > best + max(0.0, first - best) / 2 + first / 10)


def candidates(curve: Curve) -> dict[str, float]:
    """The rate of each of `RULES`.

    The steepest descent is that of the smoothed loss over the logarithm of the rate,
    taken over a tenth of the steps, and the minimum is that of the smoothed loss.

    Args:
        curve: of a range test.

    Returns:
        {rule: rate}.

    Raises:
        InputError: where the loss never fell, so that there is nothing to suggest.
    """
    smoothed, rates = curve.smoothed, curve.rates
    if curve.diverged:
        smoothed, rates = smoothed[:-1], rates[:-1]
    width = max(1, curve.steps // WINDOW)
    lowest = int(np.argmin(smoothed)) if len(smoothed) else 0
    first = float(np.mean(curve.losses[:FIRST]))
    if lowest < width or smoothed[lowest] > first * 0.99:
        raise InputError(
            f"lr_find: the loss did not fall from {first:.4f} at any rate between "
            f"{curve.rates[0]:.2e} and {curve.rates[-1]:.2e}; "
            + (
                "it diverged: give a lower --start"
                if curve.diverged
                else "give a higher --stop, or look at data and adapter"
            )
        )
    fall = smoothed[width : lowest + 1] - smoothed[: lowest + 1 - width]
    # The middle of the stretch that fell furthest.
    steepest = float(rates[int(np.argmin(fall)) + width // 2])
    minimum = float(rates[lowest])
    return {
        "steepest": steepest,
        "tenth": minimum / 10,
        "between": math.sqrt(steepest * minimum),
    }


def suggestion(rates: dict[str, float], factor: float = 1.0) -> float:
    """The suggested rate of the candidates, as a person would write it.

    Args:
        rates: what `candidates` returns.
        factor: by which the rate is divided.
    """
    return float(f"{rates[SUGGESTED] / factor:.1e}")


def plot(curve: Curve, rates: dict[str, float], target: Path, title: str) -> None:
    """Draws the curve and its candidates to a PNG.

    Args:
        curve: of a range test.
        rates: what `candidates` returns.
        target: the file to write.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    # An explosion at the end would flatten all that matters.
    shown: Any = np.where(curve.losses < 1.5 * curve.losses[0], curve.losses, np.nan)
    axes.plot(curve.rates, shown, alpha=0.3, color="tab:blue", label="of each step")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    for (rule, rate), color in zip(rates.items(), ("gray", "tab:olive", "tab:red")):
        chosen = ", suggested" if rule == SUGGESTED else ""
        style = "-" if chosen else "--"
        label = f"{rate:.1e}: {RULES[rule]}{chosen}"
        axes.axvline(rate, color=color, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_ylim(top=1.2 * float(curve.losses[0]))
    axes.set_title(title)
    axes.set_xlabel("learning rate (per step, logarithmic)")
    axes.set_ylabel("training loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
