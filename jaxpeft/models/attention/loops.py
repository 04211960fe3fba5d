"""Attention of long rows in loops over blocks, bounded in memory on any device.

What `blockwise` is for short rows: there each block of queries meets all keys before it
at once, here one block of keys after the other, with a running softmax (Milakov &
Gimelshein, 2018). Blocks that no query of a block sees are passed over.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft.kernel import product
from jaxpeft.models.attention.scores import MASKED, Scores

QUERIES = 256  # of a block
KEYS = 512


class _How(NamedTuple):
    """What is fixed: the scores' scale and cap, and how many keys come before a row."""

    scale: float
    softcap: float | None
    past: int


def attend(
    q: Array,
    k: Array,
    v: Array,
    first: Array,
    seen: Array | None,
    scores: Scores,
) -> Array:
    """Causal attention of whole sequences to themselves and to what precedes them.

    Args:
        q: (batch, groups, each, seq, dim).
        k: (batch, groups, past + seq, dim).
        v: shaped like `k`.
        first: (batch or 1, seq) int32, the `first_keys`.
        seen: (batch, seq, past) bool, which of the first `past` keys a query sees;
            None: all of them.
        scores: how queries meet keys; its window is in `first` already.

    Returns:
        q's shape and dtype.
    """
    seq, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    short = -seq % max(QUERIES, KEYS)
    if short:
        q, k, v = [_longer(x, short, axis=-2) for x in (q, k, v)]
        first = jnp.concatenate(
            [
                first,
                jnp.broadcast_to(jnp.arange(seq, seq + short), (len(first), short)),
            ],
            axis=1,
        )
        seen = None if seen is None else _longer(seen, short, axis=1)
    how = _How(scores.scale, scores.softcap, past)
    out: Any = _attend(q, k, v, first, seen, how)
    return out[..., :seq, :]


def _longer(x: Array, short: int, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, short)
    return jnp.pad(x, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: Array, k: Array, v: Array, first: Array, seen: Array | None, how: _How
) -> Array:
    return _forward(q, k, v, first, seen, how)[0]


class _Block(NamedTuple):
    """A block of queries: its number, what it sees, and blocks of keys from and to."""

    number: Any
    first: Array
    seen: Array | None
    begin: Any
    end: Any


