"""Rules that carry a learning rate over to another batch size."""

import math
from collections.abc import Callable

# What multiplies the rate, of batch size / reference batch size.
BATCH_SCALING: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}


def scaled_rate(
    learning_rate: float, rule: str, batch_size: int, reference: int
) -> float:
    """The rate for `batch_size`, of one that was found at `reference` sequences a step.

    Args:
        learning_rate: the rate at the reference batch size.
        rule: a key of `BATCH_SCALING`. "none" keeps the rate. "linear" multiplies by
            batch_size / reference, which keeps SGD's course (Goyal et al., 2017),
            "sqrt" by the square root of it, for Adam and what resembles it (Malladi et
            al., 2022; their rule moves b1, b2 and eps too, which stay here).
        batch_size: sequences a step of the run.
        reference: sequences a step where the rate was found.
    """
    return learning_rate * BATCH_SCALING[rule](batch_size / reference)
