"""Attention of new queries to a cache of keys and values."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxpeft.kernel import product
from jaxpeft.models.attention.blockwise import group, ungroup
from jaxpeft.models.attention.scores import MASKED, Scores


def attend_cached(
    q: Float[Array, "batch new heads head_dim"],
    k: Float[Array, "batch slots kv_heads head_dim"],
    v: Float[Array, "batch slots kv_heads head_dim"],
    visible: Bool[Array, "batch new slots"],
    scores: Scores | None = None,
) -> Float[Array, "batch new heads head_dim"]:
    """Attention of new queries to a cache.

    Args:
        q: the queries, (batch, new, heads, head_dim).
        k: the cache's keys, (batch, slots, kv_heads, head_dim).
        v: the cache's values, shaped like the keys.
        visible: (batch, new, slots) bool, which slots a query sees, the window taken
            into account already.
        scores: as in `attend`; its window is not read.

    Returns:
        (batch, new, heads, head_dim) in q's dtype.
    """
    scores = scores or Scores(q.shape[-1] ** -0.5)
    if scores.softcap is None:
        return jax.nn.dot_product_attention(
            q, k, v, mask=visible[:, None], scale=scores.scale
        )
    grouped = group(q, k.shape[2])
    logits = product("bgrqd,bkgd->bgrqk", grouped, k) * scores.scale
    logits = jnp.where(visible[:, None, None], scores.capped(logits), MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = product("bgrqk,bkgd->bgrqd", weights, v).astype(q.dtype)
    return ungroup(out)
