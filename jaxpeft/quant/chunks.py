"""A step over a blockwise tensor in parts, so that the whole is never in float32."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32

from jaxpeft import hardware
from jaxpeft.quant.blockwise import Blockwise, layout

# Elements that a step handles at once. On a CPU they stay in its caches; elsewhere they
# must be enough to keep the device busy.
CHUNK = {"cpu": 5 * 2**14}
CHUNK_ELSEWHERE = 2**23

Step = Callable[[Array, Any, Array], tuple[Array, Any]]
# From the parts of what is changed, and from how to get those of what is not.
Body = Callable[[list[Array], Callable[[], list[Array]]], list[Array]]


class Parts(NamedTuple):
    """How the blocks of a tensor are gone through.

    Each axis i of blocks is split into (outer[i], inner[i]), the outer part kept whole:
    arrays sharded over it are sliced without moving data.

    Attributes:
        outer: for each axis, the length of the part that is kept whole.
        inner: for each axis, the length of the part that is gone through.
        axis: the axis that is cut: the inner parts of the axes before it are taken one
            by one, those of the axes after it whole.
        count: how many of the inner part of `axis` are taken at a time.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]
    axis: int
    count: int


def in_chunks(
    step: Step,
    g: Float[Array, "*shape"],
    state: Any,
    p: Float[Array, "*shape"],
    running: Bool[Array, ""],
    *,
    stacked: int = 0,
) -> tuple[Float32[Array, "*shape"], Any]:
    """The change and the new state of `step(g, state, p)`, some blocks at a time.

    Args:
        step: from parts of `g`, `state` and `p` to the change and the new state of
            that part. It is given parts of `g` and `p` in float32, a block a row.
        g: a tensor's gradient.
        state: a pytree with `Blockwise` nodes, all of the same block size; their codes
            and scales are written in place.
        p: the tensor itself.
        running: true, but such that the compiler cannot know, as that the number of
            the step is positive.
        stacked: how many leading axes stack tensors that have blocks of their own.

    Returns:
        The change, which takes over the buffer of a float32 gradient, and the new
            state.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Blockwise))
    size = nodes[0].block_size
    own = layout(p.shape, size, stacked)
    leaves, treedef = jax.tree.flatten(state)
    widths = [w for x in nodes for w in (size * x.bits // 8, 1)]

    # The first array carried through the loop is a gradient that becomes the change.
    in_place = g.dtype == jnp.float32
    carry = [g if in_place else jnp.zeros(g.shape, jnp.float32), *leaves]
    fixed = [p] if in_place else [p, g]
    widths = [size, *widths, *[size] * len(fixed)]
    shaped = [
        x.reshape(*own[:-1], -1) if width > 1 else x
        for x, width in zip([*carry, *fixed], widths)
    ]

    def compute(parts: list[Array]) -> list[Array]:
        shapes = [x.shape for x in parts]
        # A row is a block from here on: what is computed once must have one shape, or
        # XLA computes it anew for every use.
        parts = [x.reshape(*x.shape[:-1], -1, width) for x, width in zip(parts, widths)]
        p = parts[len(carry)].astype(jnp.float32)
        g = (parts[0] if in_place else parts[-1]).astype(jnp.float32)
        change, new = step(g, treedef.unflatten(parts[1 : len(carry)]), p)
        done = [change, *jax.tree.leaves(new)]
        return [x.reshape(shape) for x, shape in zip(done, shapes)]

    # XLA for CPUs would compute a part from the arrays themselves while these are
    # being overwritten, and therefore copy all of them every time. It reads the part
    # first if a condition is in between, and if that is in a loop, were it of one turn.
    apart = hardware.current().platform == "cpu"

    def body(parts: list[Array], others: Callable[[], list[Array]]) -> list[Array]:
        if not apart:
            return compute([*parts, *others()])
        return jax.lax.cond(
            running, lambda x: compute([*x, *others()]), lambda x: x, parts
        )

    blocks = (*own[:-1], own[-1] // size)
    done = shaped[: len(carry)]
    once = jnp.where(running, 1, 0) if apart else 1
    if math.prod(blocks):
        done = _through_blocks(
            body, done, shaped[len(carry) :], widths, blocks, size, once
        )
    if own[-1] % size:
        done = _last_block(body, done, shaped[len(carry) :], widths, blocks[-1], once)
    change, *leaves = [x.reshape(y.shape) for x, y in zip(done, carry)]
    return change, treedef.unflatten(leaves)


def plan(blocks: Sequence[int], block_size: int, whole: bool, devices: int) -> Parts:
    """The parts in which to go through a tensor of blocks.

    An axis is sharded over a number of devices that divides both its length and theirs.

    Args:
        blocks: the number of blocks along each axis.
        block_size: elements in a block.
        whole: whether the tensor ends with a whole block.
        devices: the number of devices.
    """
    outer = [math.gcd(n, devices) for n in blocks]
    if not whole:
        outer[-1] = 1
    inner = [n // s for n, s in zip(blocks, outer)]
    chunk = CHUNK.get(hardware.current().platform, CHUNK_ELSEWHERE) // block_size
    kept = list(accumulate(outer, lambda a, b: a * b))
    for axis in range(len(blocks)):
        least = kept[axis] * math.prod(blocks[axis + 1 :])
        if least <= chunk or axis == len(blocks) - 1:
            break
    most = min(inner[axis], max(chunk // least, 1))
    # A divisor of the axis leaves no remainder, and a few less cost little.
    fitting = (n for n in range(most, most * 4 // 5, -1) if inner[axis] % n == 0)
    return Parts(tuple(outer), tuple(inner), axis, next(fitting, most))


def _through_blocks(
    body: Body,
    carry: list[Array],
    fixed: list[Array],
    widths: list[int],
    blocks: Sequence[int],
    block_size: int,
    once: Any,
) -> list[Array]:
    """`body` over whole blocks; `widths` are the elements of a block in each array."""
    whole = fixed[0].shape[-1] == blocks[-1] * block_size
    outer, inner, axis, count = plan(
        blocks, block_size, whole, hardware.current().count
    )
    # The dimensions of the arrays when split, and where the inner parts stand there.
    dims = [[s, n] if s > 1 else [n] for s, n in zip(outer, inner)]
    at = [sum(map(len, dims[: i + 1])) - 1 for i in range(len(dims))]
    dims = [n for pair in dims for n in pair]

    def split(x: Array) -> Array:
        return x.reshape(*dims[:-1], x.shape[-1] // outer[-1])

    def span(carry: list[Array], first: int, count: int, times: int) -> list[Array]:
        """Parts of `count` along the axis from `first` on, `times` of them."""

        def place(i: Any, width: int) -> tuple[list[Any], list[int]]:
            """Where part i begins, and its shape, in arrays of blocks so wide."""
            starts, sizes = [0] * len(dims), list(dims)
            starts[at[axis]], sizes[at[axis]] = first + i % times * count, count
            i = i // times
            for earlier in reversed(range(axis)):
                starts[at[earlier]], sizes[at[earlier]] = i % inner[earlier], 1
                i = i // inner[earlier]
            starts[-1], sizes[-1] = starts[-1] * width, sizes[-1] * width
            return starts, sizes

        def one(i: Any, carry: list[Array]) -> list[Array]:
            places = [place(i, width) for width in widths]

            def parts(arrays: list[Array], places: list) -> list[Array]:
                return [jax.lax.dynamic_slice(x, *at) for x, at in zip(arrays, places)]

            done = body(
                parts(carry, places), lambda: parts(views, places[len(carry) :])
            )
            return [
                jax.lax.dynamic_update_slice(x, part, starts)
                for x, part, (starts, _) in zip(carry, done, places)
            ]

        total = times * math.prod(inner[:axis])
        return jax.lax.fori_loop(0, once if total == 1 else total, one, carry)

    shapes = [x.shape for x in carry]
    views = [split(x) for x in fixed]
    carry = [split(x) for x in carry]
    times = inner[axis] // count
    carry = span(carry, 0, count, times)
    if rest := inner[axis] % count:
        carry = span(carry, times * count, rest, 1)
    return [x.reshape(shape) for x, shape in zip(carry, shapes)]


def _last_block(
    body: Body,
    carry: list[Array],
    fixed: list[Array],
    widths: list[int],
    blocks: int,
    once: Any,
) -> list[Array]:
    """`body` over the short block at the end of flat arrays, filled up with zeros."""

    def one(_: Any, carry: list[Array]) -> list[Array]:
        def parts(arrays: list[Array], widths: list[int]) -> list[Array]:
            tails = [x[..., blocks * w :] for x, w in zip(arrays, widths)]
            return [
                jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, w - x.shape[-1])])
                for x, w in zip(tails, widths)
            ]

        done = body(parts(carry, widths), lambda: parts(fixed, widths[len(carry) :]))
        return [
            jax.lax.dynamic_update_slice_in_dim(
                x, part[..., : x.shape[-1] - blocks * w], blocks * w, -1
            )
            for x, part, w in zip(carry, done, widths)
        ]

    return jax.lax.fori_loop(0, once, one, carry)
