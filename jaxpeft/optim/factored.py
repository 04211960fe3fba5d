"""Second moments by row and column, as Adafactor keeps them (Shazeer & Stern, 2018)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Factored(NamedTuple):
    """The moving average of a matrix, known by the means of its rows and columns.

    row: the means over the last axis, the tensor's shape without that axis. column:
    the means over the last axis but one, the shape without that one. Both float32. A
    tensor of three axes or more is a pile of matrices, each with its own means.
    """

    row: Array
    column: Array


# A tensor of fewer than two axes has no rows: its average is kept in full.
Moment = Factored | Array


def zeros(p: Array) -> Moment:
    """The moment of a tensor before the first update."""
    if p.ndim < 2:
        return jnp.zeros_like(p)
    row = jnp.zeros(p.shape[:-1], p.dtype)
    return Factored(row, jnp.zeros(p.shape[:-2] + p.shape[-1:], p.dtype))


def averaged(moment: Moment, value: Array, weight: Array | float) -> Moment:
    """(1 - weight) moment + weight value, of the means or of the tensor itself."""
    keep = 1 - weight
    if not isinstance(moment, Factored):
        return keep * moment + weight * value
    return Factored(
        keep * moment.row + weight * jnp.mean(value, -1),
        keep * moment.column + weight * jnp.mean(value, -2),
    )


def inverse_root(moment: Moment) -> Array:
    """1 / sqrt of the average that the moment stands for, in the tensor's own shape.

    From its means a matrix is taken to be row_i column_j / mean(row).
    """
    if not isinstance(moment, Factored):
        return 1 / jnp.sqrt(moment)
    row = moment.row / jnp.mean(moment.row, -1, keepdims=True)
    return (1 / jnp.sqrt(row))[..., None] * (1 / jnp.sqrt(moment.column))[..., None, :]


def rms(x: Array) -> Array:
    """The root mean square of all entries, ()."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def clipped(u: Array, threshold: float) -> Array:
    """`u`, scaled down where its root mean square is above the threshold."""
    return u / jnp.maximum(1.0, rms(u) / threshold)


def rising_weight(t: Array, decay_rate: float) -> Array:
    """t**decay_rate, () float32: what the newest square weighs, 1 at the first update.

    The average so forgets ever more slowly, and needs no correction of its start.
    """
    return jnp.power(t.astype(jnp.float32), decay_rate)
