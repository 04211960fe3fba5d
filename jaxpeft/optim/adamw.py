"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

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


class AdamState(NamedTuple):
    """Both moments of one tensor, float32 and shaped like it.

    Attributes:
        mu: the moving average of the gradients.
        nu: the moving average of their squares.
    """

    mu: Array
    nu: Array


def adamw_rule(b1: float, b2: float, eps: float) -> Rule:
    """The rule of `adamw`, which explains the arguments."""

    def init(p: Array, place: Place) -> AdamState:
        return AdamState(jnp.zeros_like(p), jnp.zeros_like(p))

    def update(
        g: Array, state: AdamState, p: Array, ctx: Context
    ) -> tuple[Array, AdamState]:
        # torch rounds b1 m and b2 v and then adds the gradient's term in one rounding;
        # a compiler that fuses does the same to the first product of a sum.
        mu = (1 - b1) * g + b1 * state.mu
        nu = ((1 - b2) * g) * g + b2 * state.nu
        root = jnp.sqrt(nu) / jnp.sqrt(debias(b2, ctx.t)) + eps
        rate = ctx.learning_rate / debias(b1, ctx.t)
        return ctx.decayed(p) - rate * (mu / root), AdamState(mu, nu)

    return Rule(init, update)


@in_range
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Adam with a decay of the weights that the moments do not see.

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g**2
        p <- p (1 - rate * weight_decay)
        p <- p - rate / (1 - b1**t) * m / (sqrt(v) / sqrt(1 - b2**t) + eps)

    State: m and v in float32, 8 bytes a parameter. Equal to torch.optim.AdamW;
    `optax.adamw` differs from both by the rounding of its fused decay and of 1 - b**t.

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

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        adamw_rule(b1, b2, eps),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
