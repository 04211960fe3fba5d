"""Adapters of several ranks in arrays of one shape, padded with zeros.

The columns of A and the rows of B that a point of a smaller rank does not have are
zero. They add nothing to a product, the gradient of each is a product with the other
and so zero as well, and an optimizer that looks at each element alone leaves them so.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array


def widened(arrays: Sequence[Array]) -> list[Array]:
    """The arrays, each with zeros at the ends of its axes up to the longest ones.

    Args:
        arrays: of several points, of shapes that may differ in their sizes alone.
    """
    shape = tuple(map(max, zip(*(x.shape for x in arrays), strict=True)))
    return [x if x.shape == shape else _widened(x, shape) for x in arrays]


def _widened(x: Array, shape: tuple[int, ...]) -> Array:
    more = [(0, size - own) for size, own in zip(shape, x.shape, strict=True)]
    return jnp.pad(x, more)


def cut(x: Array, like: Any) -> Array:
    """The array without its padding.

    Args:
        x: one of `widened`.
        like: of the shape that it had before.
    """
    return x[tuple(map(slice, like.shape))] if x.shape != like.shape else x
