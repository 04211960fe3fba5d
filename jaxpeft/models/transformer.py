"""The decoder-only transformer: pure functions over stacked parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Float32, Int

from jaxpeft.devices import sharding
from jaxpeft.models import rope, stacks
from jaxpeft.models.attention import Scores, attend, attend_cached
from jaxpeft.models.head import head
from jaxpeft.models.layer import Angles, Params, apply_layer, norm
from jaxpeft.models.spec import ModelConfig

Past = tuple[Array, Array]  # keys and values that precede a sequence

# What the backward pass of a layer keeps; the rest it computes once more. "none" keeps
# the result of every matrix product: norms and activations cost less to repeat than
# to store. "dots" lets go of the widest ones, "full" of everything but the input.
KEPT = ("q", "k", "v", "attention", "logsumexp", "residual", "low")
POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(*KEPT, "gate", "up", "down"),
    "dots": jax.checkpoint_policies.save_only_these_names(*KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


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


def forward(
    params: Params,
    tokens: Int[Array, "batch seq"],
    cfg: ModelConfig,
    *,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
) -> Float32[Array, "batch seq vocab"]:
    """The logits of the next token after every token.

    Args:
        params: the model's, with or without adapters.
        tokens: (batch, seq) int32.
        positions: (batch, seq) int32, by default 0, 1, ...
        segments: (batch, seq) int32, which packed example a token belongs to (0:
            padding); None: each row is one sequence.

    Returns:
        (batch, seq, vocab) float32.
    """
    hidden = hidden_states(params, tokens, cfg, positions=positions, segments=segments)
    return (hidden @ head(params, cfg)).astype(jnp.float32)


def hidden_states(
    params: Params,
    tokens: Int[Array, "batch seq"],
    cfg: ModelConfig,
    *,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq hidden"]:
    """The normalised last hidden states, which the head reads.

    The arguments are those of `forward`.

    Returns:
        (batch, seq, hidden) in the dtype of the activations.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    weights = params["model"]
    positions = positions + virtual_count(weights)
    block = make_block(cfg, positions, segments)
    prompt = _prompt(weights, cfg)
    before = None if prompt is None else _prompt_block(prompt.shape[1], cfg)

    def body(
        run: stacks.Span, carry: tuple, layer: tuple[Params, Array]
    ) -> tuple[tuple, None]:
        (x, prompt), number = carry, layer[1]
        own = run.complete(*layer)
        past = _prefix(own, cfg, x.dtype)
        if before is not None:
            prompt, past = before(prompt, own, number)
        return (block(x, own, number, past), prompt), None

    carry = embed(weights["embed_tokens"], tokens, positions, cfg), prompt
    for run in stacks.spans(weights["layers"], cfg.num_hidden_layers):
        # Outside of it, one layer read from a frozen stack would be kept.
        block_of = jax.checkpoint(
            functools.partial(body, run),
            policy=POLICIES[cfg.remat],
            prevent_cse=False,
        )
        carry, _ = jax.lax.scan(block_of, carry, (run.stacked, run.numbers))
    return norm(carry[0], weights["norm"], cfg)


def virtual_count(weights: Params) -> int:
    """How many virtual tokens precede every sequence, given `params["model"]`."""
    if "prompt" in weights:
        return weights["prompt"]["tokens"].shape[-2]
    prefix = weights["layers"]["self_attn"].get("prefix")
    return 0 if prefix is None else prefix["k"].shape[-2]


def _prompt(weights: Params, cfg: ModelConfig) -> Array | None:
    """What the first layer reads of the virtual tokens, (1, n, hidden)."""
    if "prompt" not in weights:
        return None
    table, prompt = weights["embed_tokens"], weights["prompt"]["tokens"].weight
    dtype = cfg.activation_dtype or table["embedding"].dtype
    if cfg.position_embedding == "learned":
        prompt = prompt + table["positions"][: prompt.shape[0]]
    return prompt.astype(dtype)[None]


def _prompt_block(count: int, cfg: ModelConfig) -> Callable[..., tuple]:
    """The function (prompt, weights of a layer, its number) -> (prompt, its past)."""
    angles = _angles(jnp.arange(count)[None], cfg)

    def block(x: Array, layer: Params, number: Array) -> tuple[Array, Past]:
        scores, kept = _scores(cfg, number), []

        def attention(q: Array, k: Array, v: Array) -> Array:
            kept.append((k, v))
            return attend(q, k, v, None, scores)

        x = apply_layer(x, layer, angles(number), attention, cfg)
        return x, kept[0]

    return block


def _prefix(layer: Params, cfg: ModelConfig, dtype: Any) -> Past | None:
    """The trained keys and values of a layer, each (1, n, kv_heads, head_dim)."""
    prefix = layer["self_attn"].get("prefix")
    if prefix is None:
        return None
    k, v = (
        prefix[name].weight.astype(dtype).reshape(1, -1, *_heads(cfg))
        for name in ("k", "v")
    )
    return k, v


def _heads(cfg: ModelConfig) -> tuple[int, int]:
    return cfg.num_key_value_heads, cfg.head_dim


def _after(past: Array, new: Array) -> Array:
    """`new` (batch, seq, ...) with the (1, n, ...) that precede every row."""
    before = jnp.broadcast_to(past, (new.shape[0], *past.shape[1:]))
    return jnp.concatenate([before.astype(new.dtype), new], axis=1)


