"""Dynamic loss scaling, without which float16 loses small gradients.

What is smaller than 6e-8 is 0 in float16. So the loss is multiplied before the backward
pass and the gradients are divided after it, by a factor that follows what it meets
(Micikevicius et al., 2018), by the rules and numbers of `torch.amp.GradScaler`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

INITIAL = 2.0**16
GROWTH = 2.0
BACKOFF = 0.5
INTERVAL = 2000  # good steps in a row, after which the scale grows
# GradScaler goes on below it; but there is nothing to gain by a loss made smaller.
SMALLEST = 1.0


class LossScale(NamedTuple):
    """The scale of a run's loss, and how it came to it.

    Attributes:
        scale: () float32, what the loss of the next step is multiplied by.
        good: () int32, the finite steps since the scale last changed.
    """

    scale: Array
    good: Array


def initial() -> LossScale:
    """The scale of the first step."""
    return LossScale(jnp.float32(INITIAL), jnp.int32(0))


def after(scaled: LossScale, finite: Array) -> LossScale:
    """The scale after a step: half of it after an overflow, in time twice as much.

    Args:
        scaled: that the step was taken with.
        finite: () bool, whether its loss and its gradient were.
    """
    good = jnp.where(finite, scaled.good + 1, 0)
    grows = good >= INTERVAL
    more = scaled.scale * GROWTH
    grown = jnp.where(grows & jnp.isfinite(more), more, scaled.scale)
    less = jnp.maximum(scaled.scale * BACKOFF, SMALLEST)
    return LossScale(
        scale=jnp.where(finite, grown, less), good=jnp.where(grows, 0, good)
    )


def is_fault(scaled: LossScale, value: Array) -> Array:
    """Whether a step that is not finite says more than that its scale was too large.

    Args:
        scaled: that the step was taken with.
        value: () float32, its loss, which no scale changes.
    """
    return ~jnp.isfinite(value) | (scaled.scale <= SMALLEST)


def gradient(
    loss_of: Callable[..., tuple[Array, tuple]], scaled: LossScale, parts: int
) -> Callable[..., tuple[tuple[Array, tuple], Any]]:
    """`jax.value_and_grad(loss_of, has_aux=True)`, its backward pass scaled.

    What is scaled is the mean loss of a step, as in torch: of a sum over thousands of
    tokens the gradients would not fit at any scale worth having.

    Args:
        loss_of: (params, ...) -> (the summed loss, (its weight, ...)).
        scaled: the scale.
        parts: the micro-batches of the step, each of which is taken for an equal share.

    Returns:
        The function (params, ...) -> (what `loss_of` returns, the gradients of the
            summed loss in the dtypes of `params`, which are float32).
    """

    def take(params: Any, *others: Any) -> tuple[tuple[Array, tuple], Any]:
        total, back, rest = jax.vjp(
            lambda params: loss_of(params, *others), params, has_aux=True
        )
        weight = rest[0]
        share = parts * jnp.where(weight > 0, weight, 1.0)
        (grads,) = back(scaled.scale / share)
        unscaled = jax.tree.map(lambda g: g * (share / scaled.scale), grads)
        return (total, rest), unscaled

    return take
