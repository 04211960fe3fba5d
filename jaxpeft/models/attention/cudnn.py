"""Attention of cuDNN, for whole rows without windows or caps, in 16 bits."""

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name


def attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Causal attention of whole sequences to themselves; the softmax is float32.

    Args:
        q: (batch, seq, heads, head_dim), in 16 bits.
        k: (batch, seq, kv_heads, head_dim).
        v: shaped like `k`.
        scale: what the products of queries and keys are multiplied by.

    Returns:
        q's shape and dtype.
    """
    out = jax.nn.dot_product_attention(
        *(checkpoint_name(x, name) for x, name in zip((q, k, v), "qkv")),
        scale=scale,
        is_causal=True,
        implementation="cudnn",
    )
    return checkpoint_name(out, "attention")
