"""The decoder-only transformer: pure functions over stacked parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft import kernel, sharding
from jaxpeft.models import rope
from jaxpeft.models.attention import Scores, attend, attend_cached
from jaxpeft.models.spec import NORMS, ModelConfig

Params = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
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
    return (hidden @ head(params, cfg)).astype(jnp.float32)


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

    def body(x: Array, layer: tuple[Params, Array]) -> tuple[Array, None]:
        return block(x, *layer), None

    body = jax.checkpoint(body, policy=POLICIES[cfg.remat], prevent_cse=False)
    weights = params["model"]
    x = embed(weights["embed_tokens"], tokens, cfg)
    numbered = weights["layers"], jnp.arange(cfg.num_hidden_layers)
    x, _ = jax.lax.scan(body, x, numbered)
    return norm(x, weights["norm"], cfg)


def make_block(
    cfg: ModelConfig, positions: Array, segments: Array | None
) -> Callable[[Array, Params, Array], Array]:
    """The function (x, weights of one layer, its number) -> x of a whole sequence.

    x: (batch, seq, hidden); positions, segments: see `forward`; number: () int32.
    """
    angles = _angles(positions, cfg)

    def block(x: Array, layer: Params, number: Array) -> Array:
        scores = _scores(cfg, number)

        def attention(q: Array, k: Array, v: Array) -> Array:
            return attend(q, k, v, segments, scores)

        x = sharding.split_batch(x)
        return sharding.split_batch(_layer(x, layer, angles(number), attention, cfg))

    return block


def _angles(
    positions: Array, cfg: ModelConfig
) -> Callable[[Array], tuple[Array, Array]]:
    """The function from a layer's number to the angles that it rotates by."""
    plain = rope.cos_sin(positions, cfg)
    if not any(cfg.rotations):
        return lambda number: plain
    kinds = [plain, plain, (jnp.ones_like(plain[0]), jnp.zeros_like(plain[1]))]
    if cfg.local_rope is not None:
        kinds[1] = rope.cos_sin(positions, cfg, cfg.local_rope)
    cos, sin = (jnp.stack(parts) for parts in zip(*kinds, strict=True))
    kind = jnp.asarray(cfg.rotations)  # -1 is the last: no rotation

    def angles(number: Array) -> tuple[Array, Array]:
        return cos[kind[number]], sin[kind[number]]

    return angles


def _scores(cfg: ModelConfig, number: Array) -> Scores:
    """How the queries of a layer meet the keys."""
    scale = cfg.attention_scale or cfg.head_dim**-0.5
    window, different = None, set(cfg.windows)
    if len(different) == 1:
        [window] = different
    elif different:
        everything = cfg.max_position_embeddings
        window = jnp.asarray([w or everything for w in cfg.windows])[number]
    return Scores(scale, cfg.attention_softcap, window)


def embed(weights: Params, tokens: Array, cfg: ModelConfig) -> Array:
    """What the first layer reads: (batch, seq, hidden), of `embed_tokens`."""
    x = sharding.split_looked_up(weights["embedding"][tokens])
    x = x.astype(cfg.activation_dtype or x.dtype)
    return x if cfg.embedding_scale is None else x * cfg.embedding_scale


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
    back = order[None, :, None] - slots[None, None, :]
    visible = seen[:, None, :] & (back >= 0)
    angles = _angles(positions, cfg)

    def body(x: Array, layer: tuple) -> tuple[Array, tuple[Array, Array]]:
        weights, keys, values, number = layer
        scores = _scores(cfg, number)
        near = visible if scores.window is None else visible & (back < scores.window)
        stored = []

        def attend_stored(q: Array, k: Array, v: Array) -> Array:
            at = (0, start, 0, 0)
            stored.append(jax.lax.dynamic_update_slice(keys, k.astype(keys.dtype), at))
            stored.append(
                jax.lax.dynamic_update_slice(values, v.astype(values.dtype), at)
            )
            return attend_cached(q, stored[0], stored[1], near, scores)

        x = _layer(x, weights, angles(number), attend_stored, cfg)
        return x, (stored[0], stored[1])

    numbers = jnp.arange(cfg.num_hidden_layers)
    layers = (params["model"]["layers"], cache.k, cache.v, numbers)
    x = embed(params["model"]["embed_tokens"], tokens, cfg)
    x, (k, v) = jax.lax.scan(body, x, layers)
    x = x[:, -1:] if last_only else x
    x = norm(x, params["model"]["norm"], cfg)
    logits = (x @ head(params, cfg)).astype(jnp.float32)
    return logits, Cache(k=k, v=v, valid=seen, length=start + new)


