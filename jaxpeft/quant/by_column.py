"""Frozen kernels in 8 bits: a code a weight, a scale for each output channel.

Integers are the vector-wise quantization of Dettmers et al., "LLM.int8()", 2022, with
the codes and values of bitsandbytes (no outliers kept apart). Floats are e4m3, the
format of Micikevicius et al., "FP8 Formats for Deep Learning", 2022, as a storage:
products are formed in the dtype of the activations, to which every code converts
exactly. Beside integers, floats keep the leading digits of a column's small weights and
lose some of the large ones': three bits of mantissa everywhere.
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

_FLOAT = jnp.float8_e4m3fn
_MOST = {"int8": np.float32(127), "fp8": np.float32(448)}  # what the largest becomes


@struct.dataclass
class ByColumn:
    """A kernel (*layers, d_in, d_out) in 8 bits a weight.

    Attributes:
        codes: (*layers, d_in, d_out), integers as int8; floats as uint8, the bits of
            float8_e4m3fn: XLA for CPUs would widen a whole stack of floats that it has
            no operations for.
        largest: (*layers, d_out) float32, the largest magnitude of each column.
        dtype: the dtype of the weights before they were quantized.
    """

    codes: Array
    largest: Array
    dtype: str = struct.field(pytree_node=False, default="bfloat16")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.codes.shape

    def __rmatmul__(self, x: Array) -> Array:
        return _product(x, self)

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The matrix in float32."""
        return self._values(jnp.float32) * self.largest[..., None, :] * self._unit

    @property
    def _unit(self) -> np.float32:
        """What a code of 1 is of a column's largest magnitude."""
        return np.float32(1) / _MOST["int8" if self.codes.dtype == jnp.int8 else "fp8"]

    def _values(self, dtype: Any) -> Array:
        """What the codes stand for, before they are scaled; exact in every dtype."""
        if self.codes.dtype == jnp.int8:
            return self.codes.astype(dtype)
        return jax.lax.bitcast_convert_type(self.codes, _FLOAT).astype(dtype)

    def axes(self, base: Axes) -> "ByColumn":
        """The logical axes of the arrays, in this structure.

        The codes are split as the matrix is, the scales as its columns.

        Args:
            base: the logical axes of the matrix.
        """
        *layers, _, d_out = base
        return dataclasses.replace(self, codes=tuple(base), largest=(*layers, d_out))


def int8(matrix: Float[Array, "d_in d_out"], dtype: str) -> ByColumn:
    """The matrix in 8-bit integers.

    Args:
        matrix: the matrix.
        dtype: the dtype that the matrix has where it is not quantized.
    """
    codes, largest = _integers(matrix)
    return ByColumn(codes, largest, dtype)


def fp8(matrix: Float[Array, "d_in d_out"], dtype: str) -> ByColumn:
    """The matrix in 8-bit floats.

    Args:
        matrix: the matrix.
        dtype: the dtype that the matrix has where it is not quantized.
    """
    codes, largest = _floats(matrix)
    return ByColumn(codes, largest, dtype)


@jax.jit
def _integers(matrix: Array) -> tuple[Array, Array]:
    wide = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=0)
    inverse = jnp.where(largest > 0, _MOST["int8"] / largest, 0.0)
    return jnp.round(wide * inverse).astype(jnp.int8), largest


@jax.jit
def _floats(matrix: Array) -> tuple[Array, Array]:
    wide, most = matrix.astype(jnp.float32), _MOST["fp8"]
    largest = jnp.max(jnp.abs(wide), axis=0)
    scaled = jnp.where(largest > 0, wide / (largest / most), 0)
    # A quotient may round to a little more than the largest, which has no code.
    codes = jnp.clip(scaled, -most, most).astype(_FLOAT)
    return jax.lax.bitcast_convert_type(codes, jnp.uint8), largest


@jax.custom_vjp
def _product(x: Array, kernel: ByColumn) -> Array:
    """`x @ kernel`, of which the backward pass keeps the codes and no matrix."""
    scale = (kernel.largest * kernel._unit).astype(x.dtype)
    return (x @ kernel._values(x.dtype)) * scale


def _forward(x: Array, kernel: ByColumn) -> tuple[Array, ByColumn]:
    return _product(x, kernel), kernel


def _backward(kernel: ByColumn, dy: Array) -> tuple[Array, None]:
    scaled = dy * (kernel.largest * kernel._unit).astype(dy.dtype)
    return scaled @ kernel._values(dy.dtype).T, None


_product.defvjp(_forward, _backward)
