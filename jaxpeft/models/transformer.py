"""The decoder-only transformer: pure functions over stacked parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft import sharding
from jaxpeft.models import rope
from jaxpeft.models.attention import attend, attend_cached
from jaxpeft.models.spec import ModelConfig

Params = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}

# What the backward pass of a layer keeps; the rest it computes once more. "none" keeps
# the result of every matrix product: norms and activations cost less to repeat than
# to store. "dots" lets go of the widest ones, "full" of everything but the input.
KEPT = ("q", "k", "v", "attention", "logsumexp", "residual", "low")
POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(*KEPT, "gate", "up"),
    "dots": jax.checkpoint_policies.save_only_these_names(*KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, for all layers.

    k, v: (layers, batch, slots, kv_heads, head_dim); valid: (batch, slots) bool, false
    where a slot holds padding or nothing yet; length: () int32, slots filled.
    """

    k: Array
    v: Array
    valid: Array
    length: Array


def init_cache(cfg: ModelConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """An empty cache for `batch` sequences of at most `slots` tokens."""
    shape = (
        cfg.num_hidden_layers,
        batch,
        slots,
        cfg.num_key_value_heads,
        cfg.head_dim,
    )
    zeros = jnp.zeros(shape, dtype)
    valid = jnp.zeros((batch, slots), bool)
    return Cache(k=zeros, v=zeros, valid=valid, length=jnp.zeros((), jnp.int32))


def forward(
    params: Params,
    tokens: Array,
    cfg: ModelConfig,
    *,
    positions: Array | None = None,
    segments: Array | None = None,
) -> Array:
    """Logits of the next token at every place.

    tokens: (batch, seq) int32; positions: (batch, seq) int32, by default 0, 1, ...;
    segments: (batch, seq) int32, which packed example a token belongs to (0: padding).
    Returns (batch, seq, vocab) float32.
    """
    hidden = hidden_states(params, tokens, cfg, positions=positions, segments=segments)
    return (hidden @ head(params)).astype(jnp.float32)


def hidden_states(
    params: Params,
    tokens: Array,
    cfg: ModelConfig,
    *,
    positions: Array | None = None,
    segments: Array | None = None,
) -> Array:
    """The normalised last hidden states, (batch, seq, hidden): what the head reads."""
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    block = make_block(cfg, positions, segments)

    def body(x: Array, layer: Params) -> tuple[Array, None]:
        return block(x, layer), None

    body = jax.checkpoint(body, policy=POLICIES[cfg.remat], prevent_cse=False)
    weights = params["model"]
    x = embed(weights["embed_tokens"], tokens, cfg)
    x, _ = jax.lax.scan(body, x, weights["layers"])
    return rms_norm(x, weights["norm"]["scale"], cfg.rms_norm_eps)


def make_block(
    cfg: ModelConfig, positions: Array, segments: Array | None
) -> Callable[[Array, Params], Array]:
    """The function (x, weights of one layer) -> x of a whole sequence.

    x: (batch, seq, hidden); positions, segments: see `forward`.
    """
    angles = rope.cos_sin(positions, cfg)

    def attention(q: Array, k: Array, v: Array) -> Array:
        return attend(q, k, v, segments)

    def block(x: Array, layer: Params) -> Array:
        x = sharding.split_batch(x)
        return sharding.split_batch(_layer(x, layer, angles, attention, cfg))

    return block


def embed(weights: Params, tokens: Array, cfg: ModelConfig) -> Array:
    """What the first layer reads: (batch, seq, hidden), of `embed_tokens`."""
    x = sharding.split_looked_up(weights["embedding"][tokens])
    return x.astype(cfg.activation_dtype or x.dtype)


def decode(
    params: Params,
    tokens: Array,
    cfg: ModelConfig,
    cache: Cache,
    *,
    positions: Array,
    valid: Array,
    last_only: bool = False,
) -> tuple[Array, Cache]:
    """Logits of new tokens given the cache, and the cache with them appended.

    tokens, positions: (batch, new) int32; valid: (batch, new) bool, false at padding.
    Returns ((batch, new, vocab) float32, cache); with `last_only` the logits of the
    last token alone, (batch, 1, vocab).
    """
    start, new = cache.length, tokens.shape[1]
    seen = jax.lax.dynamic_update_slice(cache.valid, valid, (0, start))
    order = start + jnp.arange(new)
    slots = jnp.arange(cache.valid.shape[1])
    visible = seen[:, None, :] & (slots[None, None, :] <= order[None, :, None])
    angles = rope.cos_sin(positions, cfg)

    def body(x: Array, layer: tuple) -> tuple[Array, tuple[Array, Array]]:
        weights, keys, values = layer
        stored = []

        def attend_stored(q: Array, k: Array, v: Array) -> Array:
            at = (0, start, 0, 0)
            stored.append(jax.lax.dynamic_update_slice(keys, k.astype(keys.dtype), at))
            stored.append(
                jax.lax.dynamic_update_slice(values, v.astype(values.dtype), at)
            )
            return attend_cached(q, stored[0], stored[1], visible)

        x = _layer(x, weights, angles, attend_stored, cfg)
        return x, (stored[0], stored[1])

    layers = (params["model"]["layers"], cache.k, cache.v)
    x = embed(params["model"]["embed_tokens"], tokens, cfg)
    x, (k, v) = jax.lax.scan(body, x, layers)
    x = x[:, -1:] if last_only else x
    x = rms_norm(x, params["model"]["norm"]["scale"], cfg.rms_norm_eps)
    logits = (x @ head(params)).astype(jnp.float32)
    return logits, Cache(k=k, v=v, valid=seen, length=start + new)


def head(params: Params) -> Any:
    """The kernel (hidden, vocab) that turns hidden states into logits."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["model"]["embed_tokens"]["embedding"].T


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square normalisation in float32 (Zhang & Sennrich, 2019)."""
    wide = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(variance + eps)).astype(x.dtype) * scale.astype(
        x.dtype
    )


def linear(x: Array, weights: Params) -> Array:
    """`x @ kernel + bias`, the bias where there is one."""
    y = x @ weights["kernel"]
    return y + weights["bias"].astype(y.dtype) if "bias" in weights else y


def _layer(
    x: Array,
    layer: Params,
    angles: tuple[Array, Array],
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Array:
    """x + attention(norm(x)), then + mlp(norm(x)); x is (batch, seq, hidden)."""
    h = rms_norm(x, layer["input_layernorm"]["scale"], cfg.rms_norm_eps)
    x = x + _self_attention(h, layer["self_attn"], angles, attention, cfg)
    x = checkpoint_name(x, "residual")
    h = rms_norm(x, layer["post_attention_layernorm"]["scale"], cfg.rms_norm_eps)
    return x + _mlp(h, layer["mlp"], cfg)


def _self_attention(
    x: Array,
    weights: Params,
    angles: tuple[Array, Array],
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Array:
    batch, seq, _ = x.shape

    def heads(name: str) -> Array:  # (batch, seq, heads, head_dim)
        return linear(x, weights[name]).reshape(batch, seq, -1, cfg.head_dim)

    q, k = rope.rotate(heads("q_proj"), *angles), rope.rotate(heads("k_proj"), *angles)
    out = attention(q, k, heads("v_proj"))
    return linear(out.reshape(batch, seq, -1), weights["o_proj"])


def _mlp(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    gate = checkpoint_name(linear(x, weights["gate_proj"]), "gate")
    up = checkpoint_name(linear(x, weights["up_proj"]), "up")
    return linear(ACTIVATIONS[cfg.hidden_act](gate) * up, weights["down_proj"])
