"""Learning-rate schedules: functions from the completed steps (from 0) to a rate.

They follow transformers' `get_scheduler` step for step, warmup included: the rate
grows from 0, so that with warmup the first update has a rate of 0. Past the last step
the rate stays where it ended.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxpeft.errors import InputError


def constant(
    learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The rate itself, after a linear warmup if there is one.

    transformers: `constant`, `constant_with_warmup`.
    """
    return _with_warmup(lambda progress: 1.0, learning_rate, total_steps, warmup_steps)


def linear(
    learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """A straight line from the rate to 0 at `total_steps`. transformers: `linear`."""
    return _with_warmup(
        lambda progress: 1.0 - progress, learning_rate, total_steps, warmup_steps
    )


def cosine(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    num_cycles: float = 0.5,
) -> optax.Schedule:
    """max(0, (1 + cos(2 pi num_cycles p)) / 2) over the progress p after warmup.

    With the default half cycle it falls from the rate to 0 (Loshchilov & Hutter,
    2017). transformers: `cosine`, which rises again past `total_steps`; this does not.
    """
    return _with_warmup(
        lambda p: jnp.maximum(0.0, 0.5 * (1 + jnp.cos(2 * jnp.pi * num_cycles * p))),
        learning_rate,
        total_steps,
        warmup_steps,
    )


def resolve_warmup(
    total_steps: int, warmup_steps: int | None, warmup_ratio: float | None
) -> int:
    """The number of warmup steps that either setting means; a ratio is rounded up.

    Raises InputError where the warmup is longer than the run.
    """
    if warmup_steps is None:
        warmup_steps = math.ceil((warmup_ratio or 0.0) * total_steps)
    if warmup_steps > total_steps:
        raise InputError(
            f"schedule.warmup_steps: found {warmup_steps}; the run has only "
            f"{total_steps} steps"
        )
    return warmup_steps


def _with_warmup(
    shape: Callable[[Array], Array | float],
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
) -> optax.Schedule:
    """`shape` of the progress in [0, 1] after warmup, times the rate."""

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count, jnp.float32)
        after = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        factor = shape(jnp.clip(after, 0.0, 1.0))
        rising = step / max(1, warmup_steps)
        return learning_rate * jnp.where(step < warmup_steps, rising, factor)

    return schedule
