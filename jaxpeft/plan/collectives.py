"""What the devices of a mesh send each other in a compiled program."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16},
    **{"f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64},
    **{"f64": 64, "c64": 64, "c128": 128},
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ("
    + "|".join(KINDS)
    + r")(-start)?\((.*)$"
)
_ARRAY = re.compile(r"\b(" + "|".join(BITS) + r")\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)="
    r"%?([\w.-]+)|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Three ways to write them: listed, counted, and as axes of a mesh, whose devices may be
# numbered in another order.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIR = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")
_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        nbytes: of the array that it makes whole or adds up, on one device: the result
            of an all-gather, the operand of all others.
        group: the devices that take part, those of the first group for all.
        times: how often a run of the program performs it.
        name: what in the source it comes from.
    """

    kind: str
    nbytes: int
    group: tuple[int, ...]
    times: int
    name: str

    @property
    def moved(self) -> float:
        """The bytes that a device sends for it in a run, by the ring algorithm."""
        share = (len(self.group) - 1) / len(self.group)
        if self.kind == "collective-permute":
            share = 1.0
        return (
            self.nbytes * self.times * share * (2 if self.kind == "all-reduce" else 1)
        )


def collectives(program: Any) -> list[Collective]:
    """The collectives of a compiled program.

    A loop whose length the compiler does not know counts once.

    Args:
        program: a `jax.stages.Compiled` or its HLO text.
    """
    text = program if isinstance(program, str) else program.as_text()
    bodies, entry = _computations(text.splitlines())
    operations: list[Collective] = []

    def visit(name: str, times: int) -> None:
        for line in bodies[name]:
            operations.extend(_in_line(line, times))
            trips = _TRIPS.search(line) if " while(" in line else None
            for called in _called(line):
                if called in bodies:
                    visit(called, times * int(trips.group(1)) if trips else times)

    visit(entry, 1)
    return operations


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


def _computations(lines: list[str]) -> tuple[dict[str, list[str]], str]:
    """The computations of an HLO text.

    Returns:
        ({name: its lines}, the name of the entry).
    """
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in lines:
        if start := _COMPUTATION.match(line):
            name = start.group(2)
            bodies[name] = []
            entry = name if start.group(1) else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _called(line: str) -> Iterator[str]:
    for one, several in _CALLED.findall(line):
        yield from [one] if one else re.findall(r"[\w.-]+", several)


def _in_line(line: str, times: int) -> Iterator[Collective]:
    match = _OPERATION.match(line)
    if match is None:
        return
    result, kind, started, rest = match.groups()
    arrays = [_nbytes(*array) for array in _ARRAY.findall(result)]
    if started and kind in ("all-gather", "collective-permute"):
        # Operands and results of what only starts here.
        arrays = arrays[len(arrays) // 2 :]
    group = _first_group(rest)
    whole = sum(arrays) * (len(group) if kind == "reduce-scatter" else 1)
    name = _NAME.search(rest)
    yield Collective(kind, whole, group, times, name.group(1) if name else "")


def _nbytes(dtype: str, shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n) * BITS[dtype] // 8


def _first_group(rest: str) -> tuple[int, ...]:
    """The numbers of the devices in the first group of a collective."""
    if listed := _LISTED.search(rest):
        return _numbers(listed[1])
    if pair := _PAIR.search(rest):
        return int(pair[1]), int(pair[2])
    if counted := _COUNTED.search(rest):
        size, shape, order = counted.groups()
        return tuple(_ordered(shape, order).ravel()[: int(size)].tolist())
    if axes := _AXES.search(rest):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", axes[1])}
        ids = np.arange(math.prod(sizes.values()))
        if order := _ORDER.search(axes[2]):
            ids = _ordered(*order.groups())
        named = re.findall(r"'([^']*)'", axes[3])
        at = tuple(slice(None) if name in named else 0 for name in sizes)
        return tuple(ids.reshape(tuple(sizes.values()))[at].ravel().tolist())
    raise ValueError(f"the devices of a collective are written in a new way: {rest}")


def _ordered(shape: str, order: str | None) -> np.ndarray:
    """Device numbers counted through `shape`, its axes then in another order."""
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
