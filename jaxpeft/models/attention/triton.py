"""Attention in kernels for GPUs: blocks of queries and keys that never leave the chip.

Each query's keys are a range, from its `first_keys` to itself, so that packed rows,
windows and causality are one thing, and blocks outside of all ranges are passed over.
Every sum is formed by one program in one order: runs repeat bit for bit. The method is
that of Dao, 2023 (FlashAttention-2); the products of the backward pass are formed once
for the queries and once for the keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxpeft.models.attention import triton_kernels as kernels
from jaxpeft.models.attention.scores import Scores, first_keys
from jaxpeft.models.attention.triton_kernels import Plan


class _Plans(NamedTuple):
    """Of the kernels that make the output, the queries' gradient, and the others'."""

    out: Plan
    queries: Plan
    keys: Plan


# (queries, keys, warps) for each of them, up to that head_dim. All fit into the 99 KiB
# of the smallest chips with bfloat16, and into the registers of compute capability 8.0
# and 9.0.
SIZES = {
    64: ((128, 64, 8), (128, 64, 8), (64, 32, 4)),
    128: ((128, 64, 8), (64, 64, 8), (64, 32, 4)),
    256: ((64, 32, 8), (32, 32, 8), (32, 32, 8)),
}


def attend(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    scores: Scores,
    *,
    interpret: bool = False,
) -> Array:
    """Causal attention of whole sequences to themselves; the softmax is float32.

    Args:
        q: (batch, seq, heads, head_dim), in 16 bits.
        k: (batch, seq, kv_heads, head_dim).
        v: shaped like `k`.
        segments: (batch, seq) int32, each a contiguous range, or None.
        scores: how queries meet keys.
        interpret: whether the kernels run as plain JAX, on any device.

    Returns:
        q's shape and dtype.
    """
    batch, seq, _, width = q.shape
    plans = _plans(scores, width, seq, interpret)
    short = -seq % max(max(plan.queries, plan.keys) for plan in plans)
    if short:
        q, k, v = [jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) for x in (q, k, v)]
        if segments is not None:
            segments = jnp.pad(segments, ((0, 0), (0, short)))
    first = first_keys(segments, scores.window, seq + short)
    first = jnp.broadcast_to(first, (batch, seq + short))
    q, k, v = [checkpoint_name(x, name) for x, name in zip((q, k, v), "qkv")]
    out: Any = _attend(q, k, v, first, plans)
    return out[:, :seq]


def _plans(scores: Scores, width: int, seq: int, interpret: bool) -> _Plans:
    padded, least = (max(16, pl.next_power_of_2(n)) for n in (width, seq))
    sizes = next(sizes for most, sizes in SIZES.items() if padded <= most)
    plans = [
        Plan(
            scores.scale,
            scores.softcap,
            queries=min(queries, least),
            keys=min(keys, least),
            width=width,
            padded=padded,
            warps=warps,
            interpret=interpret,
        )
        for queries, keys, warps in sizes
    ]
    return _Plans(*plans)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, first: Array, plans: _Plans) -> Array:
    return _forward(q, k, v, first, plans)[0]


def _forward(
    q: Array, k: Array, v: Array, first: Array, plans: _Plans
) -> tuple[Array, tuple]:
    plan, (batch, seq, heads, _) = plans.out, q.shape
    each, blocks = heads // k.shape[2], seq // plan.queries
    rows = _rows(plan.queries, plan.padded, blocks)
    whole = _whole(seq, plan.padded, each)
    out, logsumexp = pl.pallas_call(
        functools.partial(kernels.forward, plan=plan, blocks=blocks),
        grid=(blocks, heads, batch),
        in_specs=[rows, whole, whole, _places(plan.queries, blocks)],
        out_specs=[rows, _sums(plan.queries, blocks)],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, seq), jnp.float32),
        ],
        name="attention_forward",
        **_how(plan, 2, q),
    )(q, k, v, first)
    out = checkpoint_name(out, "attention")
    logsumexp = checkpoint_name(logsumexp, "attention")
    return out, (q, k, v, first, out, logsumexp)


def _backward(plans: _Plans, residuals: tuple, dout: Array) -> tuple:
    q, k, v, first, out, logsumexp = residuals
    wide = dout.astype(jnp.float32) * out.astype(jnp.float32)
    inner = jnp.sum(wide, axis=-1).transpose(0, 2, 1)
    dq = _backward_queries(q, k, v, first, dout, logsumexp, inner, plans.queries)
    dk, dv = _backward_keys(q, k, v, first, dout, logsumexp, inner, plans.keys)
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _backward_queries(
    q: Array,
    k: Array,
    v: Array,
    first: Array,
    dout: Array,
    logsumexp: Array,
    inner: Array,
    plan: Plan,
) -> Array:
    batch, seq, heads, _ = q.shape
    each, blocks = heads // k.shape[2], seq // plan.queries
    rows = _rows(plan.queries, plan.padded, blocks)
    whole, sums = _whole(seq, plan.padded, each), _sums(plan.queries, blocks)
    return pl.pallas_call(
        functools.partial(kernels.of_queries, plan=plan, blocks=blocks),
        grid=(blocks, heads, batch),
        in_specs=[rows, whole, whole, _places(plan.queries, blocks), rows, sums, sums],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="attention_backward_queries",
        **_how(plan, 3, q),
    )(q, k, v, first, dout, logsumexp, inner)


def _backward_keys(
    q: Array,
    k: Array,
    v: Array,
    first: Array,
    dout: Array,
    logsumexp: Array,
    inner: Array,
    plan: Plan,
) -> tuple[Array, Array]:
    batch, seq, heads, _ = q.shape
    kv_heads, blocks = k.shape[2], seq // plan.keys
    each = heads // kv_heads
    group = pl.BlockSpec((None, seq, each, plan.padded), lambda j, h, b: (b, 0, h, 0))
    sums = pl.BlockSpec((None, each, seq), lambda j, h, b: (b, h, 0))
    own = pl.BlockSpec(
        (None, plan.keys, None, plan.padded), lambda j, h, b: (b, j, h, 0)
    )
    # How many queries see any key of a block, and how many look past its first one.
    begins = jnp.arange(blocks, dtype=jnp.int32) * plan.keys
    ends = jnp.stack([begins + plan.keys - 1, begins])
    seeing = jnp.sum(first[:, None, None] <= ends[..., None], axis=-1, dtype=jnp.int32)
    ranges = pl.BlockSpec((None, 2, None), lambda j, h, b: (b, 0, j))
    dk, dv = pl.pallas_call(
        functools.partial(kernels.of_keys, plan=plan, each=each),
        grid=(blocks, kv_heads, batch),
        in_specs=[
            group,
            own,
            own,
            pl.BlockSpec((None, seq), lambda j, h, b: (b, 0)),
            group,
            sums,
            sums,
            ranges,
        ],
        out_specs=[own, own],
        out_shape=[
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ],
        name="attention_backward_keys",
        **_how(plan, 4, q),
    )(q, k, v, first, dout, logsumexp, inner, seeing)
    return dk, dv


def _how(plan: Plan, products: int, q: Array) -> dict[str, Any]:
    """How a kernel is compiled, and what it costs where a row is one sequence."""
    batch, seq, heads, width = q.shape
    pairs = batch * heads * seq * (seq + 1) // 2
    cost = pl.CostEstimate(
        flops=2 * products * pairs * width,
        transcendentals=pairs,
        bytes_accessed=2 * products * q.size * q.dtype.itemsize,
    )
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=plan.warps, num_stages=2),
        "cost_estimate": cost,
        "interpret": plan.interpret,
    }


def _rows(length: int, padded: int, blocks: int) -> pl.BlockSpec:
    """One block of (batch, seq, heads, dim), the last first: it has most to do."""
    return pl.BlockSpec(
        (None, length, None, padded), lambda i, h, b: (b, blocks - 1 - i, h, 0)
    )


def _whole(seq: int, padded: int, each: int) -> pl.BlockSpec:
    """All keys or values of the head that a query's head shares."""
    return pl.BlockSpec(
        (None, seq, None, padded), lambda i, h, b: (b, 0, jax.lax.div(h, each), 0)
    )


def _places(length: int, blocks: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, length), lambda i, h, b: (b, blocks - 1 - i))


def _sums(length: int, blocks: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, blocks - 1 - i))
