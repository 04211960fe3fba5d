"""StableAdamW: AdamW whose steps shrink when the gradient outgrows its history."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.errors import InputError
from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    debias,
    transformation,
)


def stable_adamw_rule(b1: float, b2: float, eps: float, max_lr: float | None) -> Rule:
    """The rule of `stable_adamw`, which explains the arguments.

    Its `max_lr` is None where the decay follows the rate.
    """

    def init(p: Array, place: Place) -> AdamState:
        return AdamState(jnp.zeros_like(p), jnp.zeros_like(p))

    def update(
        g: Array, state: AdamState, p: Array, ctx: Context
    ) -> tuple[Array, AdamState]:
        mu = state.mu + (1 - b1) / debias(b1, ctx.t) * (g - state.mu)
        correction = debias(b2, ctx.t)
        kept = b2 * debias(b2, ctx.t - 1) / correction
        nu = kept * state.nu + (1 - b2) / correction * jnp.square(g)
        excess = jnp.sqrt(jnp.mean(jnp.square(g) / jnp.maximum(nu, eps**2)))
        rate = ctx.learning_rate / jnp.maximum(1.0, excess)
        if ctx.decays:
            share = rate if max_lr is None else rate / max_lr
            p = p * (1 - share * ctx.weight_decay)
        return p - rate * (mu / (jnp.sqrt(nu) + eps)), AdamState(mu, nu)

    return Rule(init, update)


@in_range
def stable_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    decouple_lr: bool = False,
    max_lr: float | None = None,
) -> RuleTransformation:
    """AdamW with Adafactor's clipping of a tensor's update (Wortsman et al., 2023).

        b1' = b1 (1 - b1**(t-1)) / (1 - b1**t),  b2' likewise
        m <- b1' m + (1 - b1') g,  v <- b2' v + (1 - b2') g**2
        rate <- rate / max(1, sqrt(mean(g**2 / max(v, eps**2))))
        p <- p (1 - rate * weight_decay), or with `decouple_lr`
             p (1 - rate / max_lr * weight_decay)
        p <- p - rate * m / (sqrt(v) + eps)

    State: m and v in float32, 8 bytes a parameter. Equal to optimi's `StableAdamW` for
    float32 parameters. For 16-bit ones that keeps a compensation of their rounding by
    default; here there is none.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        decouple_lr: whether the decay goes by the rate's share of `max_lr` instead of
            by the rate.
        max_lr: the highest rate of the schedule, above 0; None: a number for a learning
            rate stands for itself.

    Raises:
        InputError: for settings out of their range, all at once, and for `decouple_lr`
            with a schedule and no `max_lr`.
    """
    if decouple_lr and max_lr is None:
        if callable(learning_rate):
            raise InputError(
                "optimizer.max_lr: is missing; optimizer.decouple_lr with a schedule "
                "needs it, the schedule's highest rate"
            )
        max_lr = float(learning_rate)
    return transformation(
        stable_adamw_rule(b1, b2, eps, max_lr if decouple_lr else None),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
