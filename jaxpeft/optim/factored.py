"""Second moments by row and column, as Adafactor keeps them (Shazeer & Stern, 2018)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Factored(NamedTuple):
    """The moving average of a matrix, known by the means of its rows and columns.

    A tensor of three axes or more is a pile of matrices, each with its own means.

    Attributes:
        row: float32, the means over the last axis, the tensor's shape without that
            axis.
        column: float32, the means over the last axis but one, the shape without that
            one.
    """

    row: Array
    column: Array


# A tensor of fewer than two axes has no rows: its average is kept in full.
Moment = Factored | Array


def zeros(p: Array) -> Moment:
    """The moment of a tensor before the first update.

    Args:
        p: the tensor, whose dtype the moment gets.
    """
    if p.ndim < 2:
        return jnp.zeros_like(p)
    row = jnp.zeros(p.shape[:-1], p.dtype)
    return Factored(row, jnp.zeros(p.shape[:-2] + p.shape[-1:], p.dtype))


def averaged(moment: Moment, value: Array, weight: Array | float) -> Moment:
    """(1 - weight) moment + weight value, of the means or of the tensor itself.

    Args:
        moment: the average so far.
        value: what enters it, in the tensor's shape.
        weight: how much of it enters, 0 to 1.
    """
    keep = 1 - weight
    if not isinstance(moment, Factored):
        return keep * moment + weight * value
    return Factored(
        keep * moment.row + weight * jnp.mean(value, -1),
        keep * moment.column + weight * jnp.mean(value, -2),
    )


def inverse_root(moment: Moment) -> Array:
    """1 / sqrt of the average that the moment stands for, in the tensor's own shape.

    A matrix is taken to be row_i column_j / mean(row) of its means.

    Args:
        moment: the average, in full or by rows and columns.
    """
    if not isinstance(moment, Factored):
        return 1 / jnp.sqrt(moment)
    row = moment.row / jnp.mean(moment.row, -1, keepdims=True)
    return (1 / jnp.sqrt(row))[..., None] * (1 / jnp.sqrt(moment.column))[..., None, :]


def rms(x: Array) -> Array:
    """The root mean square of all entries of `x`, ()."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def clipped(u: Array, threshold: float) -> Array:
    """`u`, scaled down where its root mean square is above the threshold.

    Args:
        u: the update of a tensor.
        threshold: the highest root mean square, above 0.
    """
    return u / jnp.maximum(1.0, rms(u) / threshold)


def rising_weight(t: Array, decay_rate: float) -> Array:
    """t**decay_rate, () float32: what the newest square weighs, 1 at the first update.

    So the average forgets ever more slowly, and needs no correction of its start.

    Args:
        t: () int32, the number of the update, from 1.
        decay_rate: the power, below 0.
    """
    return jnp.power(t.astype(jnp.float32), decay_rate)
