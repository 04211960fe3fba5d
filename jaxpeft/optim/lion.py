"""Lion: the sign of a momentum (Chen et al., 2023)."""

from typing import Any

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
    transformation,
)


def lion_rule(b1: float, b2: float) -> Rule:
    """The rule of `lion`, which explains the arguments; its state is the momentum."""

    def init(p: Array, place: Place) -> Array:
        return jnp.zeros_like(p)

    def update(g: Array, mu: Array, p: Array, ctx: Context) -> tuple[Array, Array]:
        direction = jnp.sign((1 - b1) * g + b1 * mu)
        new = ctx.decayed(p) - ctx.learning_rate * direction
        return new, (1 - b2) * g + b2 * mu

    return Rule(init, update)


@in_range
def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Steps of one size, in the direction of the momentum's sign.

        p <- p (1 - rate * weight_decay) - rate * sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    State: m in float32, 4 bytes a parameter. Rates are a third to a tenth of AdamW's.
    Equal to bitsandbytes' 32-bit `Lion` but for entries whose sign hangs on a rounding;
    `optax.lion` has a default weight decay of 1e-3.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the weight of m in the direction, from 0 to below 1.
        b2: the decay of m, from 0 to below 1.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        lion_rule(b1, b2),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
