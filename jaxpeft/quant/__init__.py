"""Numbers in few bits: the states of optimizers, and frozen kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import hardware
from jaxpeft.quant.blockwise import Blockwise, dequantize, quantize, zeros
from jaxpeft.quant.by_column import ByColumn, fp8, int8
from jaxpeft.quant.chunks import in_chunks
from jaxpeft.quant.nf4 import NF4, nf4, nf4_single

# How a frozen kernel may be stored: (a (d_in, d_out) matrix, its dtype) -> its node.
KERNELS: dict[str, Callable[[Array, str], Any]] = {
    "fp8": fp8,
    "int8": int8,
    "nf4": nf4,
    "nf4_single": nf4_single,
}

__all__ = [
    "KERNELS",
    "NF4",
    "Blockwise",
    "ByColumn",
    "dequantize",
    "fp8",
    "held",
    "in_chunks",
    "int8",
    "nf4",
    "nf4_single",
    "quantize",
    "shapes",
    "zeros",
]


def held(node: Any, target: hardware.Target) -> Any:
    """A kernel as the programs of a target read it, of the same values.

    Args:
        node: a quantized kernel.
        target: what the programs run on.
    """
    if isinstance(node, NF4):
        return node.in_rows() if target.platform == "cpu" else node.in_words()
    return node


def shapes(
    kind: str,
    shape: tuple[int, ...],
    dtype: str,
    target: hardware.Target | None = None,
) -> Any:
    """The node that a kernel becomes when it is quantized, of shapes alone.

    Args:
        kind: one of `KERNELS`.
        shape: the kernel's shape, (*layers, d_in, d_out).
        dtype: the kernel's dtype.
        target: what it is held for, see `held`; None: the current one.

    Returns:
        The node, with a `jax.ShapeDtypeStruct` in the place of each array.
    """
    there = target or hardware.current()

    def make(matrix: Array) -> Any:
        return held(KERNELS[kind](matrix, dtype), there)

    for _ in shape[:-2]:
        make = jax.vmap(make)
    return jax.eval_shape(make, jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))
