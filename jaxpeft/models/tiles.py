"""What treats every token alike, computed for a tile of the sequence at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpeft.devices import sharding

from jaxpeft.devices import constraints, per_device


def over(
    function: Callable[[Array], Array],
    x: Float[Array, "batch seq hidden"],
    tile: int | None,
) -> Float[Array, "batch seq hidden"]:
    """`function(x)`, of which only a tile's own arrays are in memory at once.

    The backward pass computes a tile's once more, and keeps none. Of sequences that the
    mesh splits, each device takes its own part in tiles.

    Args:
        function: of (batch, any number of tokens, hidden), each token by itself.
        x: (batch, seq, hidden).
        tile: tokens of a sequence, or of a device's part, at a time; None: all of them.

    Returns:
        x's shape and dtype.
    """
    batch, seq, hidden = x.shape
    # Of a sequence that is split over devices, each takes tiles of its own part.
    parts = sharding.axis_sizes().get("context", 1)
    parts = parts if seq % parts == 0 else 1
    own = seq // parts
    if tile is None or own <= tile:
        return function(x)
    count = -(-own // tile)
    split = x.reshape(batch, parts, own, hidden)
    split = jnp.pad(split, ((0, 0), (0, 0), (0, count * tile - own), (0, 0)))
    split = jnp.moveaxis(split.reshape(batch, parts, count, tile, hidden), 2, 0)
    # Inside a loop nothing could be shared with the forward pass by mistake.
    again = jax.checkpoint(function, prevent_cse=False)
    out = jax.lax.map(again, split.reshape(count, batch, parts * tile, hidden))
    out = jnp.moveaxis(out.reshape(count, batch, parts, tile, hidden), 0, 2)
    out = out.reshape(batch, parts, count * tile, hidden)[:, :, :own]
    return out.reshape(batch, seq, hidden)
