"""Adafactor: adaptive rates in sublinear memory (Shazeer & Stern, 2018)."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim import factored
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)


class AdafactorState(NamedTuple):
    """Moments of one tensor, float32.

    Attributes:
        nu: the second moment of the tensor.
        mu: the moving average of its updates; None without `beta1`.
    """

    nu: factored.Moment
    mu: Array | None


def adafactor_rule(
    eps: tuple[float, float],
    clip_threshold: float,
    decay_rate: float,
    beta1: float | None,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
) -> Rule:
    """The rule of `adafactor`, which explains the arguments.

    With `relative_step` its learning rate is a factor.
    """

    def init(p: Array, place: Place) -> AdafactorState:
        mu = None if beta1 is None else jnp.zeros_like(p)
        return AdafactorState(factored.zeros(p), mu)

    def rate_of(p: Array, ctx: Context) -> Array:
        rate = ctx.learning_rate
        if relative_step:
            rate = rate * relative_rate(warmup_init)(ctx.t - 1)
        return rate * jnp.maximum(eps[1], factored.rms(p)) if scale_parameter else rate

    def update(
        g: Array, state: AdafactorState, p: Array, ctx: Context
    ) -> tuple[Array, AdafactorState]:
        rate, weight = rate_of(p, ctx), factored.rising_weight(ctx.t, decay_rate)
        nu = factored.averaged(state.nu, jnp.square(g) + eps[0], weight)
        u = factored.clipped(g * factored.inverse_root(nu), clip_threshold) * rate
        if state.mu is not None and beta1 is not None:
            u = beta1 * state.mu + (1 - beta1) * u
        kept = p if not ctx.decays else p + (-ctx.weight_decay * rate) * p
        return kept - u, AdafactorState(nu, None if beta1 is None else u)

    return Rule(init, update)


def relative_rate(warmup_init: bool = False) -> optax.Schedule:
    """The rate that `relative_step` sets: updates made -> rate, () float32.

    Args:
        warmup_init: whether the rate rises from 1e-6, instead of starting at 1e-2.
    """

    def rate(count: Any) -> Array:
        t = jnp.asarray(count, jnp.float32) + 1
        return jnp.minimum(1e-6 * t if warmup_init else 1e-2, 1 / jnp.sqrt(t))

    return rate


def _problems(given: dict[str, Any]) -> list[str]:
    learning_rate, warmup_init = given["learning_rate"], given["warmup_init"]
    relative_step = given["relative_step"]
    problems = []
    if relative_step and learning_rate is not None:
        problems.append(
            "optimizer.relative_step: found true beside a learning rate, which it "
            "takes the place of; give one of the two"
        )
    if learning_rate is None and not relative_step:
        problems.append(
            "optimizer.learning_rate: is missing; give one, or set "
            "optimizer.relative_step to true"
        )
    if warmup_init and not relative_step:
        problems.append(
            "optimizer.warmup_init: found true; needs optimizer.relative_step to be "
            "true, whose steps it makes smaller"
        )
    return problems


@functools.partial(in_range, also=_problems)
def adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = False,
    relative_step: bool = False,
    warmup_init: bool = False,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Gradients over the root of a second moment that is kept by rows and columns.

        rate <- learning_rate, or min(1e-2, 1 / sqrt(t)) with `relative_step`, which
            `warmup_init` makes min(1e-6 t, 1 / sqrt(t))
        rate <- rate * max(eps[1], rms(p)) with `scale_parameter`
        w = t**decay_rate
        R <- (1 - w) R + w rowmeans(g**2 + eps[0]),  C likewise of the columns
        u = g / sqrt(R C / mean(R));  u <- rate * u / max(1, rms(u) / clip_threshold)
        u = m <- beta1 m + (1 - beta1) u with `beta1`
        p <- p - weight_decay * rate * p - u

    The rows and columns are those of the last two axes; a tensor of one axis or none
    has a second moment of full size, and one of three or more is a pile of matrices
    with one rms. State: 4 bytes for each row and column, float32; with `beta1` 4 bytes
    a parameter more.

    Equal to transformers' `Adafactor` with the settings that its Trainer makes: there
    `scale_parameter` and `relative_step` are off, though the class has them on.
    `optax.adafactor` agrees for matrices if told `min_dim_size_to_factor=1` and the
    decay times the rate.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
            None with `relative_step`, and only then.
        eps: what is added to the squares, and the least root mean square that
            `scale_parameter` counts with.
        clip_threshold: the root mean square above which an update is scaled down, above
            0.
        decay_rate: the power of t that new squares are weighted by, below 0.
        beta1: the decay of m, from 0 to below 1; None: no m.
        weight_decay: the factor of the decay in the formulas; 0: none.
        scale_parameter: whether the rate is in proportion to the tensor's size.
        relative_step: whether the rate follows from the step alone. A group's factor
            applies all the same.
        warmup_init: whether the rate of `relative_step` rises from 1e-6.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once; for a learning rate
            beside `relative_step`, for none without it, and for `warmup_init` without
            it.
    """
    rule = adafactor_rule(
        eps,
        clip_threshold,
        decay_rate,
        beta1,
        scale_parameter,
        relative_step,
        warmup_init,
    )
    return transformation(
        rule,
        1.0 if learning_rate is None else learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
