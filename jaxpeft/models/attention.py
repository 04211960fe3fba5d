"""Grouped-query attention: during training, and against a cache of keys and values."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from jaxpeft import hardware
from jaxpeft.devices import determinism
from jaxpeft.kernel import product
from jaxpeft.models.spec import ModelConfig

BLOCK = 64  # queries at a time where the sequence is short, see `_blocks`
MOST_BLOCKS = 8
MASKED = -1e30
EVERYTHING = 2**31 - 1  # the window of a layer that has none, where others have one


class Scores(NamedTuple):
    """How queries meet keys, beyond causality.

    Attributes:
        scale: what the products of queries and keys are multiplied by.
        softcap: c of `c * tanh(logit / c)`; None: no cap.
        window: how many tokens back a query sees, itself among them, () int32 or a
            number; None: all.
    """

    scale: float
    softcap: float | None = None
    window: Any = None

    @classmethod
    def of_layer(cls, cfg: ModelConfig, number: Array) -> "Scores":
        """How the queries of one layer of a model meet the keys.

        Args:
            cfg: the model's hyperparameters.
            number: of the layer, () int32.
        """
        scale = cfg.attention_scale or cfg.head_dim**-0.5
        window, different = None, set(cfg.windows)
        if len(different) == 1:
            [window] = different
        elif different:
            window = jnp.asarray([w or EVERYTHING for w in cfg.windows])[number]
        return cls(scale, cfg.attention_softcap, window)

    def capped(self, logits: Array) -> Array:
        """The logits after the cap; their shape and dtype stay.

        Args:
            logits: products of queries and keys, scaled.
        """
        if self.softcap is None:
            return logits
        return self.softcap * jnp.tanh(logits / self.softcap)

    def slope(self, capped: Array) -> Array | float:
        """The derivative of `capped` by its logits, in the shape of its result.

        Args:
            capped: what `capped` returned.

        Returns:
            The derivative; 1.0 without a cap.
        """
        if self.softcap is None:
            return 1.0
        return 1.0 - jnp.square(capped / self.softcap)


class _Mask(NamedTuple):
    """`segments` and `seen` of `attend`."""

    segments: Array | None
    seen: Array | None


def attend(
    q: Float[Array, "batch seq heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    segments: Int[Array, "batch seq"] | None = None,
    scores: Scores | None = None,
    seen: Bool[Array, "batch seq past"] | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Causal attention of a whole sequence to itself, and to what precedes it.

    Args:
        q: the queries, (batch, seq, heads, head_dim).
        k: the keys, (batch, past + seq, kv_heads, head_dim), of which the first `past`
            belong to no segment, and no window is counted to them.
        v: the values, shaped like the keys.
        segments: (batch, seq) int32, or None. With segments, a token sees only its
            own: packed examples never see each other, and padding (0) sees padding
            alone. Right padding needs none: what is causal never looks there.
        scores: how queries meet keys; None: scaled by 1 / sqrt(head_dim), with neither
            cap nor window.
        seen: (batch, seq, past) bool, which of the first `past` keys a query sees;
            None: all of them.

    Returns:
        (batch, seq, heads, head_dim) in q's dtype; the softmax is float32.
    """
    scores = scores or Scores(q.shape[-1] ** -0.5)
    plain = scores.softcap is None and scores.window is None
    plain &= q.shape[1] == k.shape[1]
    # cuDNN's backward pass may add up in another order each time.
    plain &= not determinism.is_required()
    if plain and hardware.current().platform == "gpu" and q.dtype != jnp.float32:
        return _attend_cudnn(q, k, v, segments, scores.scale)
    # Heads first, once: each block would otherwise transpose its keys and values anew.
    grouped = checkpoint_name(_group(q, k.shape[2]), "q")
    keys = checkpoint_name(k.transpose(0, 2, 1, 3), "k")
    values = checkpoint_name(v.transpose(0, 2, 1, 3), "v")
    window = None if scores.window is None else jnp.asarray(scores.window, jnp.int32)
    how = (scores.scale, scores.softcap)
    return _ungroup(_blockwise(grouped, keys, values, segments, window, seen, how))


