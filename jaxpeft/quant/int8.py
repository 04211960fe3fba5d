"""Frozen kernels in 8 bits: an integer a weight, a scale for each output channel.

The vector-wise quantization of Dettmers et al., "LLM.int8()", 2022, with the codes and
values of bitsandbytes (no outliers kept apart).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float, Float32

from jaxpeft.kernel import Axes

_STEP = np.float32(1 / 127)


@struct.dataclass
class Int8:
    """A kernel (*layers, d_in, d_out) in 8 bits a weight.

    Attributes:
        codes: (*layers, d_in, d_out) int8.
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
        return self.codes.astype(jnp.float32) * self.largest[..., None, :] * _STEP

    def axes(self, base: Axes) -> "Int8":
        """The logical axes of the arrays, in this structure.

        The codes are split as the matrix is, the scales as its columns.

        Args:
            base: the logical axes of the matrix.
        """
        *layers, _, d_out = base
        return dataclasses.replace(self, codes=tuple(base), largest=(*layers, d_out))


def int8(matrix: Float[Array, "d_in d_out"], dtype: str) -> Int8:
    """The matrix in 8 bits a weight.

    Args:
        matrix: the matrix.
        dtype: the dtype that the matrix has where it is not quantized.
    """
    codes, largest = _quantize(matrix)
    return Int8(codes, largest, dtype)


@jax.jit
def _quantize(matrix: Array) -> tuple[Array, Array]:
    wide = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=0)
    inverse = jnp.where(largest > 0, 127.0 / largest, 0.0)
    return jnp.round(wide * inverse).astype(jnp.int8), largest


@jax.custom_vjp
def _product(x: Array, kernel: Int8) -> Array:
    """`x @ kernel`, of which the backward pass keeps the codes and no matrix."""
    scale = (kernel.largest * _STEP).astype(x.dtype)
    return (x @ kernel.codes.astype(x.dtype)) * scale


def _forward(x: Array, kernel: Int8) -> tuple[Array, Int8]:
    return _product(x, kernel), kernel


def _backward(kernel: Int8, dy: Array) -> tuple[Array, None]:
    scaled = dy * (kernel.largest * _STEP).astype(dy.dtype)
    return scaled @ kernel.codes.astype(dy.dtype).T, None


_product.defvjp(_forward, _backward)
