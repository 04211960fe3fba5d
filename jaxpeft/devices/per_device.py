"""What each device computes by itself, of its sequences and heads."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpeft.devices import sharding


def on_each_part(
    function: Callable[[Any, Any], tuple[Any, Any]], rows: Any, whole: Any
) -> tuple[Any, Any]:
    """The value of `function(rows, whole)`, computed on each device for its sequences.

    Without a mesh, or where it does not divide the batch, the function is called once
    for all sequences.

    Args:
        function: gives (what adds up over the sequences, what there is of each).
        rows: arrays split like a batch.
        whole: what every device needs all of, brought together once, however often
            `function` uses it; sums of its kind are added up once.

    Returns:
        (the sums over all sequences, the rows of all).
    """
    sizes, batch = sharding.axis_sizes(), jax.tree.leaves(rows)[0].shape[0]
    parts = math.prod(sizes.get(axis, 1) for axis in sharding.BATCH)
    if parts == 1 or batch % parts:
        return function(rows, whole)

    def local(rows: Any, whole: Any) -> tuple[Any, Any]:
        sums, own = function(rows, whole)
        return jax.tree.map(add_up, sums), own

    def scattered(x: Any) -> bool:
        return x.ndim > 1 and sizes["fsdp"] > 1 and x.shape[0] % sizes["fsdp"] == 0

    def add_up(x: jax.Array) -> jax.Array:
        if not scattered(x):
            return jax.lax.psum(x, sharding.BATCH)
        # Each device goes on with its part of the width alone.
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.psum(x, "data")

    sums, _ = jax.eval_shape(function, rows, whole)
    specs = jax.tree.map(
        lambda x: PartitionSpec("fsdp") if scattered(x) else PartitionSpec(), sums
    )
    return jax.shard_map(
        local,
        in_specs=(PartitionSpec(sharding.BATCH), PartitionSpec()),
        out_specs=(specs, PartitionSpec(sharding.BATCH)),
        axis_names=set(sharding.BATCH),
        check_vma=False,
    )(rows, whole)


def divides(sequences: int) -> bool:
    """Whether the mesh that is set, if any, splits that many sequences evenly.

    Args:
        sequences: how many there are at a time.
    """
    return not sequences % math.prod(
        sharding.axis_sizes().get(axis, 1) for axis in sharding.BATCH
    )


def on_each_head(
    function: Callable[..., jax.Array],
    heads: tuple[jax.Array, jax.Array, jax.Array],
    rows: Any,
    whole: Any,
) -> jax.Array:
    """`function(*heads, rows, whole)`, on each device for its sequences and heads.

    It is for what the compiler cannot split by itself. Where the axis "tensor" does not
    divide the heads of keys, they are repeated as often as it takes; where it does not
    divide those of queries, each device computes all of them.

    Args:
        function: gives an array shaped like the queries it is given.
        heads: queries (batch, seq, heads, dim), keys and values (batch, seq, kv_heads,
            dim). The mesh divides the batch.
        rows: arrays split like a batch.
        whole: what every device needs all of.

    Returns:
        (batch, seq, heads, dim).
    """
    sizes, (q, k, v) = sharding.axis_sizes(), heads
    if not sizes:
        return function(q, k, v, rows, whole)
    parts, split = math.lcm(k.shape[2], sizes["tensor"]), None
    if q.shape[2] % parts == 0:
        split = "tensor"
        if parts > k.shape[2]:
            k, v = (x.repeat(parts // x.shape[2], axis=2) for x in (k, v))
    spec = PartitionSpec(sharding.BATCH, None, split, None)
    return jax.shard_map(
        function,
        in_specs=(spec, spec, spec, PartitionSpec(sharding.BATCH), PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, rows, whole)