def _block(i: Any, first: Array, seen: Array | None) -> _Block:
    own = jax.lax.dynamic_slice_in_dim(first, i * QUERIES, QUERIES, 1)
    if seen is not None:
        seen = jax.lax.dynamic_slice_in_dim(seen, i * QUERIES, QUERIES, 1)
    last = (i + 1) * QUERIES - 1
    return _Block(i, own, seen, jnp.min(own) // KEYS, last // KEYS + 1)


def _rows(x: Array, start: Any, length: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, length, x.ndim - 2)


def _own_mask(block: _Block, j: Any) -> Array:
    """(batch or 1, 1, 1, queries, keys) bool, for the block of keys of number j."""
    queries = block.number * QUERIES + jnp.arange(QUERIES)
    keys = j * KEYS + jnp.arange(KEYS)
    mask = (keys <= queries[:, None]) & (keys >= block.first[..., None])
    return mask[:, None, None]


def _logits(q: Array, k: Array, mask: Array | None, scores: Scores) -> Array:
    """Masked float32 logits: (batch, groups, each, queries, keys)."""
    logits = product("bgrqd,bgkd->bgrqk", q, k)
    logits = scores.capped(logits * scores.scale)
    return logits if mask is None else jnp.where(mask, logits, MASKED)


def _forward(
    q: Array, k: Array, v: Array, first: Array, seen: Array | None, how: _How
) -> tuple[Array, tuple]:
    scores = Scores(how.scale, how.softcap)

    def meet(carry: tuple, q: Array, k: Array, v: Array, mask: Array | None) -> tuple:
        out, largest, total = carry
        logits = _logits(q, k, mask, scores)
        now = jnp.maximum(largest, jnp.max(logits, axis=-1, keepdims=True))
        weights, change = jnp.exp(logits - now), jnp.exp(largest - now)
        total = total * change + jnp.sum(weights, axis=-1, keepdims=True)
        new = product("bgrqk,bgkd->bgrqd", weights.astype(v.dtype), v)
        return out * change + new, now, total

    def of_block(_: None, i: Any) -> tuple[None, tuple]:
        block, own = _block(i, first, seen), _rows(q, i * QUERIES, QUERIES)
        carry = (
            jnp.zeros(own.shape, jnp.float32),
            jnp.full((*own.shape[:-1], 1), MASKED, jnp.float32),
            jnp.zeros((*own.shape[:-1], 1), jnp.float32),
        )
        if how.past:
            mask = None if block.seen is None else block.seen[:, None, None]
            carry = meet(carry, own, k[..., : how.past, :], v[..., : how.past, :], mask)

        def step(j: Any, carry: tuple) -> tuple:
            keys, values = (_rows(x, how.past + j * KEYS, KEYS) for x in (k, v))
            return meet(carry, own, keys, values, _own_mask(block, j))

        out, largest, total = jax.lax.fori_loop(block.begin, block.end, step, carry)
        logsumexp = (largest + jnp.log(total))[..., 0]
        return None, ((out / total).astype(q.dtype), logsumexp)

    _, (outs, sums) = jax.lax.scan(of_block, None, jnp.arange(q.shape[-2] // QUERIES))
    out = checkpoint_name(_together(outs), "attention")
    logsumexp = checkpoint_name(_together(sums[..., None])[..., 0], "attention")
    return out, (q, k, v, first, seen, out, logsumexp)


def _together(blocks: Array) -> Array:
    """(blocks, ..., queries, dim) -> (..., blocks * queries, dim)."""
    blocks = jnp.moveaxis(blocks, 0, -3)
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])


def _backward(how: _How, residuals: tuple, dout: Array) -> tuple:
    q, k, v, first, seen, out, logsumexp = residuals
    scores, past = Scores(how.scale, how.softcap), how.past
    inner = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def of_block(grads: tuple, i: Any) -> tuple[tuple, Array]:
        block = _block(i, first, seen)
        own, given, sums, inners = (
            _rows(x, i * QUERIES, QUERIES)
            for x in (q, dout, logsumexp[..., None], inner[..., None])
        )

        def meet(carry: tuple, start: Any, length: int, mask: Array | None) -> tuple:
            dq, dk, dv = carry
            keys, values = _rows(k, start, length), _rows(v, start, length)
            logits = _logits(own, keys, mask, scores)
            weights = jnp.exp(logits - sums)
            dweights = product("bgrqd,bgkd->bgrqk", given, values)
            dlogits = weights * (dweights - inners)
            if how.softcap is not None:
                # What is masked has no weight, and its slope would be infinite.
                slope = jnp.where(logits > MASKED, scores.slope(logits), 0.0)
                dlogits = dlogits * slope
            dlogits = (dlogits * scores.scale).astype(q.dtype)
            weights = weights.astype(v.dtype)
            dq = dq + product("bgrqk,bgkd->bgrqd", dlogits, keys)
            dk = _added(dk, product("bgrqd,bgrqk->bgdk", own, dlogits), start)
            dv = _added(dv, product("bgrqd,bgrqk->bgdk", given, weights), start)
            return dq, dk, dv

        carry = (jnp.zeros(own.shape, jnp.float32), *grads)
        if past:
            mask = None if block.seen is None else block.seen[:, None, None]
            carry = meet(carry, 0, past, mask)

        def step(j: Any, carry: tuple) -> tuple:
            return meet(carry, past + j * KEYS, KEYS, _own_mask(block, j))

        dq, dk, dv = jax.lax.fori_loop(block.begin, block.end, step, carry)
        return (dk, dv), dq.astype(q.dtype)

    zeros = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    (dk, dv), dq = jax.lax.scan(
        of_block, (zeros, zeros), jnp.arange(q.shape[-2] // QUERIES)
    )
    dk, dv = (jnp.swapaxes(x, -1, -2).astype(y.dtype) for x, y in ((dk, k), (dv, v)))
    return _together(dq), dk, dv, None, None


def _added(total: Array, part: Array, start: Any) -> Array:
    """`total` (..., dim, keys) with a block of keys added."""
    old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[-1], total.ndim - 1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, total.ndim - 1)


_attend.defvjp(_forward, _backward)
