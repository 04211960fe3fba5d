"""What the devices of a mesh send each other in a compiled program."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.plan.loops import Run, fused, runs
from jaxpeft.plan.program_text import Array, Computation, Operation, Program, read

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# What computes for as long as a transfer may take.
COMPUTES = ("fusion", "dot", "convolution", "custom-call", "while", "call", "sort")

# Three ways to write them: listed, counted, and as axes of a mesh, whose devices may be
# numbered in another order.
_LISTED = re.compile(r"\{\{([\d,]*)\}")
_COUNTED = re.compile(r"\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        nbytes: of the array that it makes whole or adds up, on one device: the result
            of an all-gather, the operand of all others.
        group: the devices that take part, those of the first group for all.
        times: how often a run of the program performs it.
        name: what in the source it comes from.
        overlaps: whether something is computed between its start and its end.
    """

    kind: str
    nbytes: int
    group: tuple[int, ...]
    times: int
    name: str
    overlaps: bool = False

    @property
    def moved(self) -> float:
        """The bytes that a device sends for it in a run, by the ring algorithm."""
        return self.sent * self.times

    @property
    def sent(self) -> float:
        """The bytes that a device sends for it each time, by the ring algorithm."""
        share = (len(self.group) - 1) / len(self.group)
        if self.kind == "collective-permute":
            share = 1.0
        return self.nbytes * share * (2 if self.kind == "all-reduce" else 1)


class Transfer(NamedTuple):
    """A collective and where it stands in the schedule.

    Attributes:
        what: the collective.
        computation: the name of the computation that it is of.
        start: the operation that begins it.
        done: the operation that waits for its end, the same where it is one.
    """

    what: Collective
    computation: str
    start: str
    done: str


def collectives(program: Any) -> list[Collective]:
    """The collectives of a compiled program, each once.

    What is cut into a start, an end and steps within fusions between them is one. Loops
    are counted as `loops.runs` does.

    Args:
        program: a `jax.stages.Compiled`, its HLO text, or what `read` made of it.

    Raises:
        ValueError: the devices of a collective are written in a way that is not known.
    """
    read_one = program if isinstance(program, Program) else read(program)
    return [one.what for one in transfers(read_one)]


def totals(found: Iterable[Collective]) -> dict[str, float]:
    """The bytes that a device sends for each kind of collective that occurs.

    Args:
        found: the collectives of a program.

    Returns:
        {kind: bytes}.
    """
    sums: dict[str, float] = {}
    for one in found:
        sums[one.kind] = sums.get(one.kind, 0.0) + one.moved
    return sums


def transfers(program: Program) -> list[Transfer]:
    """The collectives of a program with their places in its schedule.

    Args:
        program: what was read of its text.

    Raises:
        ValueError: the devices of a collective are written in a way that is not known.
    """
    found: dict[tuple[str, ...], Transfer] = {}
    wrapped: set[str] = set()  # what an async-start runs, which stands for it
    computations: dict[str, Computation] = {}
    for run in runs(program):
        computations[run.computation.name] = run.computation
        if run.computation.name in wrapped:
            continue
        if run.operation.opcode == "async-start":
            wrapped |= {name for _, name in run.operation.called}
        for key, one in _begun(program, run):
            first = found.setdefault(key, one)
            # A later piece of one that was cut into several. Some may lie in loops
            # between its start and its end, and are no transfers of their own.
            if first.computation == one.computation:
                found[key] = first._replace(done=one.done)
    ends = {name for one in found.values() for name in (one.start, one.done)}
    return [
        one._replace(
            what=one.what._replace(
                overlaps=_computes(computations[one.computation], one, ends)
            )
        )
        for one in found.values()
    ]


def _begun(program: Program, run: Run) -> Iterator[tuple[tuple[str, ...], Transfer]]:
    """The collectives that an operation performs or begins, each with what tells it
    from others."""
    outer = run.operation
    inside: list[Operation] = [outer]
    if outer.opcode == "fusion":
        inside = [one for _, one in fused(program, outer)]
    elif outer.opcode == "async-start":
        called = [program.computations[name] for _, name in outer.called]
        inside = [x for one in called for x in one.operations.values()]
    for one in inside:
        kind = one.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if one is not outer and any("all-reduce-scatter" in x for _, x in outer.called):
            kind = "reduce-scatter"
        group = _first_group(one.attributes)
        what = Collective(kind, _whole(one, kind, group), group, run.times, one.op_name)
        # Pieces of one collective share a channel; outside fusions each is its own.
        channel = one.attributes.get("channel_id", "") if one is not outer else ""
        place = run.computation.name
        yield (
            (kind, channel or f"%{place} {outer.name} {one.name}"),
            Transfer(what, place, outer.name, _done(run.computation, outer)),
        )


def _done(computation: Computation, start: Operation) -> str:
    """What waits for the end of an operation that may only start something."""
    at = start
    while at.opcode.endswith(("-start", "-update")):
        users = [
            x
            for x in computation.users[at.name]
            if x.opcode.endswith(("-done", "-update"))
        ]
        if not users:
            break
        at = users[0]
    return at.name


def _computes(computation: Computation, one: Transfer, ends: set[str]) -> bool:
    names = list(computation.operations)
    between = names[names.index(one.start) + 1 : names.index(one.done)]
    return any(
        name not in ends and computation.operations[name].opcode in COMPUTES
        for name in between
    )


def _whole(one: Operation, kind: str, group: tuple[int, ...]) -> int:
    """The bytes of what a collective makes whole or adds up."""
    arrays = one.arrays
    if one.opcode.endswith("-start") and kind != "all-reduce":
        # What it takes, what it gives, and counters of the device.
        given = one.result[1] if not isinstance(one.result, Array) else one.result
        arrays = (given,) if isinstance(given, Array) else _arrays(given)
    size = sum(x.nbytes for x in arrays)
    is_part = kind == "reduce-scatter" and one.opcode.startswith(kind)
    return size * (len(group) if is_part else 1)


def _arrays(result: Any) -> tuple[Array, ...]:
    if isinstance(result, Array):
        return (result,)
    return tuple(x for one in result for x in _arrays(one))


def _first_group(attributes: dict[str, str]) -> tuple[int, ...]:
    """The numbers of the devices in the first group of a collective."""
    pairs = attributes.get("source_target_pairs")
    groups = attributes.get("replica_groups", pairs or "")
    groups += attributes.get("device_ids", "")  # of the axes' devices, where renumbered
    if listed := _LISTED.match(groups):
        return _numbers(listed[1])
    if counted := _COUNTED.match(groups):
        size, shape, order = counted.groups()
        return tuple(_ordered(shape, order).ravel()[: int(size)].tolist())
    if axes := _AXES.match(groups):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", axes[1])}
        ids = np.arange(math.prod(sizes.values()))
        if order := _ORDER.search(axes[2]):
            ids = _ordered(*order.groups())
        named = re.findall(r"'([^']*)'", axes[3])
        at = tuple(slice(None) if name in named else 0 for name in sizes)
        return tuple(ids.reshape(tuple(sizes.values()))[at].ravel().tolist())
    raise ValueError(f"the devices of a collective are written in a new way: {groups}")


def _ordered(shape: str, order: str | None) -> np.ndarray:
    """Device numbers counted through `shape`, its axes then in another order."""
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
