"""The rise of the rate at the beginning of a run, which all schedules share."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxpeft.errors import InputError

# From whole steps, () int32, to the rate over the highest one, () float32.
Shape = Callable[[Array], Array | float]


def resolve_warmup(
    total_steps: int, warmup_steps: int | None, warmup_ratio: float | None
) -> int:
    """The number of warmup steps that either setting means; a ratio is rounded up.

    Args:
        total_steps: the steps of the run.
        warmup_steps: the setting in steps, which counts where it is given.
        warmup_ratio: the setting as a share of the run; None: no warmup.

    Raises:
        InputError: where the warmup is longer than the run.
    """
    if warmup_steps is None:
        warmup_steps = math.ceil((warmup_ratio or 0.0) * total_steps)
    if warmup_steps > total_steps:
        raise InputError(
            f"schedule.warmup_steps: found {warmup_steps}; the run has only "
            f"{total_steps} steps"
        )
    return warmup_steps


def steps_after(total_steps: int, warmup_steps: int) -> int:
    """The length of what follows the warmup, never 0: something to divide by."""
    return max(1, total_steps - warmup_steps)


def with_warmup(
    shape: Shape,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    rising: Shape | None = None,
    *,
    ends: bool = True,
) -> optax.Schedule:
    """The rate times `rising` of the step, then times `shape` of the steps after it.

    Args:
        shape: from the steps since the warmup to the rate over the highest one.
        learning_rate: the highest rate.
        total_steps: the steps of the run.
        warmup_steps: the steps of the warmup.
        rising: from the step in the warmup to the rate over the highest one; None for
            the straight line from 0.
        ends: whether what `shape` is given ends with the run.
    """
    last = total_steps - warmup_steps if ends else None

    def line(step: Array) -> Array:
        return step.astype(jnp.float32) / max(1, warmup_steps)

    rise = rising or line

    def schedule(count: ArrayLike) -> Array:
        # Whole numbers: a division may be off by an ulp, and a jump then by a step.
        step = jnp.asarray(count).astype(jnp.int32)
        after = jnp.clip(step - warmup_steps, 0, last)
        factor = jnp.where(step < warmup_steps, rise(step), shape(after))
        return jnp.float32(learning_rate) * factor.astype(jnp.float32)

    return schedule
