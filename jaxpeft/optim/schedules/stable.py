"""Warmup, a long stretch at the full rate, and a decay at the end."""

from typing import Literal, get_args

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.schedules import settings
from jaxpeft.optim.schedules.cosine import wave
from jaxpeft.optim.schedules.warmup import with_warmup

Form = Literal["linear", "cosine", "1-sqrt"]


def warmup_stable_decay(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    decay_steps: int,
    stable_steps: int | None = None,
    warmup_type: Form = "linear",
    decay_type: Form = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> optax.Schedule:
    """From min_lr_ratio of the rate up to it, level, and down to that ratio again.

    The warmup is x, (1 - cos(pi x)) / 2 or 1 - sqrt(1 - x) over its progress x, the
    decay 1 - x, (1 + cos(2 pi num_cycles x)) / 2 or 1 - sqrt(x) over its own, both
    scaled to [min_lr_ratio, 1]. After the decay the rate is that ratio.

    transformers: `warmup_stable_decay`, whose keys are called num_decay_steps and
    num_stable_steps (Hu et al., 2024; Hägele et al., 2024).

    Args:
        learning_rate: the highest rate, 0 or more.
        total_steps: the steps of the run, 1 or more.
        warmup_steps: the steps of the warmup, at most `total_steps`; 0: none.
        decay_steps: the steps of the decay, 0 or more.
        stable_steps: the steps of the level stretch, 0 or more; None for what the run
            leaves.
        warmup_type: which of the three forms the warmup has.
        decay_type: which of the three forms the decay has.
        min_lr_ratio: the lowest rate over the highest, from 0 to 1.
        num_cycles: the waves of a decay along a cosine, above 0.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    forms = get_args(Form)
    settings.check(
        learning_rate,
        total_steps,
        warmup_steps,
        _length_problem(total_steps, warmup_steps, decay_steps, stable_steps),
        settings.choice("warmup_type", warmup_type, forms),
        settings.choice("decay_type", decay_type, forms),
        settings.ratio("min_lr_ratio", min_lr_ratio),
        settings.positive("num_cycles", num_cycles),
    )
    if stable_steps is None:
        stable_steps = total_steps - warmup_steps - decay_steps

    def scaled(part: Array) -> Array:
        return part * (1 - min_lr_ratio) + min_lr_ratio

    def rising(step: Array) -> Array:
        return scaled(_rise(warmup_type, step, max(1, warmup_steps)))

    def falling(after: Array) -> Array:
        done = jnp.clip(after - stable_steps, 0, decay_steps)
        part = scaled(_fall(decay_type, done, max(1, decay_steps), num_cycles))
        return jnp.where(after < stable_steps + decay_steps, part, min_lr_ratio)

    return with_warmup(falling, learning_rate, total_steps, warmup_steps, rising)


def _rise(form: Form, done: Array, length: int) -> Array:
    if form == "cosine":
        return 1 - wave(0.5, done, length)
    if form == "1-sqrt":
        return 1 - jnp.sqrt((length - done).astype(jnp.float32) / length)
    return done.astype(jnp.float32) / length


def _fall(form: Form, done: Array, length: int, cycles: float) -> Array:
    if form == "cosine":
        return wave(cycles, done, length)
    if form == "1-sqrt":
        return 1 - jnp.sqrt(done.astype(jnp.float32) / length)
    return (length - done).astype(jnp.float32) / length


def _length_problem(
    total_steps: int, warmup_steps: int, decay_steps: int, stable_steps: int | None
) -> str:
    wrong = settings.least("decay_steps", decay_steps, 0)
    if not wrong and stable_steps is not None:
        wrong = settings.least("stable_steps", stable_steps, 0)
    level = stable_steps or 0
    if wrong or warmup_steps + level + decay_steps <= total_steps:
        return wrong
    parts = f"{warmup_steps} steps of warmup"
    if stable_steps is not None:
        parts += f" and {stable_steps} stable ones (schedule.stable_steps)"
    return (
        f"schedule.decay_steps: found {decay_steps!r}; with {parts} that is more than "
        f"the run's {total_steps} steps"
    )