@struct.dataclass
class Capped:
    """The kernel whose product is `cap * tanh(x @ kernel / cap)`."""

    kernel: Any
    cap: float = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the kernel."""
        return self.kernel.shape

    def __rmatmul__(self, x: Array) -> Array:
        return self.cap * jnp.tanh((x @ self.kernel) / self.cap)


def head(params: Params, cfg: ModelConfig) -> Any:
    """The kernel (hidden, vocab) that turns hidden states into logits."""
    if "lm_head" in params:
        matrix = params["lm_head"]["kernel"]
    else:
        # Beneath an adapter of the embedding, which the head has no part in.
        table = params["model"]["embed_tokens"]["embedding"]
        matrix = getattr(table, "base", table).T
    return matrix if cfg.logit_softcap is None else Capped(matrix, cfg.logit_softcap)


def norm(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    """Root-mean-square normalisation in float32 (Zhang & Sennrich, 2019)."""
    wide = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + cfg.rms_norm_eps)
    scale = weights["scale"]
    if cfg.norm_offset:
        wide = wide * (cfg.norm_offset + scale.astype(jnp.float32))
        return wide.astype(x.dtype)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def linear(x: Array, weights: Params) -> Array:
    """`x @ kernel + bias`, the bias where there is one."""
    return kernel.linear(x, weights["kernel"], weights.get("bias"))


def _layer(
    x: Array,
    layer: Params,
    angles: tuple[Array, Array],
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Array:
    """x + attention(x), then + mlp(x), with norms around; x is (batch, seq, hidden)."""
    before_attention, after_attention, before_mlp, after_mlp = NORMS[cfg.norms]

    def normed(x: Array, name: str | None) -> Array:
        return x if name is None else norm(x, layer[name], cfg)

    h = normed(x, before_attention)
    h = _self_attention(h, layer["self_attn"], angles, attention, cfg)
    x = checkpoint_name(x + normed(h, after_attention), "residual")
    h = _mlp(normed(x, before_mlp), layer["mlp"], cfg)
    return x + normed(h, after_mlp)


def _self_attention(
    x: Array,
    weights: Params,
    angles: tuple[Array, Array],
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Array:
    batch, seq, _ = x.shape
    if cfg.fused_projections:
        queries = cfg.num_attention_heads * cfg.head_dim
        ends = [queries, queries + cfg.num_key_value_heads * cfg.head_dim]
        q, k, v = jnp.split(linear(x, weights["qkv_proj"]), ends, axis=-1)
    else:
        q, k, v = (linear(x, weights[name]) for name in ("q_proj", "k_proj", "v_proj"))
    if cfg.qk_norm == "whole":
        q, k = norm(q, weights["q_norm"], cfg), norm(k, weights["k_norm"], cfg)
    q, k, v = (y.reshape(batch, seq, -1, cfg.head_dim) for y in (q, k, v))
    if cfg.qk_norm == "head":
        q, k = norm(q, weights["q_norm"], cfg), norm(k, weights["k_norm"], cfg)
    out = attention(rope.rotate(q, *angles), rope.rotate(k, *angles), v)
    return linear(out.reshape(batch, seq, -1), weights["o_proj"])


def _mlp(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    if cfg.fused_projections:
        gate, up = jnp.split(linear(x, weights["gate_up_proj"]), 2, axis=-1)
    else:
        gate, up = linear(x, weights["gate_proj"]), linear(x, weights["up_proj"])
    gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
    return linear(ACTIVATIONS[cfg.hidden_act](gate) * up, weights["down_proj"])
