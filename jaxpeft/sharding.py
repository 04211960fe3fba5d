"""The device mesh, and where each array lies on it."""

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


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "tensor"; -1 takes what is left.

    Raises InputError where the sizes do not multiply to the number of devices, and
    where one is 0 or several are -1.
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
        raise InputError(
            f"mesh: {given} needs {fixed} devices or a multiple, and there are "
            f"{len(devices)}; choose sizes whose product is {len(devices)}, or -1 for "
            "one of them"
        )
    return Mesh(
        np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3
    )


def named(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]
) -> NamedSharding:
    """The sharding of one array from its logical axes.

    A dimension that the mesh axis does not divide is replicated instead.
    """
    parts = []
    for name, size in zip(axes, shape, strict=True):
        part = RULES.get(name) if name else None
        parts.append(part if part and size % mesh.shape[part] == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*parts))


def of(mesh: Mesh, axes: Any, tree: Any) -> Any:
    """The sharding of every leaf of `tree`, whose logical axes stand in `axes`."""
    return jax.tree.map(lambda x, names: named(mesh, names, x.shape), tree, axes)


def of_state(mesh: Mesh, state: Any, params: Any, placed: Any) -> Any:
    """Where each leaf of an optimizer's state lies: like the parameter it belongs to.

    params, placed: the parameters (arrays or shapes) and their shardings, one
    structure. A state's leaf belongs to the parameter whose path is a part of its own.
    With as many dimensions it is split as the parameter is, wherever the mesh divides
    it (codes, and the scales of their blocks); what is smaller is replicated.
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


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the devices, its sequences split over "data" and "fsdp".

    Leaves (..., batch, seq), such as (accumulation, batch, seq).
    """

    def put(x: np.ndarray) -> jax.Array:
        lead = (None,) * (x.ndim - 2)
        spec = PartitionSpec(*lead, ("data", "fsdp"), None)
        return jax.device_put(x, NamedSharding(mesh, spec))

    return {name: put(value) for name, value in batch.items()}


def check_batch(sequences: int, mesh: Mesh, key: str) -> None:
    """Raises InputError, naming `key`, unless the mesh divides `sequences`."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if sequences % parts:
        below, above = sequences // parts * parts, -(-sequences // parts) * parts
        near = f"{below} or {above}" if below else str(above)
        raise InputError(
            f"{key}: {sequences} sequences at a time cannot be split over {parts} "
            f"devices (mesh data x fsdp); use a multiple, such as {near}"
        )
