"""The memory of a GPU that XLA may count on while it compiles.

XLA for GPUs takes it that a program has 80 % of the device's memory. It takes off what
the program is given, and of the rest a twentieth. What the program makes has to fit
into that: until it does, XLA computes things once more in place of keeping them,
products of weights too. A base that fills most of a device leaves so little of the 80 %
that products are repeated though there is room. Source: XLA's `gpu_hlo_schedule.cc` and
`hlo_rematerialization.cc`.
"""

import math
import os
from typing import Any, NamedTuple

import jax

from jaxpeft.devices import host_memory
from jaxpeft.devices.gpus import GPUS

SHARE = 0.92  # of a GPU's memory that a program has; the runtime needs the rest
FLAG = "xla_gpu_memory_limit_slop_factor"
ASSUMED = 0.8  # of the memory, by XLA
USUAL = 95  # of a hundred of what is left, by XLA
LEAST = 0.05  # of the memory that XLA counts as left, for which a factor says much


class Room(NamedTuple):
    """A GPU's memory.

    Attributes:
        memory: the bytes of it that the driver reports.
        limit: the bytes of it that a program can have.
    """

    memory: int
    limit: float


def options(lowered: Any, room: Room) -> dict[str, int]:
    """What a compiler is told so that it counts on the memory that there is.

    It is told nothing where it counts on as much by itself, where `XLA_FLAGS` says
    something, and of programs that have arrays on the host, which need the room least.

    Args:
        lowered: a program for one GPU, `jax.stages.Lowered`.
        room: of that GPU.
    """
    if FLAG in os.environ.get("XLA_FLAGS", "") or host_memory.KIND in lowered.as_text():
        return {}
    given = sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(lowered.args_info)
    )
    counted = ASSUMED * room.memory - given
    if counted < LEAST * room.memory:
        return {}
    factor = int(USUAL * (room.limit - given) / counted)
    return {FLAG: factor} if factor > USUAL else {}


def room_of(device: Any) -> Room | None:
    """The room of a device that is here, by what JAX can take of it.

    Args:
        device: a `jax.Device`.

    Returns:
        None where it is no GPU, or one that is not known.
    """
    if device.platform != "gpu":
        return None
    memory = {gpu.kind: gpu.memory for gpu in GPUS.values()}.get(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None or limit is None:
        return None
    return Room(memory, min(limit, SHARE * memory))
