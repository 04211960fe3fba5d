"""RMSprop: gradients over their root mean square (Tieleman & Hinton, 2012)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)
from jaxpeft.optim.sgd import with_decay


class RmspropState(NamedTuple):
    """Averages of one tensor, float32 and shaped like it; None for the unused ones.

    Attributes:
        nu: the moving average of the squares of gradients.
        mean: the moving average of the gradients, if centered.
        momentum: the decaying sum of the steps.
    """

    nu: Array
    mean: Array | None
    momentum: Array | None


def rmsprop_rule(alpha: float, eps: float, momentum: float, centered: bool) -> Rule:
    """The rule of `rmsprop`, which explains the arguments."""

    def init(p: Array, place: Place) -> RmspropState:
        return RmspropState(
            jnp.zeros_like(p),
            jnp.zeros_like(p) if centered else None,
            None if is_zero(momentum) else jnp.zeros_like(p),
        )

    def update(
        g: Array, state: RmspropState, p: Array, ctx: Context
    ) -> tuple[Array, RmspropState]:
        g = with_decay(g, p, ctx)
        variance = nu = alpha * state.nu + (1 - alpha) * jnp.square(g)
        mean, step_mean = state.mean, state.momentum
        if mean is not None:
            mean = mean + (1 - alpha) * (g - mean)
            variance = jnp.maximum(nu - jnp.square(mean), 0.0)
        step = g / (jnp.sqrt(variance) + eps)
        if step_mean is not None:
            step = step_mean = momentum * step_mean + step
        return p - ctx.learning_rate * step, RmspropState(nu, mean, step_mean)

    return Rule(init, update)


@in_range
def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Gradients divided by the root of the average of their squares.

        g <- g + weight_decay * p
        v <- alpha v + (1 - alpha) g**2
        a <- alpha a + (1 - alpha) g and V = v - a**2 if `centered`, otherwise V = v
        b <- momentum * b + g / (sqrt(V) + eps)
        p <- p - rate * b

    The average starts at 0 and is not corrected: first steps are up to
    1 / sqrt(1 - alpha) times the rate. State: v, and a and b where they are used, in
    float32, 4 bytes a parameter each. Equal to torch.optim.RMSprop, decay included,
    except that a V that rounding made negative counts as 0.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        alpha: the decay of v and a, 0 or more.
        eps: what is added to the root of V, 0 or more.
        momentum: the decay of b, from 0 to below 1; 0: no momentum.
        centered: whether V is the variance of the gradients.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        rmsprop_rule(alpha, eps, momentum, centered),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
