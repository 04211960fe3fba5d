"""Frozen kernels in 4 bits: NormalFloat, its scales quantized again or in float32.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, in the layout
and with the values of bitsandbytes: blocks of 64 weights along the input, whose largest
magnitudes, less their mean, are stored in 8 bits with a scale for each 256 of them.
Accelerators hold the same codes in words of eight, see `in_words`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Float32

from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes
from jaxpeft.quant import codebooks

BLOCK, SCALES_BLOCK = 64, 256
# The 16 quantiles of a normal distribution, scaled to [-1, 1]; bitsandbytes' digits.
VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_BOUNDS = (VALUES[:-1] + VALUES[1:]) / np.float32(2)


@struct.dataclass
class NF4:
    """A kernel (*layers, d_in, d_out) in 4.13 bits a weight, or 4.5.

    Attributes:
        codes: (*layers, d_out, d_in / 2) uint8, two weights a byte, the even one in the
            high half; in words (*layers, d_in / 8, d_out) int32.
        scales: (*layers, d_out, d_in / 64) uint8, codes of the blocks' largest
            magnitudes; without double quantization float32, those magnitudes.
        scales_max: (*layers, n) float32, the largest magnitude of each 256 of the
            blocks' largest magnitudes, less `offset`; None without double quantization.
        offset: (*layers,) float32, the mean of the blocks' largest magnitudes; None
            without double quantization.
        dtype: the dtype of the weights before they were quantized, and of the products'
            operand.
        words: whether the codes are in words.
    """

    codes: Array
    scales: Array
    scales_max: Array | None = None
    offset: Array | None = None
    dtype: str = struct.field(pytree_node=False, default="bfloat16")
    words: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        if self.words:
            *layers, eighth, d_out = self.codes.shape
            return (*layers, 8 * eighth, d_out)
        *layers, d_out, half = self.codes.shape
        return (*layers, 2 * half, d_out)

    def __rmatmul__(self, x: Array) -> Array:
        return _product(x, self)

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The matrix that products are formed with, in float32."""
        if self.words:
            return self._matrix().astype(jnp.float32)
        return jnp.swapaxes(self._rows(), -1, -2).astype(jnp.float32)

    def in_words(self) -> "NF4":
        """The same kernel with its codes in words, as accelerators take them.

        A word holds eight weights of one output, its lowest bits the first one. Those
        of a block lie in eight words below each other, weight 8 n + r of the block at
        bit 4 n of word r: outputs stand beside each other, so that a TPU turns a tile
        of words into a tile of the matrix without moving anything within it. Of bytes
        it would copy all layers first, and spread every scale over 64 lanes.
        """
        if self.words:
            return self
        return dataclasses.replace(self, codes=_in_words(self.codes), words=True)

    def in_rows(self) -> "NF4":
        """The same kernel with its codes in bytes, as bitsandbytes stores them."""
        if not self.words:
            return self
        return dataclasses.replace(self, codes=_in_rows(self.codes), words=False)

    def axes(self, base: Axes) -> "NF4":
        """The logical axes of the arrays, in this structure.

        Codes and scales are split as the matrix is; the few numbers are whole.

        Args:
            base: the logical axes of the matrix.
        """
        *layers, d_in, d_out = base
        double = self.offset is not None
        return dataclasses.replace(
            self,
            codes=tuple(base) if self.words else (*layers, d_out, d_in),
            scales=(*layers, d_out, d_in),
            scales_max=(*layers, None) if double else None,
            offset=tuple(layers) if double else None,
        )

    def _rows(self) -> Array:
        """The matrix transposed, (*layers, d_out, d_in), in `dtype`."""
        *layers, d_out, half = self.codes.shape
        values = jnp.stack([_value(self.codes >> 4), _value(self.codes & 15)], -1)
        blocks = values.reshape(*layers, d_out, 2 * half // BLOCK, BLOCK)
        rows = blocks * self._largest()[..., None]
        return rows.reshape(*layers, d_out, 2 * half).astype(self.dtype)

    def _matrix(self) -> Array:
        """The matrix of codes in words, (*layers, d_in, d_out), in `dtype`."""
        *layers, d_in, d_out = self.shape
        words = self.codes.reshape(*layers, d_in // BLOCK, 1, 8, d_out)
        values = _value(words >> (4 * jnp.arange(8)[:, None, None]))
        scales = jnp.swapaxes(self._largest(), -1, -2)[..., None, None, :]
        blocks = (values * scales).astype(self.dtype)
        # Without it XLA writes scales and codes spread to the matrix's size in float32,
        # to decode within a product, once for each product.
        blocks = jax.lax.optimization_barrier(blocks)
        return blocks.reshape(*layers, d_in, d_out)

    def _largest(self) -> Array:
        """The largest magnitude of each block, (*layers, d_out, d_in / 64) float32."""
        if self.scales_max is None or self.offset is None:
            return self.scales
        values = codebooks.decode(self.scales, signed=True)
        lead = self.offset.shape
        flat = values.reshape(*lead, -1)
        count = flat.shape[-1]
        largest = jnp.repeat(self.scales_max, SCALES_BLOCK, axis=-1)[..., :count]
        flat = flat * largest + self.offset[..., None]
        return flat.reshape(self.scales.shape)


def nf4(matrix: Float[Array, "d_in d_out"], dtype: str) -> NF4:
    """The matrix in 4 bits a weight, with double quantization.

    Args:
        matrix: the matrix.
        dtype: the dtype that products are to be formed in.

    Raises:
        InputError: d_in is no multiple of 64, the length of a block.
    """
    codes, largest = _quantize(_blocks(matrix))
    return NF4(codes, *_quantize_scales(largest), dtype=dtype)


def nf4_single(matrix: Float[Array, "d_in d_out"], dtype: str) -> NF4:
    """The matrix in 4 bits a weight, without double quantization.

    The scales stay in float32, as bitsandbytes leaves them where
    `bnb_4bit_use_double_quant` is false, its default.

    Args:
        matrix: the matrix.
        dtype: the dtype that products are to be formed in.

    Raises:
        InputError: d_in is no multiple of 64, the length of a block.
    """
    return NF4(*_quantize(_blocks(matrix)), dtype=dtype)


def _blocks(matrix: Array) -> Array:
    """The matrix transposed, (d_out, d_in / 64, 64).

    bitsandbytes goes through the whole matrix, so that its blocks pass from one row to
    the next where 64 does not divide d_in. Such a matrix could neither be split over
    devices nor have its layers' rows apart, and models hardly have any.
    """
    d_in, d_out = matrix.shape
    if d_in % BLOCK:
        raise InputError(
            f"model.quantization: nf4 needs matrices whose input is a multiple of "
            f"{BLOCK}, found {d_in} x {d_out}: a block of {BLOCK} weights has one "
            "scale and would span two outputs; use int8, or leave it out with "
            "model.quantization_skip"
        )
    return matrix.T.reshape(d_out, d_in // BLOCK, BLOCK)


@jax.jit
def _quantize(blocks: Array) -> tuple[Array, Array]:
    """Codes, two a byte, (d_out, d_in / 2), and largest magnitudes, (d_out, blocks)."""
    blocks = blocks.astype(jnp.float32)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    scaled = blocks * jnp.where(largest > 0, 1.0 / largest, 0.0)[..., None]
    codes = sum((scaled > bound).astype(jnp.uint8) for bound in _BOUNDS)
    assert isinstance(codes, Array)
    codes = codes.reshape(blocks.shape[0], -1)
    return codes[:, ::2] << 4 | codes[:, 1::2], largest


@jax.jit
def _quantize_scales(largest: Array) -> tuple[Array, Array, Array]:
    """The fields `scales`, `scales_max` and `offset` of an `NF4`."""
    offset = jnp.mean(largest)
    flat = (largest - offset).reshape(-1)
    count = -(-flat.size // SCALES_BLOCK)
    flat = jnp.pad(flat, (0, count * SCALES_BLOCK - flat.size))
    flat = flat.reshape(count, SCALES_BLOCK)
    scales_max = jnp.max(jnp.abs(flat), axis=-1)
    inverse = jnp.where(scales_max > 0, 1.0 / scales_max, 0.0)
    scales = codebooks.encode(flat * inverse[:, None], signed=True)
    return scales.reshape(-1)[: largest.size].reshape(largest.shape), scales_max, offset


def _value(code: Array) -> Array:
    """The value of each code, by its bits: faster than lookups on every backend."""
    # Values that depend on the code, to JAX's eyes: else a scan over layers would carry
    # each of them, filled to a matrix's size, from the forward to the backward pass.
    none = (code & 0).astype(jnp.float32)
    options: list[Any] = [none + value for value in VALUES]
    for bit in range(4):
        chosen = (code >> bit) & 1 == 1
        pairs = zip(options[::2], options[1::2], strict=True)
        options = [jnp.where(chosen, high, low) for low, high in pairs]
    return options[0]


@jax.jit
def _in_words(codes: Array) -> Array:
    """Codes in bytes, (*layers, d_out, d_in / 2), as words."""
    *layers, d_out, half = codes.shape
    wide = codes.astype(jnp.int32)
    wide = jnp.stack([wide >> 4, wide & 15], -1)
    wide = wide.reshape(*layers, d_out, 2 * half // BLOCK, 8, 8)
    words = jnp.sum(wide << (4 * jnp.arange(8)[:, None]), axis=-2)
    return jnp.swapaxes(words.reshape(*layers, d_out, half // 4), -1, -2)


@jax.jit
def _in_rows(words: Array) -> Array:
    """Codes in words, (*layers, d_in / 8, d_out), as bytes."""
    *layers, eighth, d_out = words.shape
    words = jnp.swapaxes(words, -1, -2).reshape(*layers, d_out, eighth // 8, 1, 8)
    codes = (words >> (4 * jnp.arange(8)[:, None])) & 15
    codes = codes.reshape(*layers, d_out, 4 * eighth, 2).astype(jnp.uint8)
    return codes[..., 0] << 4 | codes[..., 1]


@jax.custom_vjp
def _product(x: Array, kernel: NF4) -> Array:
    """`x @ kernel`, of which the backward pass keeps the codes and no matrix."""
    if kernel.words:
        return x @ kernel._matrix().astype(x.dtype)
    rows = kernel._rows().astype(x.dtype)
    return jnp.einsum("...i,oi->...o", x, rows)


def _forward(x: Array, kernel: NF4) -> tuple[Array, NF4]:
    return _product(x, kernel), kernel


def _backward(kernel: NF4, dy: Array) -> tuple[Array, None]:
    if kernel.words:
        matrix = kernel._matrix().astype(dy.dtype)
        return jnp.einsum("...o,io->...i", dy, matrix), None
    return jnp.einsum("...o,oi->...i", dy, kernel._rows().astype(dy.dtype)), None


_product.defvjp(_forward, _backward)
