"""Decoding: new tokens against a cache of the keys and values before them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float32, Int

from jaxpeft.models import past, rope, stacks
from jaxpeft.models.attention import Scores, attend_cached
from jaxpeft.models.head import head
from jaxpeft.models.layer import Params, apply_layer, norm
from jaxpeft.models.past import virtual_count
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.transformer import embed


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, for all layers.

    Attributes:
        k: (layers, batch, slots, kv_heads, head_dim).
        v: shaped like `k`.
        valid: (batch, slots) bool, false where a slot holds padding or nothing yet.
        length: () int32, how many slots are filled.
    """

    k: Array
    v: Array
    valid: Array
    length: Array


def init_cache(cfg: ModelConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """An empty cache for `batch` sequences of at most `slots` tokens, of this dtype."""
    shape = (
        cfg.num_hidden_layers,
        batch,
        slots,
        cfg.num_key_value_heads,
        cfg.head_dim,
    )
    return Cache(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),  # another array: both may be donated
        valid=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


def decode(
    params: Params,
    tokens: Int[Array, "batch new"],
    cfg: ModelConfig,
    cache: Cache,
    *,
    positions: Int[Array, "batch new"],
    valid: Bool[Array, "batch new"],
    last_only: bool = False,
    lengths: Int[Array, " batch"] | None = None,
) -> tuple[Float32[Array, "batch logits vocab"], Cache]:
    """The logits of new tokens given the cache, and the cache with them appended.

    Args:
        params: the model's, with or without adapters.
        tokens: (batch, new) int32.
        cfg: the model's hyperparameters.
        cache: of the tokens before.
        positions: (batch, new) int32, virtual tokens not counted.
        valid: (batch, new) bool, false at padding.
        last_only: only the last token's logits are wanted.
        lengths: (batch,) int32, how many tokens each row has when those are read for
            whose sake these are, virtual tokens not counted; None: these are the last.
            Where `rope.by_length` says so, all of a row are read with the angles of
            one length, or of lengths between the same `rope.switches`.

    Returns:
        The logits, (batch, new, vocab) float32, or (batch, 1, vocab) with `last_only`;
        and the cache.
    """
    count = virtual_count(params["model"])
    if lengths is None:
        lengths = jnp.max(jnp.where(valid, positions, 0), axis=1) + 1
    positions, lengths = positions + count, lengths + count
    x = embed(params["model"]["embed_tokens"], tokens, positions, cfg)
    x, cache = _advance(params, x, cfg, cache, positions, valid, lengths)
    x = x[:, -1:] if last_only else x
    x = norm(x, params["model"]["norm"], cfg)
    return (x @ head(params, cfg)).astype(jnp.float32), cache


def start_cache(
    params: Params,
    cfg: ModelConfig,
    batch: int,
    slots: int,
    dtype: Any,
    lengths: Int[Array, " batch"] | None = None,
) -> Cache:
    """A cache like `init_cache`'s, with room for virtual tokens, and these in it.

    Args:
        params: the model's, with or without adapters.
        cfg: the model's hyperparameters.
        batch: rows.
        slots: tokens of a row that it has room for, beside virtual tokens.
        dtype: of keys and values.
        lengths: (batch,) int32, how many tokens each row will have, as for `decode`;
            None: as few as there are.
    """
    weights = params["model"]
    count = virtual_count(weights)
    cache = init_cache(cfg, batch, count + slots, dtype)
    if not count:
        return cache
    prompt = past.prompt(weights, cfg)
    if prompt is not None:
        lengths = jnp.zeros((batch,), jnp.int32) if lengths is None else lengths
        x = jnp.broadcast_to(prompt, (batch, *prompt.shape[1:]))
        positions = jnp.broadcast_to(jnp.arange(count), (batch, count))
        valid = jnp.ones((batch, count), bool)
        return _advance(params, x, cfg, cache, positions, valid, lengths + count)[1]
    prefix = weights["layers"]["self_attn"]["prefix"]
    heads = cfg.num_key_value_heads, cfg.head_dim
    k, v = (
        jnp.broadcast_to(
            prefix[name].weight.astype(dtype).reshape(-1, 1, count, *heads),
            (cfg.num_hidden_layers, batch, count, *heads),
        )
        for name in ("k", "v")
    )
    return Cache(
        k=cache.k.at[:, :, :count].set(k),
        v=cache.v.at[:, :, :count].set(v),
        valid=cache.valid.at[:, :count].set(True),
        length=jnp.int32(count),
    )


def _advance(
    params: Params,
    x: Array,
    cfg: ModelConfig,
    cache: Cache,
    positions: Array,
    valid: Array,
    lengths: Array,
) -> tuple[Array, Cache]:
    """What the last layer gives of new tokens, and the cache with them appended."""
    start, new = cache.length, x.shape[1]
    seen = jax.lax.dynamic_update_slice(cache.valid, valid, (0, start))
    order = start + jnp.arange(new)
    slots = jnp.arange(cache.valid.shape[1])
    back = order[None, :, None] - slots[None, None, :]
    visible = seen[:, None, :] & (back >= 0)
    count = virtual_count(params["model"])
    if count:  # padding lies between them and the rest, and is no distance
        back = jnp.where(slots < count, positions[..., None] - slots, back)
    angles = rope.by_layer(positions, cfg, lengths[:, None])

    def body(x: Array, layer: tuple) -> tuple[Array, tuple[Array, Array]]:
        weights, keys, values, number = layer
        scores = Scores.of_layer(cfg, number)
        near = visible if scores.window is None else visible & (back < scores.window)
        stored = []

        def attend_stored(q: Array, k: Array, v: Array) -> Array:
            at = (0, start, 0, 0)
            stored.append(jax.lax.dynamic_update_slice(keys, k.astype(keys.dtype), at))
            stored.append(
                jax.lax.dynamic_update_slice(values, v.astype(values.dtype), at)
            )
            return attend_cached(q, stored[0], stored[1], near, scores)

        weights = run.complete(weights, number)
        x = apply_layer(x, weights, angles(number), attend_stored, cfg)
        return x, (stored[0], stored[1])

    run = stacks.whole(params["model"]["layers"], cfg.num_hidden_layers)
    layers = (run.stacked, cache.k, cache.v, run.numbers)
    x, (k, v) = jax.lax.scan(body, x, layers)
    return x, Cache(k=k, v=v, valid=seen, length=start + new)
