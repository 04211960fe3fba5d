"""Where arrays inside a program lie: what the compiler is told, not left to find."""

import functools
from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from jaxpeft.devices import sharding


def split_batch(x: jax.Array) -> jax.Array:
    """The array split like a batch and its sequences, where `jax.set_mesh` says how.

    Said of the activations between layers, it makes the compiler bring a layer's
    weights to the sequences; left alone, it may bring activations to the weights.

    Args:
        x: (batch, seq, ...).
    """
    return _constrained(x, sharding.BATCH, sharding.CONTEXT)


def split_sequence(x: jax.Array) -> jax.Array:
    """The same where the mesh splits sequences; elsewhere the array as it is.

    Args:
        x: (batch, seq, ...), of which every device has all of its sequences.
    """
    return split_batch(x) if sharding.CONTEXT in sharding.axis_sizes() else x


def split_looked_up(x: jax.Array) -> jax.Array:
    """The rows looked up in an embedding split over "fsdp", split like a batch.

    In steps that compilers know: each device looks its part of the width up for the
    sequences of all; then they exchange, over one axis after the other.

    Args:
        x: (batch, seq, hidden).
    """
    sizes = sharding.axis_sizes()
    width = sharding.fitting(sizes, "fsdp", x.shape[-1]) if "fsdp" in sizes else None
    x = _constrained(x, "data", None, width)
    if sharding.CONTEXT in sizes:
        x = _constrained(x, "data", sharding.CONTEXT, "fsdp")
    return split_batch(x)


def gathered(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A weight with what "fsdp" splits of it brought together; its gradient is split.

    Said inside the scan over layers it makes the compiler bring one layer's weights,
    while the layer before is computed, and add its gradients up where they go. Left
    alone, TPUs' compiler cuts every product into as many as there are devices.

    Args:
        x: a weight of one layer.
        axes: the logical axis of each of its dimensions.
    """
    sizes = sharding.axis_sizes()
    if sharding.parts_of(sizes, ("fsdp", sharding.CONTEXT)) == 1:
        return x
    split = sharding.split_by(sizes, axes, x.shape)
    whole = [None if part and "fsdp" in part else part for part in split]
    if split == whole:
        return x
    return _brought(x, PartitionSpec(*split), PartitionSpec(*whole))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _brought(x: jax.Array, split: PartitionSpec, whole: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


def _brought_back(
    split: PartitionSpec, whole: PartitionSpec, _: None, dy: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(dy, split),)


_brought.defvjp(
    lambda x, split, whole: (_brought(x, split, whole), None), _brought_back
)


def _constrained(x: jax.Array, *axes: sharding.Part) -> jax.Array:
    """`x` with its leading axes split over these mesh axes, where a mesh is set."""
    sizes = sharding.axis_sizes()
    if not sizes or x.shape[0] % sharding.parts_of(sizes, axes[0]):
        return x
    split = [
        part
        if sharding.parts_of(sizes, part) > 1
        and n % sharding.parts_of(sizes, part) == 0
        else None
        for part, n in zip(axes[1:], x.shape[1:])
    ]
    spec = PartitionSpec(axes[0], *split, *[None] * (x.ndim - len(axes)))
    return jax.lax.with_sharding_constraint(x, spec)
