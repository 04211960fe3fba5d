"""LOMO: gradient descent without optimizer state (Lv et al., 2023)."""

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


def lomo_rule(clip_value: float | None) -> Rule:
    """The rule of `lomo`, which explains the argument; it has no state."""

    def init(p: Array, place: Place) -> tuple[()]:
        return ()

    def update(
        g: Array, state: tuple[()], p: Array, ctx: Context
    ) -> tuple[Array, tuple[()]]:
        g = g if clip_value is None else jnp.clip(g, -clip_value, clip_value)
        return ctx.decayed(p) - ctx.learning_rate * g, state

    return Rule(init, update)


@in_range
def lomo(
    learning_rate: optax.ScalarOrSchedule,
    clip_value: float | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Gradient descent, the rule that LOMO applies during the backward pass.

        g <- g cut to [-clip_value, clip_value]
        p <- p (1 - rate * weight_decay) - rate * g

    No state. What LOMO saves is the memory of the gradients, and that is the work of
    the backward pass, not of this rule. Equal to lomo_optim's `Lomo` in float32; its
    clipping by the global norm happens before a rule sees the gradient, and its loss
    scale has no counterpart, being of use in float16 only.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        clip_value: the largest magnitude of a gradient's entry, above 0; None: no
            limit.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        lomo_rule(clip_value),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
