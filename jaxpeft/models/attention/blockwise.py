"""Attention in plain JAX, for any device: blocks of queries, their log-sum-exp kept."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft import hardware
from jaxpeft.kernel import product
from jaxpeft.models.attention import loops
from jaxpeft.models.attention.scores import MASKED, Scores, first_keys

BLOCK = 64  # queries at a time where the sequence is short, see `_blocks`
MOST_BLOCKS = 8
# The longest row that meets all keys before a block at once, in few large products. On
# a CPU loops are faster as soon as these leave its caches.
LONGEST = {"cpu": 768}
LONGEST_ELSEWHERE = 2048


class _Mask(NamedTuple):
    """`segments` and `seen` of `attend`."""

    segments: Array | None
    seen: Array | None


def attend(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    scores: Scores,
    seen: Array | None = None,
) -> Array:
    """Causal attention of whole sequences to themselves, and to what precedes them.

    Args:
        q: (batch, seq, heads, head_dim).
        k: (batch, past + seq, kv_heads, head_dim).
        v: shaped like `k`.
        segments: (batch, seq) int32, or None.
        scores: how queries meet keys.
        seen: (batch, seq, past) bool, or None.

    Returns:
        q's shape and dtype; the softmax is float32.
    """
    # Heads first, once: each block would otherwise transpose its keys and values anew.
    grouped = checkpoint_name(group(q, k.shape[2]), "q")
    keys = checkpoint_name(k.transpose(0, 2, 1, 3), "k")
    values = checkpoint_name(v.transpose(0, 2, 1, 3), "v")
    longest = LONGEST.get(hardware.current().platform, LONGEST_ELSEWHERE)
    if q.shape[1] > longest:
        first = first_keys(segments, scores.window, q.shape[1])
        return ungroup(loops.attend(grouped, keys, values, first, seen, scores))
    window = None if scores.window is None else jnp.asarray(scores.window, jnp.int32)
    how = (scores.scale, scores.softcap)
    return ungroup(_blockwise(grouped, keys, values, segments, window, seen, how))


def group(q: Array, groups: int) -> Array:
    """(batch, seq, heads, dim) -> (batch, groups, heads/groups, seq, dim)."""
    batch, seq, heads, dim = q.shape
    return q.reshape(batch, seq, groups, heads // groups, dim).transpose(0, 2, 3, 1, 4)


def ungroup(x: Array) -> Array:
    """What `group` made, as it was: (batch, seq, heads, dim)."""
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
