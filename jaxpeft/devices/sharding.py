"""The device mesh, and where each array lies on it."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.errors import InputError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight -> mesh axis that splits it; what is absent is replicated.
RULES: dict[str, str] = {
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
# The sequences of a batch go over both: with fsdp every device has its own, too.
BATCH = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "tensor".

    Args:
        data: over how many devices the sequences of a batch are split; -1: what is
            left.
        fsdp: over how many devices weights and sequences are split; -1: what is left.
        tensor: over how many devices each layer is split; -1: what is left.
        devices: the devices of the mesh; None: all that JAX has.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or one is 0 or
            several are -1.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    if min(data, fsdp, tensor) < -1 or 0 in sizes.values():
        raise InputError(f"mesh: {sizes}; each size is 1 or more, or -1")
    if list(sizes.values()).count(-1) > 1:
        raise InputError(f"mesh: {sizes}; only one size can be -1, what is left")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = [len(devices) // fixed if s == -1 else s for s in sizes.values()]
    if int(np.prod(shape)) != len(devices):
        given = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        needed = f"a multiple of {fixed}" if -1 in sizes.values() else str(fixed)
        raise InputError(
            f"mesh: {given} needs {needed} devices, and there are {len(devices)}; "
            f"choose sizes whose product is {len(devices)}, or -1 for one of them"
        )
    return Mesh(
        np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3
    )


def named(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]
) -> NamedSharding:
    """The sharding of one array from its logical axes.

    A dimension that the mesh axis does not divide is replicated instead.

    Args:
        mesh: the device mesh.
        axes: the logical axis of each dimension, a key of `RULES`; others are
            replicated.
        shape: the array's shape.
    """
    return NamedSharding(mesh, PartitionSpec(*_parts(mesh.shape, axes, shape)))


def _parts(
    sizes: Mapping[str, int], axes: Sequence[str | None], shape: Sequence[int]
) -> list[str | None]:
    """The mesh axis that splits each dimension; None: none does, or it does not fit."""
    parts = [RULES.get(name) if name else None for name in axes]
    return [
        part if part and size % sizes[part] == 0 else None
        for part, size in zip(parts, shape, strict=True)
    ]


def is_whole(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> bool:
    """Whether an array stays whole though an axis of the mesh was to split it.

    Args:
        mesh: the device mesh.
        axes: the logical axis of each dimension.
        shape: the array's shape.
    """
    meant = {RULES[name] for name in axes if name in RULES}
    meant = {axis for axis in meant if mesh.shape[axis] > 1}
    return bool(meant) and not meant & set(named(mesh, axes, shape).spec)


def of(mesh: Mesh, axes: Any, tree: Any) -> Any:
    """The sharding of every leaf of a tree.

    Args:
        mesh: the device mesh.
        axes: the logical axes of each leaf, in the structure of `tree`.
        tree: arrays or shapes.
    """
    return jax.tree.map(lambda x, names: named(mesh, names, x.shape), tree, axes)


def of_state(mesh: Mesh, state: Any, params: Any, placed: Any) -> Any:
    """The shardings of an optimizer's state: each leaf lies like its parameter.

    A state's leaf belongs to the parameter whose path is a part of its own. With as
    many dimensions it is split as the parameter is, wherever the mesh divides it
    (codes, and the scales of their blocks); what is smaller is replicated.

    Args:
        mesh: the device mesh.
        state: the optimizer's state, arrays or shapes.
        params: the parameters, arrays or shapes.
        placed: their shardings, in the structure of `params`.
    """
    shapes = jax.tree_util.tree_leaves_with_path(params)
    specs = jax.tree.leaves(placed)
    known = {
        tuple(map(str, path)): (leaf.ndim, spec.spec)
        for (path, leaf), spec in zip(shapes, specs, strict=True)
    }

    def where(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(map(str, path))
        owners = (
            known.get(keys[start:end])
            for start in range(len(keys))
            for end in range(len(keys), start, -1)
        )
        ndim, spec = next(filter(None, owners), (0, PartitionSpec()))
        if leaf.ndim != ndim:
            return replicated(mesh)
        parts = [
            part if part and size % mesh.shape[part] == 0 else None
            for part, size in zip(spec, leaf.shape)
        ]
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree_util.tree_map_with_path(where, state)


def split_batch(x: jax.Array) -> jax.Array:
    """The array, its first axis split like a batch if a mesh is set (`jax.set_mesh`).

    Said of the activations between layers, it makes the compiler bring a layer's
    weights to the sequences; left alone, it may bring activations to the weights.

    Args:
        x: (batch, ...).
    """
    return _constrained(x, BATCH)


def split_looked_up(x: jax.Array) -> jax.Array:
    """The rows looked up in an embedding split over "fsdp", split like a batch.

    In two steps: each device looks its part of the width up for the sequences of all,
    and then they exchange.

    Args:
        x: (batch, seq, hidden).
    """
    width = "fsdp" if x.shape[-1] % axis_sizes().get("fsdp", 1) == 0 else None
    return split_batch(_constrained(x, "data", None, width))


def gathered(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A weight with what "fsdp" splits of it brought together; its gradient is split.

    Said inside the scan over layers it makes the compiler bring one layer's weights,
    while the layer before is computed, and add its gradients up where they go. Left
    alone, TPUs' compiler cuts every product into as many as there are devices.

    Args:
        x: a weight of one layer.
        axes: the logical axis of each of its dimensions.
    """
    sizes = axis_sizes()
    if sizes.get("fsdp", 1) == 1:
        return x
    split = _parts(sizes, axes, x.shape)
    if "fsdp" not in split:
        return x
    whole = [None if part == "fsdp" else part for part in split]
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


