"""The host's memory as devices reach it by themselves: pinned, a link away from theirs.

JAX gives every array's sharding a kind of memory, and a program copies between them
beside its other work. On a CPU all kinds are the same memory: nothing is won there, and
nothing changes.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxpeft.errors import InputError

KIND = "pinned_host"
STACK = 3  # dimensions of a stack of matrices, at the least
# On some GPUs alone XLA begins a copy before the operation that wants it by itself.
AHEAD = {"xla_gpu_enable_latency_hiding_scheduler": True}
SENT = f'_xla_buffer_placement = "{KIND}"'  # said of a copy in a lowered program


def is_lacking(device: Any) -> bool:
    """Whether a device says that it cannot reach such memory.

    Args:
        device: one that is here, or a compiler's description of one.
    """
    kinds = {memory.kind for memory in device.addressable_memories()}
    # A description of a GPU names no memory at all; every GPU has this one.
    return bool(kinds) and KIND not in kinds


def check(mesh: jax.sharding.Mesh, key: str, value: Any, remedy: str) -> None:
    """Checks that the devices of a mesh can keep arrays in the host's memory.

    Args:
        mesh: the devices.
        key: the configuration key that asks for it, for the message.
        value: what it says.
        remedy: what to do without it, for the message.

    Raises:
        InputError: they cannot.
    """
    device = mesh.devices.flat[0]
    if is_lacking(device):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise InputError(
            f"{key}: found {shown}; {device.device_kind} ({device.platform}) has no "
            f"memory of the kind {KIND!r}, which arrays would lie in: {remedy}"
        )


def options(lowered: Any, platform: str) -> dict[str, bool]:
    """What a compiler is told so that copies from there run beside the rest.

    Where something is sent as well it is told nothing: to send beside the rest keeps
    several layers' activations at once, the very memory that was to be saved.

    Args:
        lowered: a program, `jax.stages.Lowered`.
        platform: "cpu", "gpu" or "tpu".
    """
    text = lowered.as_text() if platform == "gpu" else ""
    return AHEAD if KIND in text and SENT not in text else {}


def brought(tree: Any) -> Any:
    """The arrays of a tree in the device's memory; what is there stays.

    Args:
        tree: arrays of a program that is traced.
    """
    return jax.tree.map(_brought, tree)


def sent(tree: Any) -> Any:
    """The arrays of a tree in the host's memory.

    Args:
        tree: arrays of a program that is traced.
    """
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host), tree)


def is_there(x: Any) -> bool:
    """Whether an array of a program that is traced lies in the host's memory."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def like(tree: Any, examples: Any) -> Any:
    """The arrays of a tree, each in the memory where its example lies.

    Args:
        tree: arrays of a program that is traced.
        examples: others, in the same structure.
    """
    return jax.tree.map(
        lambda x, y: sent(x) if is_there(y) else x,
        tree,
        examples,
    )


def _brought(x: Any) -> Any:
    return jax.device_put(x, jax.memory.Space.Device) if is_there(x) else x


def placed(places: Any) -> Any:
    """Shardings of the same parts of arrays in the host's memory.

    Args:
        places: a tree of shardings.
    """
    return jax.tree.map(_placed, places)


def _placed(place: NamedSharding) -> NamedSharding:
    there = place.with_memory_kind(KIND)
    if there.memory_kind == KIND:
        return there
    # Of devices that name no memory JAX drops the kind, of a mesh's mere axes it does
    # not; the devices are those of the arguments that lie in their own memory.
    return NamedSharding(place.mesh.abstract_mesh, place.spec, memory_kind=KIND)


def placed_stacks(places: Any, arrays: Any) -> Any:
    """Shardings of stacks of matrices in the host's memory; others are as they were.

    What is smaller, such as norms and the scale of each layer, is needed at once and
    saves nothing.

    Args:
        places: a tree of shardings.
        arrays: what lies there, arrays or shapes, in the same structure.
    """
    return jax.tree.map(
        lambda place, x: _placed(place) if len(x.shape) >= STACK else place,
        places,
        arrays,
    )
