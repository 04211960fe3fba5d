"""Schedules whose rate stays, or falls along a line, a power, a root or stairs."""

import math

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.schedules import settings
from jaxpeft.optim.schedules.warmup import steps_after, with_warmup


def constant(
    learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The rate itself, after a linear warmup if there is one.

    transformers: `constant`, `constant_with_warmup`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings.check(learning_rate, total_steps, warmup_steps)
    return with_warmup(lambda after: 1.0, learning_rate, total_steps, warmup_steps)


def linear(
    learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """A straight line from the rate to 0 at `total_steps`.

    transformers: `linear`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings.check(learning_rate, total_steps, warmup_steps)
    length = steps_after(total_steps, warmup_steps)
    return with_warmup(
        lambda after: _remaining(after, length),
        learning_rate,
        total_steps,
        warmup_steps,
    )


def polynomial(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    power: float = 1.0,
    lr_end: float = 1e-7,
) -> optax.Schedule:
    """(rate - lr_end) (1 - p)^power + lr_end over the progress p after warmup.

    transformers: `polynomial`.

    Args:
        learning_rate: the highest rate, above `lr_end`.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        power: the power of what is left of the course, above 0.
        lr_end: the rate that it ends at, 0 or more and below the highest.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    low = settings.least("lr_end", lr_end, 0)
    if not low and not learning_rate > lr_end:
        low = (
            f"schedule.lr_end: found {lr_end!r}; must be below optimizer.learning_rate,"
            f" which is {learning_rate!r}"
        )
    wrong_power = settings.positive("power", power)
    settings.check(learning_rate, total_steps, warmup_steps, wrong_power, low)
    length, end = steps_after(total_steps, warmup_steps), lr_end / learning_rate
    return with_warmup(
        lambda after: (1 - end) * _remaining(after, length) ** power + end,
        learning_rate,
        total_steps,
        warmup_steps,
    )


def inverse_sqrt(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    timescale: int | None = None,
) -> optax.Schedule:
    """sqrt(timescale / (s + timescale)) over the steps s after warmup.

    With the default timescale it is, behind a warmup, the schedule of the Transformer
    (Vaswani et al., 2017). transformers: `inverse_sqrt`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        timescale: steps, 1 or more; None for those of the warmup, or 10,000 without
            one.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    scale = timescale if timescale is not None else warmup_steps or 10_000
    wrong = settings.least("timescale", timescale, 1) if timescale is not None else ""
    settings.check(learning_rate, total_steps, warmup_steps, wrong)
    return with_warmup(
        lambda after: jnp.sqrt(scale / (after.astype(jnp.float32) + scale)),
        learning_rate,
        total_steps,
        warmup_steps,
    )


def step(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    step_size: int | None = None,
    milestones: list[int] | None = None,
    gamma: float = 0.1,
) -> optax.Schedule:
    """gamma^k, where k is how many stairs the run has gone down since the warmup.

    These are torch's StepLR and MultiStepLR behind a warmup, as SequentialLR has them.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        step_size: the steps between two stairs, 1 or more.
        milestones: the steps at which there is a stair, rising, counted from the end of
            the warmup; in place of `step_size`.
        gamma: what a stair multiplies the rate by, above 0 and at most 1.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    wrong = settings.positive("gamma", gamma) or settings.ratio("gamma", gamma)
    stairs = _stairs_problem(step_size, milestones)
    settings.check(learning_rate, total_steps, warmup_steps, stairs, wrong)

    def factor(after: Array) -> Array:
        if step_size is not None:
            down = after // step_size
        else:
            down = sum(jnp.int32(after >= at) for at in milestones or ())
        return jnp.exp(jnp.asarray(down, jnp.float32) * math.log(gamma))

    return with_warmup(factor, learning_rate, total_steps, warmup_steps)


def _remaining(after: Array, length: int) -> Array:
    """1 - progress, without its cancellation."""
    return (length - after).astype(jnp.float32) / length


def _stairs_problem(step_size: int | None, milestones: list[int] | None) -> str:
    if step_size is not None and milestones is not None:
        return (
            f"schedule.step_size: found {step_size!r} beside schedule.milestones "
            f"{milestones!r}; give only one of them"
        )
    if step_size is not None:
        return settings.least("step_size", step_size, 1)
    if milestones is None:
        return (
            "schedule.step_size: is missing; give the steps between two stairs, or "
            "schedule.milestones, a list of steps"
        )
    rising = all(a < b for a, b in zip(milestones, milestones[1:]))
    if milestones and milestones[0] >= 1 and rising:
        return ""
    return (
        f"schedule.milestones: found {milestones!r}; must be a list of rising steps, "
        "1 or more"
    )
