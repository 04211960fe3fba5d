"""The device mesh, and where each array lies on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpeft.errors import InputError

AXES = ("data", "fsdp", "tensor")
Part = str | tuple[str, ...] | None  # the axes of a mesh that split a dimension

# Logical axis of a weight -> mesh axis that splits it; what is absent is replicated.
RULES: dict[str, str] = {
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
# The sequences of a batch go over both: with fsdp every device has its own, too.
BATCH = ("data", "fsdp")
# What each sequence is split over, a part of it to a device; a mesh of one such part
# has no axis for it. Weights are split over it as over "fsdp": a long sequence is
# trained one or few at a time, which leaves "fsdp" none to split.
CONTEXT = "context"


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "tensor", and "context" if it is split.

    Args:
        data: over how many devices the sequences of a batch are split; -1: what is
            left.
        fsdp: over how many devices weights and sequences are split; -1: what is left.
        tensor: over how many devices each layer is split; -1: what is left.
        context: over how many devices each sequence is split; -1: what is left.
        devices: the devices of the mesh; None: all that JAX has.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or one is 0 or
            several are -1.
    """
    devices = list(jax.devices() if devices is None else devices)
    # Neighbours in this order have the fastest links: of the last axis.
    sizes = {"data": data, "fsdp": fsdp, CONTEXT: context, "tensor": tensor}
    if context == 1:
        del sizes[CONTEXT]
    if min(sizes.values()) < -1 or 0 in sizes.values():
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
    kept = {axis: n for axis, n in zip(sizes, shape) if axis in AXES or n > 1}
    kinds = (AxisType.Auto,) * len(kept)
    grid = np.asarray(devices).reshape(tuple(kept.values()))
    return Mesh(grid, tuple(kept), axis_types=kinds)


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
    return NamedSharding(mesh, PartitionSpec(*split_by(mesh.shape, axes, shape)))


def split_by(
    sizes: Mapping[str, int], axes: Sequence[str | None], shape: Sequence[int]
) -> list[Part]:
    """The mesh axes that split each dimension; None: none does, or it does not fit.

    Args:
        sizes: of the axes of a mesh.
        axes: the logical axis of each dimension, as for `named`.
        shape: the array's shape.
    """
    parts = [RULES.get(name) if name else None for name in axes]
    return [fitting(sizes, part, size) for part, size in zip(parts, shape, strict=True)]


def fitting(sizes: Mapping[str, int], axis: str | None, size: int) -> Part:
    """What splits a dimension that an axis is to split; None: nothing.

    Args:
        sizes: of the axes of a mesh.
        axis: one of them; "fsdp" brings "context" along.
        size: of the dimension.
    """
    both = ("fsdp", CONTEXT)
    if axis == "fsdp" and CONTEXT in sizes and size % parts_of(sizes, both) == 0:
        return both
    return axis if axis and size % sizes[axis] == 0 else None


def parts_of(sizes: Mapping[str, int], axes: Part) -> int:
    """Into how many parts some axes split a dimension.

    Args:
        sizes: of the axes of a mesh.
        axes: one or several of them, or ones that it does not have; None: none.
    """
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(sizes.get(axis, 1) for axis in names)


def is_whole(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> bool:
    """Whether an array stays whole though an axis of the mesh was to split it.

    Args:
        mesh: the device mesh.
        axes: the logical axis of each dimension.
        shape: the array's shape.
    """
    sizes = mesh.shape
    meant = [RULES[name] for name in axes if name in RULES]
    meant += [CONTEXT] if "fsdp" in meant else []
    found = math.prod(parts_of(sizes, part) for part in split_by(sizes, axes, shape))
    return found == 1 and parts_of(sizes, tuple(meant)) > 1


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
            part if size % parts_of(mesh.shape, part) == 0 else None
            for part, size in zip(spec, leaf.shape)
        ]
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree_util.tree_map_with_path(where, state)


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


def placed(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, segments: bool = False
) -> dict[str, jax.Array]:
    """A batch of the data on the devices, as long as the mesh wants its rows.

    Args:
        batch: as for `put_batch`, padded on the right.
        mesh: the device mesh.
        segments: whether `segments` goes with it; in rows of one example each it says
            nothing, and a step without it asks less of attention.
    """
    kept = {n: x for n, x in batch.items() if segments or n != "segments"}
    return put_batch(filled_up(kept, mesh), mesh)


def filled_up(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """A batch with rows as long as it takes to split them over "context".

    What is filled in is like the padding of short rows, which nothing is learned of: 0
    everywhere. Lengths of rows are thus the same on every mesh.

    Args:
        batch: as for `put_batch`, padded on the right.
        mesh: the device mesh.
    """
    ndim, length = batch["tokens"].ndim, batch["tokens"].shape[-1]
    short = -length % mesh.shape.get(CONTEXT, 1)
    if not short:
        return dict(batch)
    widths = [(0, 0)] * (ndim - 1) + [(0, short)]
    return {n: np.pad(x, widths) if x.ndim == ndim else x for n, x in batch.items()}


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


def check_length(length: int, mesh: Mesh) -> None:
    """Checks that the mesh divides the longest rows.

    Args:
        length: `data.max_length`.
        mesh: the device mesh.

    Raises:
        InputError: the mesh does not divide it.
    """
    parts = mesh.shape.get(CONTEXT, 1)
    if length % parts:
        below, above = length // parts * parts, -(-length // parts) * parts
        near = f"{below} or {above}" if below else str(above)
        raise InputError(
            f"data.max_length: found {length}; a sequence of so many tokens cannot be "
            f"split over {parts} devices (mesh.context); use a multiple, such as {near}"
        )
