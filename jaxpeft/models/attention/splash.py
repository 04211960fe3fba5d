"""Attention in JAX's kernels for TPUs, "splash", with packed rows as ranges of blocks.

The kernels take a list of the blocks of keys that each block of queries reads. Here it
is made while the program runs, from each query's `first_keys`: blocks of another
example, or beyond the window of this layer, are neither fetched nor multiplied.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as info,
)

from jaxpeft.models.attention.scores import Scores, first_keys

LANES = 128  # of which blocks are multiples
LONGEST = 2**26  # places of a row; what is above in a number says which window
SPARE = 0.125  # of a row, which may be padded for larger blocks


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
        q: (batch, seq, heads, head_dim).
        k: (batch, seq, kv_heads, head_dim).
        v: shaped like `k`.
        segments: (batch, seq) int32, each a contiguous range, or None.
        scores: how queries meet keys; a window that is an array says its `windows`.
        interpret: whether the kernels run as plain JAX, on any device.

    Returns:
        q's shape and dtype.
    """
    batch, seq, heads, width = q.shape
    block = _block(q, scores)
    short = -seq % block
    row = seq + short
    # The kernels know no scale.
    q = (q * jnp.asarray(scores.scale, jnp.float32)).astype(q.dtype)
    q, k, v = (
        checkpoint_name(_heads_first(x, short), name)
        for x, name in zip((q, k, v), "qkv")
    )
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, short)))
    # End to end the sequences are one: each begins with a block, and no query reads a
    # block before its own sequence. Side by side they would be a loop over kernels.
    starts = jnp.arange(batch, dtype=jnp.int32)[:, None] * row
    first = (first_keys(segments, scores.window, row) + starts).reshape(-1)
    ids = None
    if segments is not None:
        ids = splash.SegmentIds(segments.reshape(-1), segments.reshape(-1))
    kernel = _kernel(first, row, scores, block, interpret)
    if batch == 1:  # with that axis, compilers for TPUs make a copy less of 8192 tokens
        several = jax.tree.map(lambda x: x[None], (q, k, v, ids))
        out: Any = jax.vmap(kernel)(*several)[0]
    else:
        out = kernel(q, k, v, ids)
    return out.reshape(heads, batch, -1, width).transpose(1, 2, 0, 3)[:, :seq]


def _heads_first(x: Array, short: int) -> Array:
    """(batch, seq, heads, dim) -> (heads, batch * (seq + short), dim)."""
    x = jnp.pad(x.transpose(2, 0, 1, 3), ((0, 0), (0, 0), (0, short), (0, 0)))
    return x.reshape(len(x), -1, x.shape[-1])


def _block(q: Array, scores: Scores) -> int:
    """Queries, and keys, of a block: many, where that pads the row little.

    A product of two blocks and what is made of it stand in 16 MiB with their operands.
    """
    seq = q.shape[1]
    small = q.shape[-1] <= LANES and q.dtype.itemsize == 2 and scores.softcap is None
    for block in (1024, 512, 256) if small else (512, 256):
        if block <= seq and -seq % block <= seq * SPARE:
            return block
    return LANES


def _kernel(first: Array, row: int, scores: Scores, block: int, interpret: bool) -> Any:
    """The kernel for sequences of `row` places, end to end."""
    place = jnp.arange(len(first), dtype=jnp.int32)
    several = scores.windows if _is_array(scores.window) else ()
    if several:
        number = jnp.sum(jnp.asarray(several) < scores.window, dtype=jnp.int32)
        place = place + number * LONGEST
    windows = several or (() if scores.window is None else (int(scores.window),))
    most = min(row // block, (_reach(scores, row) + block - 2) // block + 2)
    of_queries, of_keys = _blocks(first, block, most, place)
    compute = min(block, 512)
    return splash.SplashAttentionKernel(
        of_queries,
        of_queries,
        of_keys,
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=compute,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=compute,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=scores.softcap,
        residual_checkpoint_name="attention",
        mask_function=_Seen(windows),
        interpret=interpret,
    )


def _is_array(window: object) -> bool:
    return window is not None and not isinstance(window, int)


def _reach(scores: Scores, seq: int) -> int:
    """The most tokens back that any query can see, as far as it is known beforehand."""
    return seq if scores.window is None or _is_array(scores.window) else scores.window


def _blocks(
    first: Array, block: int, most: int, place: Any
) -> tuple[info.MaskInfo, info.MaskInfo]:
    """Which blocks of keys each block of queries reads, and the other way round.

    Both are ranges of at most `most`. Where one is shorter than what the kernel counts
    through, its last block is named again, which fetches nothing, and marked as one to
    pass over.
    """
    number = jnp.arange(len(first) // block, dtype=jnp.int32)
    turn = jnp.arange(most, dtype=jnp.int32)

    def listed(low: Array, high: Array) -> tuple[Array, Array]:
        at = low[:, None] + turn
        return jnp.minimum(at, high[:, None]), (at <= high[:, None]).astype(jnp.int32)

    names, read = listed(first[::block] // block, number)
    ends = (number + 1) * block - 1
    seeing = jnp.sum(first <= ends[:, None], axis=1, dtype=jnp.int32)
    names_of_keys, read_of_keys = (x.T for x in listed(number, (seeing - 1) // block))
    return (
        info.MaskInfo(names[None], None, read[None], None, place),
        info.MaskInfo(names_of_keys[None], None, read_of_keys[None], None, place),
    )


@dataclass(frozen=True)
class _Seen:
    """Which pairs of places meet; segments are compared by the kernel itself.

    windows: none, the one, or those among which the number above `LONGEST` chooses.
    """

    windows: tuple[int, ...]

    def __call__(self, queries: Array, keys: Array) -> Array:
        if not self.windows:
            return queries >= keys
        window, place = self.windows[0], queries
        if len(self.windows) > 1:
            place = queries & (LONGEST - 1)
            for number, other in enumerate(self.windows[1:], 1):
                window = jnp.where(queries >= number * LONGEST, other, window)
        back = place - keys
        return (back >= 0) & (back < window)
