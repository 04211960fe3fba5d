"""AdamW with moments of 8 bits: a code an element, a scale a block."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.adamw import AdamState, adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.quantize_state import Selection
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)
from jaxpeft.quant import Blockwise, dequantize, in_chunks, quantize, zeros


class QuantizedAdamState(NamedTuple):
    """Both moments of one tensor, or in float32 those of one that is not quantized.

    Attributes:
        mu: the moving average of the gradients.
        nu: the moving average of their squares.
    """

    mu: Blockwise | Array
    nu: Blockwise | Array


def quantized_adamw_rule(
    b1: float, b2: float, eps: float, select: Selection, bits: int
) -> Rule:
    """The rule of AdamW whose moments have few bits where `select` takes them.

    Args:
        b1: the decay of the first moment.
        b2: the decay of the second moment.
        eps: what is added to the root of the second moment.
        select: which tensors have quantized moments.
        bits: the bits of a code, 8 or 4.
    """
    whole = adamw_rule(b1, b2, eps)

    def init(p: Array, place: Place) -> QuantizedAdamState:
        size = math.prod(p.shape[place.stacked :])
        # With 4 bits two codes share a byte, and there are no short blocks.
        fits = bits == 8 or size % select.block_size == 0
        if not (fits and select.takes(size, place.name)):
            zero = jnp.zeros(p.shape, jnp.float32)
            return QuantizedAdamState(zero, jnp.copy(zero))
        mu, nu = (
            zeros(
                p.shape,
                signed=signed,
                block_size=select.block_size,
                stacked=place.stacked,
                bits=bits,
            )
            for signed in (True, False)
        )
        return QuantizedAdamState(mu, nu)

    def update(
        g: Array, state: QuantizedAdamState, p: Array, ctx: Context
    ) -> tuple[Array, QuantizedAdamState]:
        def step(g: Array, state: Any, p: Array) -> tuple[Array, AdamState]:
            new, moments = whole.update(g, AdamState(*state), p, ctx)
            return new - p, moments

        def decoded(g: Array, state: Any, p: Array) -> tuple[Array, QuantizedAdamState]:
            change, moments = step(
                g, [x.reshape(p.shape) for x in dequantize(*state)], p
            )
            return change, QuantizedAdamState(
                *(
                    quantize(
                        x,
                        signed=old.signed,
                        block_size=old.block_size,
                        bits=old.bits,
                    )
                    for x, old in zip(moments, state)
                )
            )

        if isinstance(state.mu, Blockwise):
            return in_chunks(decoded, g, state, p, ctx.t > 0, stacked=ctx.place.stacked)
        change, moments = step(g.astype(jnp.float32), state, p.astype(jnp.float32))
        return change, QuantizedAdamState(*moments)

    return Rule(init, update, chunked=True)


@in_range
def adamw_8bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    block_size: int = 256,
    min_quantized_size: int = 4096,
    float32_names: str | None = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """AdamW (see `adamw`) that keeps both moments in 8 bits between the updates.

        m <- b1 decode(m) + (1 - b1) g,  v <- b2 decode(v) + (1 - b2) g**2
        p <- p (1 - rate * weight_decay)
        p <- p - rate / (1 - b1**t) * m / (sqrt(v) / sqrt(1 - b2**t) + eps)

    and then m and v are encoded: each block of `block_size` consecutive elements is
    divided by its largest magnitude, and each element becomes the nearest of 256
    numbers, spaced about logarithmically; linear ones would round small second moments
    to zero, and the step would explode.

    State: a code of m and one of v an element, a float32 scale of each a block; 2.03
    bytes a parameter, and 8 bytes a parameter where a tensor is not quantized. An
    update goes through a tensor in parts: no whole moment exists in float32.

    Equal to bitsandbytes' AdamW8bit (Dettmers et al., 2022) but for the rounding of
    codes, which there depends on the device: its CPU code looks codes up in a table of
    65,536 bins that has no zero, here an element becomes the nearest code, as in its
    CUDA code. An element whose gradient is not finite becomes so itself, and is not
    passed over; what it leaves in the state of its block depends on the backend.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        block_size: elements to a scale, 2 or more.
        min_quantized_size: tensors of fewer elements (a layer of a stack counts alone)
            keep float32 moments.
        float32_names: a regular expression; leaves whose whole names it matches, such
            as ".*embed.*", keep float32 moments. None: no leaf does.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    select = Selection(block_size, min_quantized_size, float32_names).check()
    return transformation(
        quantized_adamw_rule(b1, b2, eps, select, bits=8),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