def _attend_cudnn(
    q: Array, k: Array, v: Array, segments: Array | None, scale: float
) -> Array:
    mask = None
    if segments is not None:
        mask = segments[:, None, :, None] == segments[:, None, None, :]
    out = jax.nn.dot_product_attention(
        checkpoint_name(q, "q"),
        checkpoint_name(k, "k"),
        checkpoint_name(v, "v"),
        mask=mask,
        scale=scale,
        is_causal=True,
        implementation="cudnn",
    )
    return checkpoint_name(out, "attention")


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
    grouped = _group(q, k.shape[2])
    logits = product("bgrqd,bkgd->bgrqk", grouped, k) * scores.scale
    logits = jnp.where(visible[:, None, None], scores.capped(logits), MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = product("bgrqk,bkgd->bgrqd", weights, v).astype(q.dtype)
    return _ungroup(out)


def _group(q: Array, groups: int) -> Array:
    """(batch, seq, heads, dim) -> (batch, groups, heads/groups, seq, dim)."""
    batch, seq, heads, dim = q.shape
    return q.reshape(batch, seq, groups, heads // groups, dim).transpose(0, 2, 3, 1, 4)


def _ungroup(x: Array) -> Array:
    batch, groups, each, seq, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, seq, groups * each, dim)


def _blocks(seq: int) -> list[tuple[int, int]]:
    """Ranges of queries. Each meets only the keys up to its end: with n blocks,
    (n + 1) / 2n of the full square is computed, and never all of it is in memory."""
    count = min(MOST_BLOCKS, max(1, seq // BLOCK))
    length = -(-seq // count)
    return [(at, min(at + length, seq)) for at in range(0, seq, length)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _blockwise(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    window: Array | None,
    seen: Array | None,
    how: tuple[float, float | None],
) -> Array:
    """Attention that keeps the log-sum-exp of each row and no probabilities: the
    backward pass forms them again (Dao et al., 2022).

    q: (batch, groups, each, seq, dim); k, v: (batch, groups, past + seq, dim); how:
    scale and softcap. Returns q's shape.
    """
    return _blockwise_forward(q, k, v, segments, window, seen, how)[0]


def _scores(
    q: Array, k: Array, mask: _Mask, scores: Scores, block: tuple[int, int]
) -> Array:
    """Masked float32 logits of one block of queries: (batch, groups, each, n, keys)."""
    start, end = block
    past = k.shape[-2] - q.shape[-2]
    keys = k[..., : past + end, :]
    logits = product("bgrqd,bgkd->bgrqk", q[..., start:end, :], keys)
    logits = scores.capped(logits * scores.scale)
    back = jnp.arange(start, end)[:, None] - jnp.arange(end)
    seen = back >= 0
    if scores.window is not None:
        seen &= back < scores.window
    if mask.segments is not None:
        seen = seen & (
            mask.segments[:, start:end, None] == mask.segments[:, None, :end]
        )
    if past:
        seen = _with_past(seen, mask.seen, past, block)
    if seen.ndim == 3:
        seen = seen[:, None, None]
    return jnp.where(seen, logits, MASKED)


def _with_past(
    own: Array, past_seen: Array | None, past: int, block: tuple[int, int]
) -> Array:
    """Which keys a block of queries sees, given which it sees after the first `past`.

    own: (n, keys) or (batch, n, keys); past_seen: as `seen` of `attend`.
    """
    if past_seen is None:
        widths = [(0, 0)] * (own.ndim - 1) + [(past, 0)]
        return jnp.pad(own, widths, constant_values=True)
    before = past_seen[:, slice(*block)]
    own = jnp.broadcast_to(own, (len(before), *own.shape[-2:]))
    return jnp.concatenate([before, own], axis=-1)


def _blockwise_forward(
    q: Array, k: Array, v: Array, segments: Any, window: Any, seen: Any, how: tuple
) -> tuple[Array, tuple]:
    outs, sums, scores = [], [], Scores(how[0], how[1], window)
    mask = _Mask(segments, seen)
    past = k.shape[-2] - q.shape[-2]
    for block in _blocks(q.shape[-2]):
        logits = _scores(q, k, mask, scores, block)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = product(
            "bgrqk,bgkd->bgrqd", weights.astype(v.dtype), v[..., : past + block[1], :]
        )
        outs.append((out / total).astype(q.dtype))
        sums.append((largest + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=-2), "attention")
    logsumexp = checkpoint_name(jnp.concatenate(sums, axis=-1), "attention")
    return out, (q, k, v, mask, window, out, logsumexp)


def _blockwise_backward(how: tuple, residuals: tuple, dout: Array) -> tuple:
    q, k, v, mask, window, out, logsumexp = residuals
    scores = Scores(how[0], how[1], window)
    inner = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    # Summed as (dim, seq): with the small operand on the left, XLA on CPU transposes
    # that one and not the probabilities.
    dq = []
    dk = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    dv = jnp.zeros_like(dk)
    for block in _blocks(q.shape[-2]):
        rows, end = slice(*block), k.shape[-2] - q.shape[-2] + block[1]
        logits = _scores(q, k, mask, scores, block)
        weights = jnp.exp(logits - logsumexp[..., rows, None])
        dblock = dout[..., rows, :]
        dv = dv.at[..., :end].add(
            product("bgrqd,bgrqk->bgdk", dblock, weights.astype(v.dtype))
        )
        dweights = product("bgrqd,bgkd->bgrqk", dblock, v[..., :end, :])
        dlogits = weights * (dweights - inner[..., rows, None])
        if scores.softcap is not None:
            # What is masked has no weight, and its slope would be infinite.
            dlogits = dlogits * jnp.where(logits > MASKED, scores.slope(logits), 0.0)
        dlogits = (dlogits * scores.scale).astype(q.dtype)
        dq.append(product("bgrqk,bgkd->bgrqd", dlogits, k[..., :end, :]))
        dk = dk.at[..., :end].add(
            product("bgrqd,bgrqk->bgdk", q[..., rows, :], dlogits)
        )
    dk, dv = jnp.swapaxes(dk, -1, -2), jnp.swapaxes(dv, -1, -2)
    dq = jnp.concatenate(dq, axis=-2)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
