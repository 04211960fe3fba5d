"""A step compiled by the vendor's own compiler, for devices that are not here."""

import gzip
import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxpeft import console
from jaxpeft.devices import gpu_memory, programs, termination, xla_options
from jaxpeft.devices.topologies import Topology

FOLDER = "plans"  # of what compilers said, beside the programs that are kept
SIZE = 2**28  # bytes in it, beyond which the oldest go
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The packages that make programs of a platform, by which version they differ.
COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-pjrt", "jax-cuda13-pjrt")}


@dataclass(frozen=True)
class Verdict:
    """What a compiler says of a program. Sizes are bytes on one device.

    Attributes:
        compiler: its name and version.
        seconds: that it took, when it was compiled.
        arguments: what the program is given, as it lies in the device's memory.
        temporaries: what it needs beside that at its fullest moment.
        results: what it gives that does not take an argument's place.
        refused: the compiler's words, where the program does not fit the device; the
            sizes are then 0.
        text: the compiled program; "" where it is refused.
        host_arguments: of the host's memory, for what the program is given there.
        host_temporaries: likewise, for what it makes there and needs at its fullest
            moment.
    """

    compiler: str
    seconds: float
    arguments: int
    temporaries: int
    results: int
    refused: str
    text: str
    host_arguments: int = 0
    host_temporaries: int = 0

    @property
    def total(self) -> int:
        """The bytes of a device at the fullest moment.

        Of a refused program what the compiler says that it needs; 0: it does not say.
        """
        if self.refused:
            return needed(self.refused)
        return self.arguments + self.temporaries + self.results


def compiled(
    lowered: Any, target: Topology, folder: Path | None
) -> tuple[Verdict, bool]:
    """What the compiler of a target says of a step.

    Args:
        lowered: the step, a `jax.stages.Lowered` for the target's devices.
        target: what it is for.
        folder: where the same question's answer is kept; None: nowhere.

    Returns:
        (the verdict, whether it was kept from before).
    """
    name = compiler(target)
    room = None
    if target.gpu is not None:
        memory = target.gpu.memory
        room = gpu_memory.Room(memory, gpu_memory.SHARE * memory)
    told = xla_options.options(
        lowered, target.platform, target.count, room, carries=True
    )
    asked = [lowered.as_text(), name, jax.__version__, str(target.grid), target.name]
    asked += [f"{name}={value}" for name, value in told.items()]
    key = hashlib.sha256("\0".join(asked).encode()).hexdigest()
    if (found := _kept(folder, key)) is not None:
        return found, True
    start = time.monotonic()
    doing = f"compiling for {target.text} with {name}: minutes for large models"
    with console.waiting(doing):
        try:
            program = termination.in_background(
                lambda: lowered.compile({**target.options, **told} or None)
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            took = time.monotonic() - start
            verdict = Verdict(name, took, 0, 0, 0, str(error), "")
        else:
            verdict = _of(program, name, time.monotonic() - start)
    _keep(folder, key, verdict)
    return verdict, False


def _of(program: Any, name: str, seconds: float) -> Verdict:
    memory = program.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Verdict(
        compiler=name,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        results=max(0, new),
        refused="",
        text=program.as_text(),
        host_arguments=memory.host_argument_size_in_bytes,
        host_temporaries=memory.host_temp_size_in_bytes,
    )


def compiler(target: Topology) -> str:
    """The compiler of a target that is installed, with its version."""
    for package in COMPILERS[target.platform]:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return f"{target.platform} of jaxlib {metadata.version('jaxlib')}"


def needed(refusal: str) -> int:
    """The bytes that a refused program needs of a device, by its compiler's words.

    Args:
        refusal: what the compiler says.

    Returns:
        The bytes; 0: it says none.
    """
    forms = (r"Used ([\d.]+)([KMGT]?)B? of", r"\(([\d.]+)([KMGT]?)B?\) exceeds")
    for form in forms:
        if found := re.search(form, refusal):
            return round(float(found[1]) * UNITS[found[2]])
    return 0


def folder() -> Path | None:
    """Where verdicts are kept; None: nothing is."""
    return programs.beside(FOLDER)


def _kept(folder: Path | None, key: str) -> Verdict | None:
    if folder is None:
        return None
    try:
        packed = (folder / f"{key}.json.gz").read_bytes()
        return Verdict(**json.loads(gzip.decompress(packed)))
    except (OSError, EOFError, ValueError, TypeError):
        return None  # there is none, or it is damaged: it is written anew


def _keep(folder: Path | None, key: str, verdict: Verdict) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{key}.json.gz"
        part = path.with_suffix(".part")
        part.write_bytes(gzip.compress(json.dumps(asdict(verdict)).encode()))
        part.replace(path)
        left = SIZE
        for one in sorted(folder.iterdir(), key=_newest_first):
            left -= one.stat().st_size
            if left < 0:
                one.unlink(missing_ok=True)
    except OSError as error:
        console.warn(f"what the compiler said is not kept: {error}")


def _newest_first(path: Path) -> float:
    return -path.stat().st_mtime
