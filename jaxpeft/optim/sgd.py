"""Gradient descent with momentum, as torch has it."""

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)


def with_decay(g: Array, p: Array, ctx: Context) -> Array:
    """g + weight_decay * p: the decay as torch's oldest optimizers have it.

    Args:
        g: the gradient, shaped like the tensor.
        p: the tensor.
        ctx: the step, with the tensor's settings.
    """
    return g if not ctx.decays else g + ctx.weight_decay * p


def sgd_rule(momentum: float, dampening: float, nesterov: bool) -> Rule:
    """The rule of `sgd`, which explains the arguments; its state is m, or nothing."""

    def init(p: Array, place: Place) -> Any:
        return () if is_zero(momentum) else jnp.zeros_like(p)

    def update(g: Array, state: Any, p: Array, ctx: Context) -> tuple[Array, Any]:
        g = with_decay(g, p, ctx)
        if not is_zero(momentum):
            state = momentum * state + (1 - dampening) * g
            if not is_zero(dampening):  # torch takes the first gradient as it is
                state = jnp.where(ctx.t == 1, g, state)
            g = g + momentum * state if nesterov else state
        return p - ctx.learning_rate * g, state

    return Rule(init, update)


@in_range
def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    dampening: float = 0.0,
) -> RuleTransformation:
    """Gradient descent, with a momentum and Nesterov's correction if asked for.

        g <- g + weight_decay * p
        m <- momentum * m + (1 - dampening) g;  m = g at the first update
        p <- p - rate * m, or p - rate (g + momentum * m) with `nesterov`

    The decay is part of the gradient, so the momentum carries it on: torch.optim.SGD,
    which this equals. State: m in float32, 4 bytes a parameter; none without momentum.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        momentum: the decay of m, from 0 to below 1; 0: no momentum.
        nesterov: whether the step looks ahead along m.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        dampening: the share of a gradient that m leaves out, 0 or more.

    Raises:
        InputError: for settings out of their range, all at once, and for `nesterov`
            without momentum or with dampening.
    """
    if nesterov and (momentum <= 0 or dampening != 0):
        raise InputError(
            "optimizer.nesterov: found true; needs optimizer.momentum above 0 (found "
            f"{momentum}) and optimizer.dampening 0 (found {dampening})"
        )
    return transformation(
        sgd_rule(momentum, dampening, nesterov),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
