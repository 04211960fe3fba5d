"""Frozen kernels in 8-bit floats: e4m3 a weight, a scale for each output channel.

The format of Micikevicius et al., "FP8 Formats for Deep Learning", 2022, as a storage:
products are formed in the dtype of the activations, to which every code converts
exactly. Beside int8, small weights of a column keep their leading digits, and large
ones lose some: three bits of mantissa everywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Float32

from jaxpeft.kernel import Axes

FORMAT = jnp.float8_e4m3fn
LARGEST = np.float32(448)  # that the format has


@struct.dataclass
class FP8:
    """A kernel (*layers, d_in, d_out) in 8 bits a weight.

    Attributes:
        codes: (*layers, d_in, d_out) uint8, the bits of float8_e4m3fn: XLA for CPUs
            would widen a whole stack of floats that it has no operations for.
        scales: (*layers, d_out) float32, what a column's codes are multiplied by: its
            largest magnitude / 448.
        dtype: the dtype of the weights before they were quantized.
    """

    codes: Array
    scales: Array
    dtype: str = struct.field(pytree_node=False, default="bfloat16")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.codes.shape

    def __rmatmul__(self, x: Array) -> Array:
        return _product(x, self)

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The matrix in float32."""
        return self._values(jnp.float32) * self.scales[..., None, :]

    def _values(self, dtype: Any) -> Array:
        """What the codes stand for, before they are scaled; exact in every dtype."""
        return jax.lax.bitcast_convert_type(self.codes, FORMAT).astype(dtype)

    def axes(self, base: Axes) -> "FP8":
        """The logical axes of the arrays, in this structure.

        The codes are split as the matrix is, the scales as its columns.

        Args:
            base: the logical axes of the matrix.
        """
        *layers, _, d_out = base
        return dataclasses.replace(self, codes=tuple(base), scales=(*layers, d_out))


def fp8(matrix: Float[Array, "d_in d_out"], dtype: str) -> FP8:
    """The matrix in 8-bit floats.

    Args:
        matrix: the matrix.
        dtype: the dtype that the matrix has where it is not quantized.
    """
    codes, scales = _quantize(matrix)
    return FP8(codes, scales, dtype)


@jax.jit
def _quantize(matrix: Array) -> tuple[Array, Array]:
    wide = matrix.astype(jnp.float32)
    scales = jnp.max(jnp.abs(wide), axis=0) / LARGEST
    scaled = jnp.where(scales > 0, wide / scales, 0)
    # A quotient may round to a little more than the largest, which has no code.
    codes = jnp.clip(scaled, -LARGEST, LARGEST).astype(FORMAT)
    return jax.lax.bitcast_convert_type(codes, jnp.uint8), scales


@jax.custom_vjp
def _product(x: Array, kernel: FP8) -> Array:
    """`x @ kernel`, of which the backward pass keeps the codes and no matrix."""
    return (x @ kernel._values(x.dtype)) * kernel.scales.astype(x.dtype)


def _forward(x: Array, kernel: FP8) -> tuple[Array, FP8]:
    return _product(x, kernel), kernel


def _backward(kernel: FP8, dy: Array) -> tuple[Array, None]:
    scaled = dy * kernel.scales.astype(dy.dtype)
    return scaled @ kernel._values(dy.dtype).T, None


_product.defvjp(_forward, _backward)
