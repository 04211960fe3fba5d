"""Adagrad: gradients over the root of the sum of their squares (Duchi et al., 2011)."""

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
from jaxpeft.optim.sgd import with_decay


def adagrad_rule(lr_decay: float, initial_accumulator_value: float, eps: float) -> Rule:
    """The rule of `adagrad`, which explains the arguments; its state is s."""

    def init(p: Array, place: Place) -> Array:
        return jnp.full_like(p, initial_accumulator_value)

    def update(g: Array, total: Array, p: Array, ctx: Context) -> tuple[Array, Array]:
        g = with_decay(g, p, ctx)
        total = total + jnp.square(g)
        rate = ctx.learning_rate / (1 + (ctx.t - 1) * lr_decay)
        return p - rate * (g / (jnp.sqrt(total) + eps)), total

    return Rule(init, update)


@in_range
def adagrad(
    learning_rate: optax.ScalarOrSchedule,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Gradients divided by the root of the sum of all their squares so far.

        g <- g + weight_decay * p
        s <- s + g**2, from initial_accumulator_value
        p <- p - rate / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)

    State: s in float32, 4 bytes a parameter. Equal to torch.optim.Adagrad, decay
    included; `optax.adagrad` starts at 0.1, has eps inside the root and no lr_decay.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        lr_decay: how fast the rate falls with the updates, 0 or more.
        initial_accumulator_value: where s starts, 0 or more.
        eps: what is added to the root of s, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        adagrad_rule(lr_decay, initial_accumulator_value, eps),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
