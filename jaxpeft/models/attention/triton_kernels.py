"""The kernels of `triton`: one program each for a block of queries or of keys.

Operands come as references to a head of one sequence, (seq, dim) or a block of it; what
is written is the program's own block.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxpeft.models.attention.scores import MASKED

LOG2_E = math.log2(math.e)  # the kernels' exponentials are powers of two


class Plan(NamedTuple):
    """What is fixed in one kernel: how logits are made, and the sizes of blocks.

    Attributes:
        scale: what the products of queries and keys are multiplied by.
        softcap: as of `Scores`.
        queries: of a block.
        keys: of a block.
        width: head_dim.
        padded: the power of two from head_dim on, which registers hold.
        warps: of 32 threads, that work on one block.
        interpret: whether it runs as plain JAX, on any device.
    """

    scale: float
    softcap: float | None
    queries: int
    keys: int
    width: int
    padded: int
    warps: int
    interpret: bool = False


def _load(ref: Any, plan: Plan) -> Array:
    """Rows of a head, zero beyond its width."""
    if plan.width == plan.padded:
        return ref[...]
    mask = (jnp.arange(plan.padded) < plan.width)[None]
    return plgpu.load(ref, mask=mask, other=0.0)


def _store(ref: Any, value: Array, plan: Plan) -> None:
    value = value.astype(ref.dtype)
    if plan.width == plan.padded:
        ref[...] = value
    else:
        mask = (jnp.arange(plan.padded) < plan.width)[None]
        plgpu.store(ref, value, mask=mask)


def _logits(left: Array, right: Array, plan: Plan) -> tuple[Array, Array | None]:
    """(logits for powers of two, the slope of the cap) of left's rows with right's."""
    products = plgpu.dot(left, right, trans_b=True)
    if plan.softcap is None:
        return products * (plan.scale * LOG2_E), None
    # tanh, by the exponential that the device has; the library's takes many registers.
    doubled = jnp.exp2(products * (2.0 * LOG2_E * plan.scale / plan.softcap))
    level = 1.0 - 2.0 / (doubled + 1.0)
    return level * (plan.softcap * LOG2_E), 1.0 - level * level


def _key_ranges(first: Array, start: Any, plan: Plan) -> tuple[Any, Any, Any, Any]:
    """Blocks of keys of a block of queries: from, all seen from, all seen to, to."""
    low, high = jnp.min(first), jnp.max(first)
    begin = jax.lax.div(low, plan.keys)
    end = jax.lax.div(start + (plan.queries + plan.keys - 1), plan.keys)
    inside = jax.lax.div(high + (plan.keys - 1), plan.keys)
    until = jnp.maximum(jax.lax.div(start + 1, plan.keys), begin)
    return begin, jnp.minimum(inside, until), until, end


def _over_keys(body: Any, carry: Any, first: Array, start: Any, plan: Plan) -> Any:
    """The carry of `body(block, carry, masked)` after all blocks of keys."""
    begin, inside, until, end = _key_ranges(first, start, plan)
    masked = functools.partial(body, masked=True)
    carry = jax.lax.fori_loop(begin, inside, masked, carry)
    carry = jax.lax.fori_loop(
        inside, until, functools.partial(body, masked=False), carry
    )
    return jax.lax.fori_loop(until, end, masked, carry)


def _seen(queries: Array, keys: Array, first: Array) -> Array:
    """(queries, keys) bool, or with all three transposed its transpose."""
    return (keys <= queries) & (keys >= first)


def forward(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    out_ref: Any,
    logsumexp_ref: Any,
    *,
    plan: Plan,
    blocks: int,
) -> None:
    """Writes the output of a block of queries, and their logits' log-sum-exp, base 2.

    The references are to: its queries; all keys and values; its first keys. `blocks` is
    the number of blocks, of which the last is the first program's.
    """
    start = (blocks - 1 - pl.program_id(0)) * plan.queries
    q, first = _load(q_ref, plan), first_ref[...]
    places = start + jnp.arange(plan.queries, dtype=jnp.int32)

    def body(j: Any, carry: tuple, masked: bool) -> tuple:
        out, largest, total = carry
        rows = pl.ds(j * plan.keys, plan.keys)
        logits, _ = _logits(q, _load(k_ref.at[rows], plan), plan)
        if masked:
            keys = j * plan.keys + jnp.arange(plan.keys, dtype=jnp.int32)
            seen = _seen(places[:, None], keys[None], first[:, None])
            logits = jnp.where(seen, logits, MASKED)
        now = jnp.maximum(largest, jnp.max(logits, axis=1))
        weights = jnp.exp2(logits - now[:, None])
        change = jnp.exp2(largest - now)
        values = _load(v_ref.at[rows], plan)
        out = out * change[:, None] + plgpu.dot(weights.astype(values.dtype), values)
        return out, now, total * change + jnp.sum(weights, axis=1)

    carry = (
        jnp.zeros((plan.queries, plan.padded), jnp.float32),
        jnp.full((plan.queries,), MASKED, jnp.float32),
        jnp.zeros((plan.queries,), jnp.float32),
    )
    out, largest, total = _over_keys(body, carry, first, start, plan)
    _store(out_ref, out / total[:, None], plan)
    logsumexp_ref[...] = largest + jnp.log2(total)


def of_queries(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    dout_ref: Any,
    logsumexp_ref: Any,
    inner_ref: Any,
    dq_ref: Any,
    *,
    plan: Plan,
    blocks: int,
) -> None:
    """Writes the gradient of a block of queries, as `forward` is given them.

    Besides it reads the output's gradient, the log-sum-exp, and for each query the
    product of its output with the output's gradient.
    """
    start = (blocks - 1 - pl.program_id(0)) * plan.queries
    q, dout, first = _load(q_ref, plan), _load(dout_ref, plan), first_ref[...]
    logsumexp, inner = logsumexp_ref[...], inner_ref[...]
    places = start + jnp.arange(plan.queries, dtype=jnp.int32)

    def body(j: Any, dq: Array, masked: bool) -> Array:
        rows = pl.ds(j * plan.keys, plan.keys)
        k, v = _load(k_ref.at[rows], plan), _load(v_ref.at[rows], plan)
        logits, slope = _logits(q, k, plan)
        weights = jnp.exp2(logits - logsumexp[:, None])
        if masked:
            keys = j * plan.keys + jnp.arange(plan.keys, dtype=jnp.int32)
            seen = _seen(places[:, None], keys[None], first[:, None])
            weights = jnp.where(seen, weights, 0.0)
        change = plgpu.dot(dout, v, trans_b=True) - inner[:, None]
        dlogits = weights * change
        dlogits = dlogits if slope is None else dlogits * slope
        return dq + plgpu.dot(dlogits.astype(k.dtype), k)

    dq = jnp.zeros((plan.queries, plan.padded), jnp.float32)
    dq = _over_keys(body, dq, first, start, plan)
    _store(dq_ref, dq * plan.scale, plan)


def of_keys(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    first_ref: Any,
    dout_ref: Any,
    logsumexp_ref: Any,
    inner_ref: Any,
    seeing_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    plan: Plan,
    each: int,
) -> None:
    """Writes the gradients of a block of keys and values of one head.

    It reads all queries of the `each` heads that share it, and what goes with them, and
    from `seeing` how many of a row's queries see any key up to the last of this block,
    and how many see the first one if they come after it.
    """
    start = pl.program_id(0) * plan.keys
    k, v = _load(k_ref, plan), _load(v_ref, plan)
    keys = start + jnp.arange(plan.keys, dtype=jnp.int32)

    def body(i: Any, carry: tuple, head: Any, masked: bool) -> tuple:
        dk, dv = carry
        rows = pl.ds(i * plan.queries, plan.queries)
        q = _load(q_ref.at[rows, head], plan)
        dout = _load(dout_ref.at[rows, head], plan)
        logits, slope = _logits(k, q, plan)
        weights = jnp.exp2(logits - logsumexp_ref[head, rows][None])
        if masked:
            places = i * plan.queries + jnp.arange(plan.queries, dtype=jnp.int32)
            seen = _seen(places[None], keys[:, None], first_ref[rows][None])
            weights = jnp.where(seen, weights, 0.0)
        dv = dv + plgpu.dot(weights.astype(dout.dtype), dout)
        change = plgpu.dot(v, dout, trans_b=True) - inner_ref[head, rows][None]
        dlogits = weights * change
        dlogits = dlogits if slope is None else dlogits * slope
        return dk + plgpu.dot(dlogits.astype(q.dtype), q), dv

    begin = jax.lax.div(start, plan.queries)
    end = jax.lax.div(seeing_ref[0] + (plan.queries - 1), plan.queries)
    until = jax.lax.div(seeing_ref[1], plan.queries)
    inside = jax.lax.div(start + (plan.keys + plan.queries - 2), plan.queries)
    inside = jnp.minimum(inside, end)
    until = jnp.maximum(until, inside)

    def of_head(head: Any, carry: tuple) -> tuple:
        for low, high, masked in (
            (begin, inside, True),
            (inside, until, False),
            (until, end, True),
        ):
            each_block = functools.partial(body, head=head, masked=masked)
            carry = jax.lax.fori_loop(low, high, each_block, carry)
        return carry

    zeros = jnp.zeros((plan.keys, plan.padded), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, each, of_head, (zeros, zeros))
    _store(dk_ref, dk * plan.scale, plan)
    _store(dv_ref, dv, plan)
