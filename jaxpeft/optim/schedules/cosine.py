"""Schedules along a cosine (Loshchilov & Hutter, 2017)."""

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.schedules import settings
from jaxpeft.optim.schedules.warmup import steps_after, with_warmup


def cosine(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    num_cycles: float = 0.5,
    strict: bool = False,
) -> optax.Schedule:
    """(1 + cos(2 pi num_cycles p)) / 2 over the progress p after warmup.

    With the default half cycle it falls from the rate to 0. transformers: `cosine`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        num_cycles: the waves from the warmup to the end, above 0.
        strict: whether the rate rises again past `total_steps`, as in transformers,
            instead of staying.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    wrong = settings.positive("num_cycles", num_cycles)
    settings.check(learning_rate, total_steps, warmup_steps, wrong)
    length = steps_after(total_steps, warmup_steps)
    return with_warmup(
        lambda after: wave(num_cycles, after, length),
        learning_rate,
        total_steps,
        warmup_steps,
        ends=not strict,
    )


def cosine_with_restarts(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    num_cycles: int = 1,
) -> optax.Schedule:
    """(1 + cos(pi (num_cycles p mod 1))) / 2 over the progress p after warmup.

    transformers: `cosine_with_restarts`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        num_cycles: how many times it falls from the rate to 0, 1 or more.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    wrong = settings.least("num_cycles", num_cycles, 1)
    settings.check(learning_rate, total_steps, warmup_steps, wrong)
    length = steps_after(total_steps, warmup_steps)

    def factor(after: Array) -> Array:
        within = num_cycles * after % length
        return jnp.where(after < length, wave(0.5, within, length), 0.0)

    return with_warmup(factor, learning_rate, total_steps, warmup_steps)


def cosine_with_min_lr(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    strict: bool = False,
) -> optax.Schedule:
    """As `cosine`, but down to a rate above 0 that one of two settings names.

    transformers: `cosine_with_min_lr`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        num_cycles: the waves from the warmup to the end, above 0.
        min_lr: the lowest rate, from 0 to `learning_rate`.
        min_lr_rate: the lowest rate over the highest, from 0 to 1; in place of
            `min_lr`.
        strict: see `cosine`.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings.check(
        learning_rate,
        total_steps,
        warmup_steps,
        settings.positive("num_cycles", num_cycles),
        _lowest_problem(learning_rate, min_lr, min_lr_rate),
    )
    length = steps_after(total_steps, warmup_steps)
    low = _lowest(learning_rate, min_lr, min_lr_rate)
    return with_warmup(
        lambda after: wave(num_cycles, after, length) * (1 - low) + low,
        learning_rate,
        total_steps,
        warmup_steps,
        ends=not strict,
    )


def cosine_warmup_with_min_lr(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
    strict: bool = False,
) -> optax.Schedule:
    """As `cosine_with_min_lr`, one step ahead: no update has a rate of 0.

    Step s of a warmup of W has (s + 1) / W of the rate, or, where `warmup_lr_rate` w is
    given, w + (1 - w) s / (W - 1). The last step has the lowest rate. transformers:
    `cosine_warmup_with_min_lr`.

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        num_cycles: the waves from the warmup to the end, above 0.
        min_lr: the lowest rate, from 0 to `learning_rate`.
        min_lr_rate: the lowest rate over the highest, from 0 to 1; in place of
            `min_lr`.
        warmup_lr_rate: the first step's share of the rate, from 0 to 1; None: 1 / W.
        strict: see `cosine`.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings.check(
        learning_rate,
        total_steps,
        warmup_steps,
        settings.positive("num_cycles", num_cycles),
        _lowest_problem(learning_rate, min_lr, min_lr_rate),
        ""
        if warmup_lr_rate is None
        else settings.ratio("warmup_lr_rate", warmup_lr_rate),
    )
    length = steps_after(total_steps, warmup_steps)
    low = _lowest(learning_rate, min_lr, min_lr_rate)

    def rising(step: Array) -> Array:
        if warmup_lr_rate is None:
            return (step + 1).astype(jnp.float32) / max(1, warmup_steps)
        done = step.astype(jnp.float32) / max(1, warmup_steps - 1)
        return warmup_lr_rate + (1 - warmup_lr_rate) * done

    def factor(after: Array) -> Array:
        ahead = after + 1 if strict else jnp.minimum(after + 1, length)
        return wave(num_cycles, ahead, length) * (1 - low) + low

    return with_warmup(
        factor, learning_rate, total_steps, warmup_steps, rising, ends=not strict
    )


def wave(cycles: float, done: Array, length: int) -> Array:
    """(1 + cos(2 pi cycles done / length)) / 2, () float32.

    Args:
        cycles: the waves of the whole length.
        done: () int32, steps that are over.
        length: the steps in all.
    """
    progress = done.astype(jnp.float32) / length
    return 0.5 * (1 + jnp.cos(2 * jnp.pi * cycles * progress))


def _lowest(
    learning_rate: float, min_lr: float | None, min_lr_rate: float | None
) -> float:
    """The lowest rate over the highest."""
    if min_lr_rate is not None:
        return min_lr_rate
    return (min_lr or 0.0) / learning_rate if learning_rate else 0.0


def _lowest_problem(
    learning_rate: float, min_lr: float | None, min_lr_rate: float | None
) -> str:
    if min_lr is None and min_lr_rate is None:
        return (
            "schedule.min_lr: is missing; give it, the lowest rate, or "
            "schedule.min_lr_rate, its share of optimizer.learning_rate"
        )
    if min_lr is None:
        return settings.ratio("min_lr_rate", min_lr_rate or 0.0)
    if min_lr_rate is not None:
        return (
            f"schedule.min_lr: found {min_lr!r} beside schedule.min_lr_rate "
            f"{min_lr_rate!r}; give only one of them"
        )
    if 0 <= min_lr <= learning_rate:
        return ""
    return (
        f"schedule.min_lr: found {min_lr!r}; must be from 0 to "
        f"optimizer.learning_rate, which is {learning_rate!r}"
    )
