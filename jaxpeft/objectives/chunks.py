"""The places of a sequence a part at a time, so that few logits are alive at once."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int32

from jaxpeft import hardware

# Logits alive at once, on each part of a batch. On a CPU they stay in its caches; where
# products are fast the head, read anew for each chunk, has to be worth its reading.
CHUNK_LOGITS = 2**21
ROWS_ELSEWHERE = 512  # of a device of which nothing is known


def supervised_first(mask: Bool[Array, "batch seq"]) -> Int32[Array, "batch seq"]:
    """The places of the sequence in each row, the supervised ones first, in order.

    Args:
        mask: whether a place is supervised.
    """
    return jnp.argsort(~mask, axis=1, stable=True)


def permuted(x: Array, order: Int32[Array, "batch seq"]) -> Array:
    """An array with the sequence of each row in another order.

    Args:
        x: (batch, seq, ...).
        order: the places, as `supervised_first` gives them.
    """
    order = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, order, axis=1)


def cut(head: Any, order: Array, hidden: Array, *others: Array) -> tuple:
    """The arrays in `order`, cut along the sequence, which no mesh axis splits.

    Each becomes (chunks, batch, n, ...); the sequence is padded to a whole number of
    chunks with zeros.

    Args:
        head: a kernel (d, vocab), whose width says how long a chunk is.
        order: of the places, (batch, seq) int32.
        hidden: (batch, seq, d).
        others: (batch, seq, ...) each.
    """
    batch, seq, _ = hidden.shape
    length = max(1, min(seq, _rows(head.shape[-1]) // batch))
    count = -(-seq // length)
    if hardware.current().platform == "cpu":
        length = -(-seq // count)  # all alike, for nothing there is a tile

    def part(x: Array) -> Array:
        x = permuted(x, order)
        x = jnp.pad(x, [(0, 0), (0, count * length - seq)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch, count, length, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return tuple(part(x) for x in (hidden, *others))


def joined(x: Array, order: Int32[Array, "batch seq"]) -> Array:
    """Undoes `cut` of one array.

    Args:
        x: (chunks, batch, n, ...).
        order: that it was cut in.

    Returns:
        (batch, seq, ...).
    """
    batch, seq = order.shape
    x = jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:])[:, :seq]
    # A permutation's inverse gathers: XLA's scatter-add would be slower.
    return permuted(x, jnp.argsort(order, axis=1))


def _rows(vocabulary: int) -> int:
    """How many places have logits at once.

    The products of n places with a head take as long as reading it, in bytes of its 16
    bits, where n is the device's FLOP a byte: with twice as many, products decide.
    """
    target = hardware.current()
    if target.platform == "cpu":
        return CHUNK_LOGITS // vocabulary
    device = target.device
    if device is None or not device.bandwidth or not device.in_16_bits:
        return ROWS_ELSEWHERE
    # A power of two near it: what is no whole number of tiles is slower by a tenth.
    fair = 2 * device.in_16_bits / device.bandwidth
    return 2 ** round(math.log2(fair))
