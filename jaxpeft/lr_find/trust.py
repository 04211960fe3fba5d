"""How far the suggestion of a range test can be trusted, and when not at all."""

import numpy as np

from jaxpeft.lr_find.curve import FIRST, WINDOW, Curve

FEW = 50  # with fewer steps the noise of single batches moves what is suggested
# By what the best rate of eight in ten measured cells was off the suggestion, either
# way, each model's cells by factors that were fitted to the others: rate_rules.py.
LOW, HIGH = 0.7, 1.6
CELLS = 55  # of docs/calibration.jsonl
SHORT = 0.05  # of the first loss: a fall of less says little of rates
NOISE = 0.25  # of the fall: as much as the batches may differ by
NORMAL = 0.954  # the median difference of two normal numbers over their deviation


def interval(rate: float) -> tuple[float, float]:
    """Where the best rate lies in eight of ten cases like the measured ones.

    Args:
        rate: the suggested one.
    """
    return rate * LOW, rate * HIGH


def basis() -> str:
    """What the interval rests on, in words."""
    return f"({CELLS} cells, nearly all of tiny models: docs/learning_rate.md)"


def doubts(curve: Curve, steps: int = FEW) -> list[str]:
    """Why the suggestion should not be trusted, in sentences; empty: nothing is seen.

    Args:
        curve: of a range test that found a rate.
        steps: that would be enough.
    """
    smoothed, first, found = curve.smoothed, curve.first, []
    lowest = int(np.nanargmin(smoothed))
    fall = first - float(smoothed[lowest])
    begun = int(np.argmax(smoothed <= first - fall / 2))
    if curve.steps < steps:
        found.append(
            f"{curve.steps} steps are few: expect the suggestion to be right within a "
            f"factor of 3; with --steps {steps} it is surer"
        )
    if not curve.diverged and np.all(smoothed[lowest:] <= first):
        found.append(
            f"the loss did not diverge up to {curve.rates[-1]:.1e}, where the test "
            "ended: the best rate may be higher; try a higher --stop"
        )
    if fall < SHORT * first:
        found.append(
            f"the curve is flat: the loss came down by {fall / first:.1%} alone; it is "
            "near its floor, or the data, the labels or the adapter leave little to "
            "learn"
        )
    # From step to step, in the median: neither the fall nor the end is noise.
    steps_apart = np.abs(np.diff(curve.level[: lowest + 1]))
    swing = float(np.median(steps_apart)) / NORMAL if lowest else 0.0
    if swing > NOISE * fall:
        found.append(
            f"the curve is noisy: single batches differ by {swing:.2g} nats where it "
            f"came down by {fall:.2g}; a larger training.batch_size makes it surer"
        )
    if begun <= 2 * max(FIRST, curve.steps // WINDOW):
        found.append(
            f"the loss came down from the first steps on, at {curve.rates[0]:.1e}: "
            "give a lower --start"
        )
    return found