def _constrained(x: jax.Array, *axes: Any) -> jax.Array:
    """`x` with its leading axes split over these mesh axes, where a mesh is set."""
    sizes = axis_sizes()
    lead = (axes[0],) if isinstance(axes[0], str) else axes[0]
    if not sizes or x.shape[0] % math.prod(sizes[axis] for axis in lead):
        return x
    spec = PartitionSpec(*axes, *[None] * (x.ndim - len(axes)))
    return jax.lax.with_sharding_constraint(x, spec)


def axis_sizes() -> dict[str, int]:
    """The axes of the mesh that is set; nothing where there is one device or none."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty or mesh.size == 1 else dict(mesh.shape)


def of_batch(mesh: Mesh, ndim: int, has_seq: bool = True) -> NamedSharding:
    """The sharding of an array (..., batch, seq), its sequences over "data" and "fsdp".

    Args:
        mesh: the device mesh.
        ndim: the number of axes of (..., batch, seq), 2 or more.
        has_seq: whether the array has the last of them.
    """
    seq = (None,) if has_seq else ()
    return NamedSharding(mesh, PartitionSpec(*[None] * (ndim - 2), BATCH, *seq))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds the whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, places: Any) -> Any:
    """The leaves of a tree where their shardings say; what is there already stays.

    Args:
        tree: whole arrays, alike in all processes, or ones that lie there.
        places: their shardings, in the structure of `tree`.
    """
    return jax.tree.map(_put, tree, places)


def with_numbers(tree: Any, mesh: Mesh) -> Any:
    """The tree with what is no array of JAX's yet put on every device whole.

    Args:
        tree: arrays that lie where they belong, and numpy numbers.
        mesh: the device mesh.
    """
    whole = replicated(mesh)
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else _put(x, whole), tree
    )


def _put(x: Any, place: jax.sharding.Sharding) -> jax.Array:
    there = isinstance(x, jax.Array) and x.sharding.is_equivalent_to(place, x.ndim)
    if there or place.is_fully_addressable:
        return jax.device_put(x, place)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, place, whole.__getitem__)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the devices, its sequences split over "data" and "fsdp".

    Args:
        batch: name -> (..., batch, seq), such as (accumulation, batch, seq), or (...,
            batch) of what is one value a sequence; `tokens` is among them.
        mesh: the device mesh.
    """
    ndim = batch["tokens"].ndim
    return {
        name: _put(x, of_batch(mesh, ndim, has_seq=x.ndim == ndim))
        for name, x in batch.items()
    }


def own_rows(mesh: Mesh, rows: int, parts: int = 1) -> np.ndarray | None:
    """Which rows of a batch the devices of this process take.

    Args:
        mesh: the device mesh.
        rows: of the batch.
        parts: into which it is cut for accumulation, one after another; each is split
            over the devices.

    Returns:
        (rows,) bool; None where they take all.
    """
    place = of_batch(mesh, 2)
    if place.is_fully_addressable:
        return None
    own = np.zeros(rows // parts, bool)
    for index in place.addressable_devices_indices_map((rows // parts, 1)).values():
        if index is not None:
            own[index[0]] = True
    return np.tile(own, parts)


def check_batch(sequences: int, mesh: Mesh, key: str) -> None:
    """Checks that the mesh divides a batch.

    Args:
        sequences: how many there are at a time.
        mesh: the device mesh.
        key: the configuration key that says so, for the message.

    Raises:
        InputError: the mesh does not divide them.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if sequences % parts:
        below, above = sequences // parts * parts, -(-sequences // parts) * parts
        near = f"{below} or {above}" if below else str(above)
        raise InputError(
            f"{key}: {sequences} sequences at a time cannot be split over {parts} "
            f"devices (mesh data x fsdp); use a multiple, such as {near}"
        )
