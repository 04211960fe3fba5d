"""Tensors in 8 or 4 bits an element, with a float32 scale for each block of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float

from jaxpeft.errors import InputError
from jaxpeft.quant import codebooks

# Of smaller scales 4 times the reciprocal is no float32; such a block is all zero. The
# reciprocals of the largest ones are none without the 4.
_LEAST = np.float32(2.0**-124)


@struct.dataclass
class Blockwise:
    """A tensor as codes of a code book times the scale of their block.

    A block is `block_size` consecutive elements of the flattened tensor; its scale is
    the largest magnitude in it. Where the block size divides the last axis, the scales
    are (..., last / block_size) and both arrays can be sharded like the tensor. Where
    it does not, they are (stacked axes..., ceil(n / block_size)), and the last block
    may be short.

    Attributes:
        codes: uint8, of 8 bits in the tensor's shape, of 4 bits two a byte, the even
            one in the high half: the last axis of the blocks' layout (see `layout`) is
            half as long.
        scales: float32, the largest magnitude of each block.
        signed: whether negative numbers have codes.
        block_size: elements in a block.
        bits: bits in a code, 8 or 4.
        dtype: the tensor's dtype, in which `dequantize` returns it.
    """

    codes: Array
    scales: Array
    signed: bool = struct.field(pytree_node=False)
    block_size: int = struct.field(pytree_node=False)
    bits: int = struct.field(pytree_node=False, default=8)
    dtype: str = struct.field(pytree_node=False, default="float32")

    def dequantize(self) -> Array:
        """The tensor; of 4 bits in the layout of its blocks (see `layout`)."""
        return dequantize(self)[0]

    def _codes(self) -> Array:
        """The codes of all elements, a block a row, the last one filled with zeros."""
        lead, width = self.scales.shape[:-1], self.block_size * self.bits // 8
        codes = self.codes.reshape(*lead, -1)
        short = self.scales.shape[-1] * width - codes.shape[-1]
        codes = _padded(codes, short).reshape(*self.scales.shape, width)
        if self.bits == 4:
            codes = jnp.stack([codes >> 4, codes & 15], -1)
            codes = codes.reshape(*self.scales.shape, self.block_size)
        return codes

    def _tensor(self, values: Array) -> Array:
        """The tensor of the values that the codes stand for."""
        x = values * self.scales[..., None]
        x = x.reshape(*self.scales.shape[:-1], -1).astype(self.dtype)
        if self.bits == 4:
            return x
        count = math.prod(self.codes.shape[self.scales.ndim - 1 :])
        return x[..., :count].reshape(self.codes.shape)


def dequantize(*tensors: Blockwise) -> list[Array]:
    """The tensors that blockwise ones stand for, looked up together.

    Args:
        tensors: the blockwise tensors, all of as many codes.

    Returns:
        What `Blockwise.dequantize` gives for each.
    """
    codes = [x._codes() for x in tensors]
    values = codebooks.decode_all(codes, [(x.signed, x.bits) for x in tensors])
    return [x._tensor(own) for x, own in zip(tensors, values)]


def layout(shape: Sequence[int], block_size: int, stacked: int = 0) -> tuple[int, ...]:
    """The shape in which the last axis of a tensor falls into blocks.

    It is the tensor's own where the block size divides the last axis, else flat: the
    `stacked` leading axes and one axis for the rest.

    Args:
        shape: the tensor's shape.
        block_size: elements in a block.
        stacked: how many leading axes stack tensors that have blocks of their own.
    """
    if len(shape) > stacked and shape[-1] % block_size == 0:
        return tuple(shape)
    return (*shape[:stacked], math.prod(shape[stacked:]))


def zeros(
    shape: Sequence[int],
    *,
    signed: bool,
    block_size: int = 256,
    stacked: int = 0,
    bits: int = 8,
) -> Blockwise:
    """A blockwise tensor of float32 zeros.

    Args:
        shape: the tensor's shape.
        signed: whether negative numbers have codes.
        block_size: elements in a block.
        stacked: how many leading axes stack tensors that have blocks of their own.
        bits: bits in a code, 8 or 4.
    """
    *lead, n = layout(shape, block_size, stacked)
    codes = shape if bits == 8 else (*lead, n * bits // 8)
    scales = (*lead, -(-n // block_size))
    return Blockwise(
        jnp.zeros(codes, jnp.uint8), jnp.zeros(scales), signed, block_size, bits
    )


def quantize(
    x: Float[Array, "*shape"],
    *,
    signed: bool,
    block_size: int = 256,
    stacked: int = 0,
    bits: int = 8,
) -> Blockwise:
    """The blockwise tensor with every element of `x` as the nearest value of its block.

    Of two equally near values an element gets the lower, see `codebooks.encode`.

    Args:
        x: the tensor, of finite numbers, which must not be negative if not `signed`.
        signed: whether negative numbers have codes.
        block_size: elements in a block.
        stacked: how many leading axes stack tensors that have blocks of their own.
        bits: bits in a code, 8 or 4.
    """
    own = layout(x.shape, block_size, stacked)
    flat = x.astype(jnp.float32).reshape(own)
    count = -(-own[-1] // block_size)
    short = count * block_size - own[-1]
    blocks = _padded(flat, short).reshape(*own[:-1], count, block_size)
    scales = jnp.max(jnp.abs(blocks) if signed else blocks, axis=-1)
    inverse = jnp.where(scales < _LEAST, 0, 4 / jnp.maximum(scales, _LEAST))
    codes = codebooks.encode(0.25 * blocks * inverse[..., None], signed, bits)
    if bits == 4:
        codes = codes[..., ::2] << 4 | codes[..., 1::2]
        codes = codes.reshape(*own[:-1], -1)
    else:
        codes = codes.reshape(*own[:-1], -1)[..., : own[-1]].reshape(x.shape)
    return Blockwise(codes, scales, signed, block_size, bits, str(x.dtype))


def check(block_size: Any, min_quantized_size: Any, bits: int = 8) -> None:
    """Refuses settings of an optimizer's quantized state that make no sense.

    Args:
        block_size: what the configuration says of elements in a block.
        min_quantized_size: what it says of the least elements of a quantized tensor.
        bits: bits in a code, 8 or 4.

    Raises:
        InputError: one of the sizes is no whole number in its range.
    """
    problems = []
    odd = bits == 4 and isinstance(block_size, int) and block_size % 2
    if not isinstance(block_size, int) or block_size < 2 or odd:
        wanted = "an even number" if bits == 4 else "a whole number of 2 or more"
        problems.append(
            f"optimizer.block_size: found {block_size!r}; give {wanted}, such as 256"
        )
    if not isinstance(min_quantized_size, int) or min_quantized_size < 1:
        problems.append(
            f"optimizer.min_quantized_size: found {min_quantized_size!r}; give a whole "
            "number of 1 or more, such as 4096"
        )
    if problems:
        raise InputError(*problems)


def _padded(x: Array, short: int) -> Array:
    if not short:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])