def make_block(
    cfg: ModelConfig, positions: Array, segments: Array | None
) -> Callable[..., Array]:
    """The function (x, weights of one layer, its number) -> x of a whole sequence.

    Positions and segments are those of `forward`. The function's x is (batch, seq,
    hidden), the number () int32. It also takes the keys and values of what precedes
    every sequence, each (1, n, kv_heads, head_dim), if anything does.
    """
    angles = _angles(positions, cfg)

    def block(
        x: Array, layer: Params, number: Array, past: Past | None = None
    ) -> Array:
        scores = _scores(cfg, number)

        def attention(q: Array, k: Array, v: Array) -> Array:
            if past is not None:
                k, v = _after(past[0], k), _after(past[1], v)
            return attend(q, k, v, segments, scores)

        x = sharding.split_batch(x)
        return sharding.split_batch(
            apply_layer(x, layer, angles(number), attention, cfg)
        )

    return block


def _angles(positions: Array, cfg: ModelConfig) -> Callable[[Array], Angles]:
    """The function from a layer's number to the angles that it rotates by."""
    if cfg.position_embedding == "learned":
        return lambda number: None
    plain = rope.cos_sin(positions, cfg)
    if not any(cfg.rotations):
        return lambda number: plain
    kinds = [plain, plain, (jnp.ones_like(plain[0]), jnp.zeros_like(plain[1]))]
    if cfg.local_rope is not None:
        kinds[1] = rope.cos_sin(positions, cfg, cfg.local_rope)
    cos, sin = (jnp.stack(parts) for parts in zip(*kinds, strict=True))
    kind = jnp.asarray(cfg.rotations)  # -1 is the last: no rotation

    def angles(number: Array) -> Angles:
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


def embed(weights: Params, tokens: Array, positions: Array, cfg: ModelConfig) -> Array:
    """What the first layer reads: the tokens' embeddings, scaled as the family does.

    Args:
        weights: of the module `embed_tokens`.
        tokens: (batch, seq) int32.
        positions: (batch, seq) int32, read where the embedding of places is learned.

    Returns:
        (batch, seq, hidden) in the dtype of the activations.
    """
    x = sharding.split_looked_up(weights["embedding"][tokens])
    if "positions" in weights:
        x = x + sharding.split_looked_up(weights["positions"][positions])
    x = x.astype(cfg.activation_dtype or x.dtype)
    return x if cfg.embedding_scale is None else x * cfg.embedding_scale


def decode(
    params: Params,
    tokens: Int[Array, "batch new"],
    cfg: ModelConfig,
    cache: Cache,
    *,
    positions: Int[Array, "batch new"],
    valid: Bool[Array, "batch new"],
    last_only: bool = False,
) -> tuple[Float32[Array, "batch logits vocab"], Cache]:
    """The logits of new tokens given the cache, and the cache with them appended.

    Args:
        tokens: (batch, new) int32.
        positions: (batch, new) int32, virtual tokens not counted.
        valid: (batch, new) bool, false at padding.
        last_only: only the last token's logits are wanted.

    Returns:
        The logits, (batch, new, vocab) float32, or (batch, 1, vocab) with `last_only`;
        and the cache.
    """
    positions = positions + virtual_count(params["model"])
    x = embed(params["model"]["embed_tokens"], tokens, positions, cfg)
    x, cache = _advance(params, x, cfg, cache, positions, valid)
    x = x[:, -1:] if last_only else x
    x = norm(x, params["model"]["norm"], cfg)
    return (x @ head(params, cfg)).astype(jnp.float32), cache


def start_cache(
    params: Params, cfg: ModelConfig, batch: int, slots: int, dtype: Any
) -> Cache:
    """A cache like `init_cache`'s, with room for virtual tokens, and these in it."""
    weights = params["model"]
    count = virtual_count(weights)
    cache = init_cache(cfg, batch, count + slots, dtype)
    if not count:
        return cache
    prompt = _prompt(weights, cfg)
    if prompt is not None:
        x = jnp.broadcast_to(prompt, (batch, *prompt.shape[1:]))
        positions = jnp.broadcast_to(jnp.arange(count), (batch, count))
        valid = jnp.ones((batch, count), bool)
        return _advance(params, x, cfg, cache, positions, valid)[1]
    prefix = weights["layers"]["self_attn"]["prefix"]
    k, v = (
        jnp.broadcast_to(
            prefix[name].weight.astype(dtype).reshape(-1, 1, count, *_heads(cfg)),
            (cfg.num_hidden_layers, batch, count, *_heads(cfg)),
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
) -> tuple[Array, Cache]:
    """What the last layer gives of new tokens, and the cache with them appended."""
    start, new = cache.length, x.shape[1]
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

        weights = run.complete(weights, number)
        x = apply_layer(x, weights, angles(number), attend_stored, cfg)
        return x, (stored[0], stored[1])

    run = stacks.whole(params["model"]["layers"], cfg.num_hidden_layers)
    layers = (run.stacked, cache.k, cache.v, run.numbers)
    x, (k, v) = jax.lax.scan(body, x, layers)
    return x, Cache(k=k, v=v, valid=seen, length=start + new)
