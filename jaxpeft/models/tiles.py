"""What treats every token alike, computed for a tile of the sequence at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpeft.devices import constraints, per_device


def over(
    function: Callable[[Array, Array | None], Array],
    x: Float[Array, "batch seq hidden"],
    tile: int | None,
) -> Float[Array, "batch seq hidden"]:
    """`function(x)`, of which only a tile's own arrays are in memory at once.

    The backward pass computes a tile's once more, and keeps none. Of sequences that the
    mesh splits, each device takes its own part in tiles.

    Args:
        function: of (batch, any number of tokens, hidden), each token by itself, and
            the number of the tile; None: it is given all of them.
        x: (batch, seq, hidden).
        tile: tokens of a sequence, or of a device's part, at a time; None: all of them.

    Returns:
        x's shape and dtype.
    """
    batch, seq, hidden = x.shape
    parts = per_device.parts(seq)
    own = seq // parts
    if tile is None or own <= tile:
        return function(x, None)
    count = -(-own // tile)
    padded = x.reshape(batch, parts, own, hidden)
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, count * tile - own), (0, 0)))
    tiles = padded.reshape(batch, parts, count, tile, hidden).transpose(2, 0, 1, 3, 4)
    tiles = tiles.reshape(count, batch, parts * tile, hidden)

    def of_tile(tile: tuple[Array, Array]) -> Array:
        number, x = tile
        return constraints.split_sequence(
            function(constraints.split_sequence(x), number)
        )

    # Inside a loop nothing could be shared with the forward pass by mistake.
    out = jax.lax.map(
        jax.checkpoint(of_tile, prevent_cse=False), (jnp.arange(count), tiles)
    )
    out = out.reshape(count, batch, parts, tile, hidden).transpose(1, 2, 0, 3, 4)
    out = out.reshape(batch, parts, count * tile, hidden)[:, :, :own]
    return out.reshape(batch, seq, hidden)
