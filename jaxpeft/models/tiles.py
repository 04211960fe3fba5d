"""What treats every token alike, computed for a tile of the sequence at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def over(
    function: Callable[[Array], Array],
    x: Float[Array, "batch seq hidden"],
    tile: int | None,
) -> Float[Array, "batch seq hidden"]:
    """`function(x)`, of which only a tile's own arrays are in memory at once.

    The backward pass computes a tile's once more, and keeps none.

    Args:
        function: of (batch, any number of tokens, hidden), each token by itself.
        x: (batch, seq, hidden).
        tile: tokens of a sequence at a time; None: all of them.

    Returns:
        x's shape and dtype.
    """
    batch, seq, hidden = x.shape
    if tile is None or seq <= tile:
        return function(x)
    count = -(-seq // tile)
    padded = jnp.pad(x, ((0, 0), (0, count * tile - seq), (0, 0)))
    parts = padded.reshape(batch, count, tile, hidden).swapaxes(0, 1)
    # Inside a loop nothing could be shared with the forward pass by mistake.
    again = jax.checkpoint(function, prevent_cse=False)
    out = jax.lax.map(again, parts).swapaxes(0, 1)
    return out.reshape(batch, count * tile, hidden)[:, :seq]
