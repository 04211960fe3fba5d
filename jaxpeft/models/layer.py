"""One layer of the transformer: attention, then an MLP or a mixture of experts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from jaxpeft import kernel
from jaxpeft.devices import per_device
from jaxpeft.models import experts, rope, tiles
from jaxpeft.models.rope import Angles
from jaxpeft.models.spec import NORMS, ModelConfig

Params = Mapping[str, Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def norm(
    x: Float[Array, "*rows width"], weights: Params, cfg: ModelConfig
) -> Float[Array, "*rows width"]:
    """`x` normalised over its last axis, by its root mean square or by LayerNorm.

    It is computed in float32. Sources: Zhang & Sennrich, 2019 (root mean square) and
    Ba et al., 2016 (LayerNorm).

    Args:
        x: (..., width).
        weights: `scale`, (width,), and for LayerNorm `bias`, (width,).
        cfg: which of the two it is (`norm_kind`), `rms_norm_eps` and `norm_offset`.

    Returns:
        x's shape and dtype.
    """
    wide = x.astype(jnp.float32)
    if cfg.norm_kind != "rms":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + cfg.rms_norm_eps)
    scale = weights["scale"]
    if cfg.norm_offset:
        wide = wide * (cfg.norm_offset + scale.astype(jnp.float32))
        if cfg.norm_kind == "layer":
            wide = wide + weights["bias"].astype(jnp.float32)
        return wide.astype(x.dtype)
    if cfg.norm_kind == "layer":
        scale, bias = (weights[k].astype(jnp.float32) for k in ("scale", "bias"))
        return (wide * scale + bias).astype(x.dtype)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def linear(
    x: Float[Array, "*rows d_in"], weights: Params
) -> Float[Array, "*rows d_out"]:
    """`x @ kernel + bias`, the bias where there is one.

    Args:
        x: (..., d_in).
        weights: `kernel`, (d_in, d_out) of any kind, and perhaps `bias`, (d_out,).

    Returns:
        (..., d_out) in x's dtype.
    """
    return kernel.linear(x, weights["kernel"], weights.get("bias"))


def apply_layer(
    x: Float[Array, "batch seq hidden"],
    layer: Params,
    angles: Angles | None,
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Float[Array, "batch seq hidden"]:
    """The output of one layer: `x + attention(x)`, then `+ mlp(x)`, with norms around.

    Args:
        x: (batch, seq, hidden).
        layer: the weights of this layer alone, without a layer axis.
        angles: of `rope.by_layer`; None: nothing rotates.
        attention: what attends, given q (batch, seq, heads, head_dim) and k and v
            (batch, seq, kv_heads, head_dim); it returns q's shape.
        cfg: the model's hyperparameters.

    Returns:
        (batch, seq, hidden).
    """
    before_attention, after_attention, before_mlp, after_mlp = NORMS[cfg.norms]

    def normed(x: Array, name: str | None) -> Array:
        return x if name is None else norm(x, layer[name], cfg)

    def added(x: Array, h: Array) -> Array:
        return x + (h if cfg.residual_scale is None else h * cfg.residual_scale)

    mlp = _mlp if cfg.experts is None else _mixture

    def of_mlp(part: Array, number: Array | None) -> Array:
        weights = layer["mlp"]
        if number is not None:
            weights = kernel.with_part(weights, number)
        return mlp(part, weights, cfg)

    read = normed(x, before_attention)
    h = _self_attention(read, layer["self_attn"], angles, attention, cfg)
    x = checkpoint_name(added(x, normed(h, after_attention)), "residual")
    if cfg.norms == "parallel":
        return added(x, tiles.over(of_mlp, read, cfg.tile))

    def own(part: Array, number: Array | None) -> Array:
        return normed(of_mlp(normed(part, before_mlp), number), after_mlp)

    return added(x, tiles.over(own, x, cfg.tile))


def _self_attention(
    x: Array,
    weights: Params,
    angles: Angles | None,
    attention: Callable[[Array, Array, Array], Array],
    cfg: ModelConfig,
) -> Array:
    batch, seq, _ = x.shape
    if cfg.fused_qkv:
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
    if angles is not None:
        cos, sin, scale = angles
        q, k = (rope.rotate(y, cos, sin, cfg.rope_interleave) for y in (q, k))
        q = q if scale is None else q * scale[:, :, None, None].astype(q.dtype)
    out = attention(q, k, v)
    return linear(out.reshape(batch, seq, -1), weights["o_proj"])


def _mlp(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    if not cfg.gated_mlp:
        up = checkpoint_name(linear(x, weights["up_proj"]), "up")
        return linear(ACTIVATIONS[cfg.hidden_act](up), weights["down_proj"])
    if cfg.fused_gate_up:
        gate, up = jnp.split(linear(x, weights["gate_up_proj"]), 2, axis=-1)
    else:
        gate, up = linear(x, weights["gate_proj"]), linear(x, weights["up_proj"])
    return linear(_gated(gate, up, cfg), weights["down_proj"])


def _gated(gate: Array, up: Array, cfg: ModelConfig) -> Array:
    gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
    return ACTIVATIONS[cfg.hidden_act](gate) * up


def _mixture(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    """The experts of each token, on each device for its own sequences."""

    def of_rows(x: Array, weights: Params) -> tuple[tuple, Array]:
        return (), _routed(x.reshape(-1, x.shape[-1]), weights, cfg).reshape(x.shape)

    return per_device.on_each_part(of_rows, x, weights)[1]


def _routed(x: Array, weights: Params, cfg: ModelConfig) -> Array:
    """The weighed sum of each token's experts, shaped like x: (tokens, hidden)."""
    mixture, kernels = cfg.experts, weights["experts"]
    assert mixture is not None
    logits = linear(x, weights["gate"])
    shares, chosen = experts.route(logits, mixture.per_token, mixture.normalized)
    groups = experts.group(chosen, mixture.count)

    def each(rows: Array, name: str) -> Array:
        return experts.product(rows, kernels[name]["kernel"], groups.experts)

    both = each(experts.dispatch(x, groups), "gate_up_proj")
    gate, up = jnp.split(both, 2, axis=-1)
    inner = _gated(gate, up, cfg)
    out = checkpoint_name(each(inner, "down_proj"), "down")
    return experts.collect(out, shares, groups)
