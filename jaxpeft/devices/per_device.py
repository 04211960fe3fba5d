"""What each device computes by itself, of its sequences and heads."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpeft.devices import sharding


def on_each_part(
    function: Callable[[Any, Any], tuple[Any, Any]],
    rows: Any,
    whole: Any,
    *,
    cuts: bool = True,
) -> tuple[Any, Any]:
    """The value of `function(rows, whole)`, computed on each device for its sequences.

    Of sequences that the mesh splits it is computed for each device's part. Without a
    mesh, or where it does not divide the batch, the function is called once for all.

    Args:
        function: gives (what adds up over places, what there is of each): no place of a
            sequence needs another, unless `cuts` is false.
        rows: (batch, seq, ...), split like a batch.
        whole: what every device needs all of, brought together once, however often
            `function` uses it; sums of its kind are added up once.
        cuts: whether a device may have a part of a sequence alone; otherwise all
            devices that share one have the whole of it.

    Returns:
        (the sums over all sequences, the rows of all).
    """
    sizes, axes = sharding.axis_sizes(), sharding.BATCH
    batch, seq = jax.tree.leaves(rows)[0].shape[:2]
    place = PartitionSpec(sharding.BATCH)
    if cuts and parts(seq) > 1:
        axes = (*axes, sharding.CONTEXT)
        place = PartitionSpec(sharding.BATCH, sharding.CONTEXT)
    if sharding.parts_of(sizes, axes) == 1 or not divides(batch):
        return function(rows, whole)
    width = tuple(axis for axis in axes if axis != "data")
    across = sharding.parts_of(sizes, width)

    def local(rows: Any, whole: Any) -> tuple[Any, Any]:
        sums, own = function(rows, whole)
        return jax.tree.map(add_up, sums), own

    def scattered(x: Any) -> bool:
        return x.ndim > 1 and across > 1 and x.shape[0] % across == 0

    def add_up(x: jax.Array) -> jax.Array:
        if not scattered(x):
            return jax.lax.psum(x, axes)
        # Each device goes on with its part of the width alone.
        x = jax.lax.psum_scatter(x, width, scatter_dimension=0, tiled=True)
        return jax.lax.psum(x, "data")

    sums, _ = jax.eval_shape(function, rows, whole)
    specs = jax.tree.map(
        lambda x: PartitionSpec(width) if scattered(x) else PartitionSpec(), sums
    )
    return jax.shard_map(
        local,
        in_specs=(place, PartitionSpec()),
        out_specs=(specs, place),
        axis_names=set(axes),
        check_vma=False,
    )(rows, whole)


def divides(sequences: int) -> bool:
    """Whether the mesh that is set, if any, splits that many sequences evenly.

    Args:
        sequences: how many there are at a time.
    """
    return not sequences % sharding.parts_of(sharding.axis_sizes(), sharding.BATCH)


def parts(length: int) -> int:
    """Into how many parts the mesh that is set, if any, splits sequences.

    Args:
        length: places of a sequence; one that the mesh does not divide stays whole.
    """
    count = sharding.axis_sizes().get(sharding.CONTEXT, 1)
    return 1 if length % count else count


def on_each_head(
    function: Callable[..., jax.Array],
    heads: tuple[jax.Array, jax.Array, jax.Array],
    rows: Any,
    whole: Any,
    past: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """`function(*heads, rows, whole)`, on each device for its sequences and heads.

    It is for what the compiler cannot split by itself. Where the axis "tensor" does not
    divide the heads of keys, they are repeated as often as it takes; where it does not
    divide those of queries, each device computes all of them. Where the mesh splits
    sequences, see `_across_parts`.

    Args:
        function: gives an array shaped like the queries it is given.
        heads: queries (batch, seq, heads, dim), keys and values (batch, seq, kv_heads,
            dim). The mesh divides the batch.
        rows: arrays split like a batch.
        whole: what every device needs all of.
        past: keys and values before those of a sequence, (batch, n, kv_heads, dim);
            only where the mesh splits sequences.

    Returns:
        (batch, seq, heads, dim).
    """
    sizes, (q, k, v) = sharding.axis_sizes(), heads
    if not sizes:
        return function(q, k, v, rows, whole)
    if parts(q.shape[1]) > 1:
        return _across_parts(function, heads, rows, whole, past or ())
    least, split = math.lcm(k.shape[2], sizes["tensor"]), None
    if q.shape[2] % least == 0:
        split = "tensor"
        if least > k.shape[2]:
            k, v = (x.repeat(least // x.shape[2], axis=2) for x in (k, v))
    spec = PartitionSpec(sharding.BATCH, None, split, None)
    return jax.shard_map(
        function,
        in_specs=(spec, spec, spec, PartitionSpec(sharding.BATCH), PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, rows, whole)


def _across_parts(
    function: Callable[..., jax.Array],
    heads: tuple[jax.Array, jax.Array, jax.Array],
    rows: Any,
    whole: Any,
    past: tuple[jax.Array, ...],
) -> jax.Array:
    """`on_each_head` of sequences that are split over "context".

    The devices of a sequence exchange its parts for whole sequences of some heads, and
    what comes out for the parts (Jacobs et al., 2023, DeepSpeed-Ulysses). So `function`
    sees whole sequences, all devices have as much to do whatever of them is seen, and
    what each sends shrinks with their number, as that of keys and values brought
    together does not. Keys' heads are repeated, and queries' filled up with zeros, as
    far as it takes to divide them.
    """
    (q, k, v), context = heads, sharding.CONTEXT
    batch, seq, count, width = q.shape
    groups, sizes = k.shape[2], sharding.axis_sizes()
    devices = sharding.parts_of(sizes, ("tensor", context))
    times = math.lcm(groups, devices) // groups
    each = count // groups
    room = -each % times
    if room:
        q = q.reshape(batch, seq, groups, each, width)
        q = jnp.pad(q, [(0, 0)] * 3 + [(0, room), (0, 0)])
        q = q.reshape(batch, seq, groups * (each + room), width)
    if times > 1:
        k, v = (x.repeat(times, axis=2) for x in (k, v))
        past = tuple(x.repeat(times, axis=2) for x in past)

    def exchanged(x: jax.Array, split: int, joined: int) -> jax.Array:
        return jax.lax.all_to_all(x, context, split, joined, tiled=True)

    def local(heads: tuple, past: tuple, rows: Any, whole: Any) -> jax.Array:
        q, *keyed = (exchanged(x, 2, 1) for x in heads)
        if past:
            before = zip(past, keyed, strict=True)
            keyed = [jnp.concatenate(pair, axis=1) for pair in before]
        return exchanged(function(q, *keyed, rows, whole), 1, 2)

    own = PartitionSpec(sharding.BATCH, context, "tensor", None)
    whole_rows = PartitionSpec(sharding.BATCH, None, ("tensor", context), None)
    out = jax.shard_map(
        local,
        in_specs=(own, whole_rows, PartitionSpec(sharding.BATCH), PartitionSpec()),
        out_specs=own,
        check_vma=False,
    )((q, k, v), past, rows, whole)
    if room:
        out = out.reshape(batch, seq, groups, each + room, width)[..., :each, :]
    return out.reshape(batch, seq, count, width)
