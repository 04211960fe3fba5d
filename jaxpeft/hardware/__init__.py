"""What a program is compiled for: the kind of device, how many, and what they can do.

A target goes with the mesh. Whoever compiles sets one (`jax.set_mesh`), of devices that
are here or of a compiler's description of others, and what depends on the device asks
`current` while it is traced. JAX keeps the mesh in the key of its caches, so that no
program of one target is taken for another's.
"""

from dataclasses import dataclass
from typing import Any

import jax

from jaxpeft.hardware.devices import Device, device_of

__all__ = ["Device", "Target", "current", "is_here", "of_mesh"]


@dataclass(frozen=True)
class Target:
    """Devices of one kind that run a program together.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: JAX's `device_kind`.
        count: the number of devices.
    """

    platform: str
    kind: str
    count: int

    @property
    def device(self) -> Device | None:
        """What one device has and can do; None where that is not known."""
        return device_of(self.kind)


def current() -> Target:
    """The target of what is being traced: that of the mesh that is set.

    Without a mesh, as in a program of somebody else's, the devices of this process.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        first = jax.devices()[0]
        return Target(first.platform, first.device_kind, jax.device_count())
    device = mesh.abstract_device
    return Target(device.platform, device.device_kind, mesh.size)


def of_mesh(mesh: jax.sharding.Mesh) -> Target:
    """The target that a mesh of devices is.

    Args:
        mesh: of devices that are here, or that a compiler's description names.
    """
    first = mesh.devices.flat[0]
    return Target(first.platform, first.device_kind, mesh.size)


def is_here(target: Target) -> bool:
    """Whether this process has such devices itself, and does not only compile for them.

    Args:
        target: what a program is compiled for.
    """
    return any(device.device_kind == target.kind for device in jax.local_devices())
