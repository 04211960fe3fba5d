"""Lion with its momentum in 8 bits: a code an element, a scale a block."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.layout import Layout
from jaxpeft.optim.lion import lion_rule
from jaxpeft.optim.quantize_state import Selection
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)
from jaxpeft.quant import Blockwise, in_chunks, quantize, zeros


class QuantizedLionState(NamedTuple):
    """The momentum of one tensor, in float32 where the tensor is not quantized.

    Attributes:
        mu: the moving average of the gradients.
    """

    mu: Blockwise | Array


def lion_8bit_rule(b1: float, b2: float, select: Selection) -> Rule:
    """The rule of `lion_8bit`.

    Args:
        b1: the weight of the momentum in the direction.
        b2: the decay of the momentum.
        select: which tensors have a quantized momentum.
    """
    whole = lion_rule(b1, b2)

    def init(p: Array, place: Place) -> QuantizedLionState:
        if not select.takes(math.prod(p.shape[place.stacked :]), place.name):
            return QuantizedLionState(jnp.zeros(p.shape, jnp.float32))
        return QuantizedLionState(
            zeros(
                p.shape,
                signed=True,
                block_size=select.block_size,
                stacked=place.stacked,
            )
        )

    def update(
        g: Array, state: QuantizedLionState, p: Array, ctx: Context
    ) -> tuple[Array, QuantizedLionState]:
        def step(g: Array, mu: Array, p: Array) -> tuple[Array, Array]:
            new, mu = whole.update(g, mu, p, ctx)
            return new - p, mu

        def decoded(g: Array, state: Any, p: Array) -> tuple[Array, QuantizedLionState]:
            change, mu = step(g, state.mu.dequantize().reshape(p.shape), p)
            mu = quantize(mu, signed=True, block_size=select.block_size)
            return change, QuantizedLionState(mu)

        if isinstance(state.mu, Blockwise):
            return in_chunks(decoded, g, state, p, ctx.t > 0, stacked=ctx.place.stacked)
        change, mu = step(g.astype(jnp.float32), state.mu, p.astype(jnp.float32))
        return change, QuantizedLionState(mu)

    return Rule(init, update, chunked=True)


@in_range
def lion_8bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    block_size: int = 256,
    min_quantized_size: int = 4096,
    float32_names: str | None = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Lion that keeps its momentum in 8 bits between the updates.

        p <- p (1 - rate * weight_decay)
        p <- p - rate * sign(b1 decode(m) + (1 - b1) g)
        m <- encode(b2 decode(m) + (1 - b2) g)

    Codes and blocks are those of `adamw_8bit`. State: 1.016 bytes a parameter, and 4
    where a tensor is not quantized. An update goes through a tensor in parts: no whole
    momentum exists in float32.

    Equal to bitsandbytes' Lion8bit but for the rounding of codes (see `adamw_8bit`).
    Lion: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the weight of m in the direction, from 0 to below 1.
        b2: the decay of m, from 0 to below 1.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        block_size: elements to a scale, 2 or more.
        min_quantized_size: tensors of fewer elements (a layer of a stack counts alone)
            keep a float32 momentum.
        float32_names: a regular expression; leaves whose whole names it matches keep a
            float32 momentum. None: no leaf does.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    select = Selection(block_size, min_quantized_size, float32_names).check()
    return transformation(
        lion_8bit_rule(b1, b2, select),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
