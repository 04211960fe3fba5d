"""AdaLomo: LOMO with Adafactor's second moments (Lv et al., 2023)."""

from typing import Any

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


def adalomo_rule(
    eps: tuple[float, float], clip_threshold: float, decay_rate: float
) -> Rule:
    """The rule of `adalomo`, which explains the arguments."""

    def init(p: Array, place: Place) -> factored.Moment:
        return factored.zeros(p)

    def update(
        g: Array, nu: factored.Moment, p: Array, ctx: Context
    ) -> tuple[Array, factored.Moment]:
        weight = factored.rising_weight(ctx.t, decay_rate)
        nu = factored.averaged(nu, jnp.square(g) + eps[0], weight)
        u = factored.clipped(g * factored.inverse_root(nu), clip_threshold)
        rate = ctx.learning_rate * jnp.maximum(eps[1], factored.rms(p))
        kept = p if not ctx.decays else p * (1 - rate * ctx.weight_decay)
        return kept - rate * u, nu

    return Rule(init, update)


@in_range
def adalomo(
    learning_rate: optax.ScalarOrSchedule,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Adafactor's direction, at a rate in proportion to the tensor's own size.

        w = t**decay_rate
        R <- (1 - w) R + w rowmeans(g**2 + eps[0]),  C likewise of the columns
        u = g / sqrt(R C / mean(R));  u <- u / max(1, rms(u) / clip_threshold)
        rate <- rate * max(eps[1], rms(p))
        p <- p (1 - rate * weight_decay) - rate * u

    State: 4 bytes for each row and column, float32; a tensor of one axis has a second
    moment of full size. Equal to lomo_optim's `AdaLomo` for one and two axes; that one
    fails on more, here they are treated as in `adafactor`, as a pile of matrices with
    one rms. Its loss scale of 1024 is divided out again and has no counterpart.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        eps: what is added to the squares, and the least root mean square of the tensor
            that the rate counts with.
        clip_threshold: the root mean square above which an update is scaled down, above
            0.
        decay_rate: the power of t that new squares are weighted by, below 0.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        adalomo_rule(eps, clip_threshold, decay_rate),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
