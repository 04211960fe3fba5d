"""Devices that are not here, as their vendors' compilers describe them.

A target is named as the field names it. The number is what the vendor counts: chips of
v5e and v6e (`v5e-16`), TensorCores of v3, v4, v5p and tpu7x, of which a chip has two
(`v5p-8` is 4 chips), GPUs after an "x" (`h100x8`). A topology names itself:
`v5p:2x2x2`, `h100:2x8` (nodes x GPUs). How many devices JAX makes of it is another
thing: one for each chip of v4 and v5p, two for each of v3 and tpu7x.
"""

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from jaxpeft.devices.gpus import GPUS, Gpu, description
from jaxpeft.errors import InputError, suggest

NODE = 8  # GPUs in a node


class Tpu(NamedTuple):
    """A kind of TPU, and how it is counted.

    Attributes:
        cores: TensorCores of a chip, where its targets count those; else 1.
        devices: that JAX makes of a chip.
        dimensions: of the grid that its chips form.
        most: chips in the largest slice.
        memory: GiB of a device that its compiler leaves to a program, as it says where
            one needs more.
        joined: whether the cores of a chip are one device by a setting.
    """

    cores: int
    devices: int
    dimensions: int
    most: int
    memory: float
    joined: bool = False


# From the pages on each in Google Cloud's documentation.
TPUS: dict[str, Tpu] = {
    "v3": Tpu(2, 2, 2, 1024, 15.48),
    "v4": Tpu(2, 1, 3, 4096, 30.75, joined=True),
    "v5e": Tpu(1, 1, 2, 256, 15.75),
    "v5p": Tpu(2, 1, 3, 6144, 95.74),
    "v6e": Tpu(1, 1, 2, 256, 31.25),
    "tpu7x": Tpu(2, 2, 3, 9216, 94.75),
}
# The grid of a slice of so many chips; larger ones name their topology.
GRIDS: dict[int, dict[int, str]] = {
    2: {
        **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
        **{128: "8x16", 256: "16x16", 512: "16x32", 1024: "32x32"},
    },
    3: {
        **{1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"},
        **{64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16"},
        **{2048: "8x16x16", 4096: "16x16x16"},
    },
}
# A process that asks for no TPU of its own: nothing is looked for in the network, the
# library is shared with other processes, and only what is fatal is said.
QUIET_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_MIN_LOG_LEVEL": "4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Of a compilation for GPUs: kernels are timed on the device itself, if it is here.
GPU_OPTIONS = {"xla_gpu_autotune_level": "0"}
EXAMPLES = "v5e-16, v5p-8, v6e-4, tpu7x-8, v4-8, h100x8, rtx4090x1, v5p:2x2x2"


class Topology(NamedTuple):
    """Devices that a program can be compiled for.

    Attributes:
        text: as it was named.
        name: the kind of device, a key of `TPUS` or `GPUS`.
        grid: of a TPU the grid of chips, of GPUs (nodes, GPUs in each).
    """

    text: str
    name: str
    grid: tuple[int, ...]

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that it is; None: it is a TPU."""
        return GPUS.get(self.name)

    @property
    def platform(self) -> str:
        """JAX's name for it: "gpu" or "tpu"."""
        return "tpu" if self.gpu is None else "gpu"

    @property
    def count(self) -> int:
        """The number of devices, as JAX counts them."""
        chips = math.prod(self.grid)
        return chips if self.gpu else chips * TPUS[self.name].devices

    @property
    def memory(self) -> int:
        """The bytes of a device that a program can have, by its compiler or driver."""
        return (
            round(TPUS[self.name].memory * 2**30) if not self.gpu else self.gpu.memory
        )

    @property
    def options(self) -> dict[str, str]:
        """What the compiler is told for want of the device itself."""
        return {} if self.gpu is None else GPU_OPTIONS


def parse(text: str) -> Topology:
    """The target that a text names.

    Args:
        text: such as "v5e-16", "h100x8" or "v5p:2x2x2".

    Raises:
        InputError: there is no such device, or no such number of it.
    """
    word = text.strip().lower()
    topology = re.fullmatch(r"([^:]+):(\d+(?:x\d+)*)", word)
    counted = re.fullmatch(r"(.+?)(-|x)(\d+)", word)
    if topology and topology[1] in {**TPUS, **GPUS}:
        return _by_grid(text, topology[1], topology[2])
    if counted and counted[2] == "-" and counted[1] in TPUS:
        return _tpu(text, counted[1], int(counted[3]))
    for name in GPUS:
        if word.startswith(f"{name}x") and word[len(name) + 1 :].isdigit():
            return _gpus(text, name, int(word[len(name) + 1 :]))
    name = re.split(r":|x\d+$|-\d+$", word)[0]
    if word in TPUS or word in GPUS:
        how = f"{word}-16" if word in TPUS else f"{word}x8"
        raise InputError(f"--target: {text!r} says not how many; for example {how}")
    known = [*TPUS, *GPUS]
    raise InputError(
        f"--target: {text!r} is not known{suggest(name, known)} (targets are named "
        f"like {EXAMPLES})"
    )


def _tpu(text: str, name: str, number: int) -> Topology:
    tpu = TPUS[name]
    slices = GRIDS[tpu.dimensions].items()
    grids = {chips: grid for chips, grid in slices if chips <= tpu.most}
    chips = number // tpu.cores
    if number % tpu.cores or chips not in grids:
        counts = ", ".join(str(tpu.cores * one) for one in grids)
        what = "TensorCores, two a chip" if tpu.cores > 1 else "chips"
        raise InputError(
            f"--target: {text!r}: there is no slice of so many; {name} comes in "
            f"{counts} ({what}), and by topology, such as "
            f"{name}:{grids[16]}"
        )
    return Topology(text, name, _numbers(grids[chips]))


def _gpus(text: str, name: str, number: int) -> Topology:
    if number < 1 or (number > NODE and number % NODE):
        raise InputError(
            f"--target: {text!r}: a node has 1 to {NODE} GPUs, and several nodes have "
            f"{NODE} each; name other nodes as {name}:2x4 (nodes x GPUs)"
        )
    return Topology(text, name, (max(1, number // NODE), min(number, NODE)))


def _by_grid(text: str, name: str, grid: str) -> Topology:
    sizes = _numbers(grid)
    wanted = 2 if name in GPUS else TPUS[name].dimensions
    if len(sizes) != wanted or 0 in sizes:
        example = "2x8 (nodes x GPUs)" if name in GPUS else GRIDS[wanted][16]
        raise InputError(
            f"--target: {text!r}: the topology of {name} has {wanted} numbers, none of "
            f"them 0, such as {name}:{example}"
        )
    return Topology(text, name, sizes)


def _numbers(grid: str) -> tuple[int, ...]:
    return tuple(map(int, grid.split("x")))


def devices(target: Topology) -> list[Any]:
    """The devices of a target, for a mesh that programs are compiled for, never run.

    Args:
        target: see `parse`.

    Raises:
        InputError: its compiler is not installed, or refuses the topology.
    """
    if remedy := missing(target):
        raise InputError(remedy)
    for name, value in QUIET_TPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    if target.gpu is not None:
        where = "x".join(map(str, (1, *target.grid)))
        name, more = "cuda", {"target_config": description(target.gpu)}
        found = topologies.get_topology_desc("", name, topology=where, **more)
        return list(found.devices)
    grid, more = "x".join(map(str, target.grid)), {}
    if math.prod(target.grid) == 1:  # a host of its own
        more["chips_per_host_bounds"] = [1, 1, 1]
    if TPUS[target.name].joined:
        more["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(f"{target.name}:{grid}", "tpu", **more)
    except RuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise InputError(f"--target: {target.text!r}: {reason}") from None
    return list(found.devices)


def missing(target: Topology) -> str:
    """What to do where the compiler of a target is not installed; "": it is.

    Args:
        target: see `parse`.
    """
    if target.gpu is None:
        installed, extra = find_spec("libtpu") is not None, "aot-tpu"
    else:
        plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
        there = find_spec("jax_plugins") is not None
        installed = there and any(find_spec(name) is not None for name in plugins)
        extra = "aot-cuda"
    if installed:
        return ""
    return (
        f"--target: {target.text!r}: its compiler is not installed; "
        f"pip install 'jaxpeft[{extra}]' brings it (no device and no driver is needed)"
    )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keeps from standard error what libraries write there while they are loaded.

    The parts of JAX for GPUs say at their import that there is no driver, before any
    setting is read. For processes that want none.
    """
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
