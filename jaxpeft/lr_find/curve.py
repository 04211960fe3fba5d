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
SUGGESTED = "window"  # the rule whose rate is suggested; why: docs/learning_rate.md
# The best rate over the middle of the window, fitted by scripts/rate_rules.py to the
# cells of docs/calibration.jsonl; and of optimizers that average their parameters.
TIMES, TIMES_AVERAGED = 0.52, 0.95
RULES = {
    "steepest": "steepest descent of the smoothed loss",
    "tenth": "a tenth of the rate at its minimum",
    "between": "half-way, in the logarithm, from the steepest descent to the minimum",
    "window": "half-way, likewise, from half of the fall to where it is undone, times "
    f"{TIMES:g} (averaging optimizers: {TIMES_AVERAGED:g})",
}


@dataclass(frozen=True)
class Curve:
    """The training loss of each step of a range test whose rate rises evenly.

    Attributes:
        rates: (n,), the learning rate of each step taken.
        losses: (n,), in nats per token; the last one may have diverged.
        steps: how many the whole range would have had.
        before: (n,) or more, the losses of the same batches before the first step;
            None: they are not known.
    """

    rates: np.ndarray
    losses: np.ndarray
    steps: int
    before: np.ndarray | None = None

    @property
    def level(self) -> np.ndarray:
        """The losses without what tells their batches apart, see `levelled`."""
        return levelled(self.losses, self.before)

    @property
    def smoothed(self) -> np.ndarray:
        """The debiased exponential averages of `level`, see `averages`."""
        return averages(self.level, self.steps)

    @property
    def diverged(self) -> bool:
        """Whether the test ended before its range did."""
        return diverged(self.level, self.steps)

    @property
    def first(self) -> float:
        """The loss before anything was learned."""
        return float(np.mean(self.level[:FIRST]))


def levelled(
    losses: Sequence[float] | np.ndarray, before: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """The losses without what tells their batches apart.

    Some batches are harder than others. By how much is known from their losses with the
    same weights, and is taken off: what is left is what the steps did.

    Args:
        losses: (n,), of the steps taken.
        before: (n,) or more, of the same batches with the weights before any step;
            None: they are not known.

    Returns:
        (n,); what is not finite stays so.
    """
    losses = np.asarray(losses, float)
    if before is None:
        return losses
    own = np.asarray(before, float)
    known = np.isfinite(own)
    if not known.any():
        return losses
    apart = np.where(known, own - own[known].mean(), 0.0)
    return losses - apart[: len(losses)]


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


def candidates(curve: Curve, averaged: bool = False) -> dict[str, float]:
    """The rate of each of `RULES`.

    The steepest descent is that of the smoothed loss over the logarithm of the rate,
    taken over a tenth of the steps; the minimum and the fall from the first loss to it
    are those of the smoothed loss. The window goes from the rate at which half of that
    fall is behind to the one at which all of it is lost again, or the last one.

    Args:
        curve: of a range test.
        averaged: whether the optimizer averages its parameters, which wants more.

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
    first = curve.first
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
        "window": (TIMES_AVERAGED if averaged else TIMES)
        * math.sqrt(_half(curve, smoothed, lowest) * undone(curve)),
    }


def _half(curve: Curve, smoothed: np.ndarray, lowest: int) -> float:
    """The rate at which half of the smoothed loss's fall to its lowest is behind."""
    rates, bar = curve.rates, (curve.first + smoothed[lowest]) / 2
    after = int(np.argmax(smoothed <= bar))
    if after == 0:
        return float(rates[0])
    above, below = smoothed[after - 1 : after + 1]
    part = (above - bar) / (above - below)
    return float(rates[after - 1] * (rates[after] / rates[after - 1]) ** part)


def undone(curve: Curve) -> float:
    """The first rate behind the lowest loss at which the whole fall is lost again.

    Where the test ended before, it is the last rate.

    Args:
        curve: of a range test.
    """
    smoothed = curve.smoothed
    lowest = int(np.nanargmin(smoothed))
    lost = ~(smoothed[lowest:] <= curve.first)  # also what is no number
    return float(curve.rates[lowest + np.argmax(lost) if lost.any() else -1])


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    # An explosion at the end would flatten all that matters.
    level = curve.level
    shown: Any = np.where(level < 1.5 * curve.first, level, np.nan)
    axes.plot(curve.rates, shown, alpha=0.3, color="tab:blue", label="of each step")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    for (rule, rate), color in zip(
        rates.items(), ("gray", "tab:olive", "tab:green", "tab:red")
    ):
        chosen = ", suggested" if rule == SUGGESTED else ""
        style = "-" if chosen else "--"
        label = f"{rate:.1e}: {RULES[rule]}{chosen}"
        axes.axvline(rate, color=color, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_ylim(top=1.2 * curve.first)
    axes.set_title(title)
    axes.set_xlabel("learning rate (per step, logarithmic)")
    axes.set_ylabel("training loss (nats per token)")
    axes.grid(alpha=0.3)
    # Below the axes, where it hides no curve.
    figure.legend(fontsize="small", loc="outside lower center")
    figure.savefig(target, dpi=120)
