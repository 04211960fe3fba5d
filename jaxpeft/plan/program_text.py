"""The text of a compiled program (XLA's optimized HLO), read into operations."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

# Of each element. Eight-bit floats have many names, all with an 8 in them.
BITS = {
    **{"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16},
    **{"u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64},
    **{"u64": 64, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4, "token": 0},
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_END = re.compile(r"^\}(,? execution_thread=.*)?$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r" ([\w-]+)\(")
# Strings whole, so that what stands in them is no bracket of the text.
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]')
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_ALIAS = re.compile(r"\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}")
_FRAME = re.compile(r"(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}")
_LOCATION = re.compile(r"(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)")
_NAMED = re.compile(r'(\d+) "(.*)"')
# What an operation calls, in the order that they run where there are several.
_CALLS = ("calls", "to_apply", "condition", "body", "true_computation")
_CALLS += ("false_computation", "branch_computations", "called_computations")


class Array(NamedTuple):
    """One array as a program has it on one device.

    Attributes:
        dtype: XLA's name of it, such as "bf16".
        shape: its dimensions.
        layout: how it lies in memory, as it is written; "": not said.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def nbytes(self) -> int:
        """Its bytes, without what tiles leave empty."""
        return -(-math.prod(self.shape) * bits(self.dtype) // 8)

    @property
    def space(self) -> int:
        """The memory that it lies in: 0 is the device's, others are small and near."""
        found = _SPACE.search(self.layout)
        return int(found[1]) if found else 0

    @property
    def held(self) -> int:
        """Its bytes with what tiles leave empty, as a TPU has them."""
        tile = _TILE.search(self.layout)
        if tile is None:
            return self.nbytes
        order = self.layout[1:].split(":")[0]
        sizes = [self.shape[int(i)] for i in order.split(",") if i]
        for at, size in enumerate(reversed([int(n) for n in tile[1].split(",")])):
            if at < len(sizes):
                sizes[at] = -(-sizes[at] // size) * size
        return -(-math.prod(sizes) * bits(self.dtype) // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


# An array, or several of them.
Result = Array | tuple["Result", ...]


class Frame(NamedTuple):
    """A place in the source that an operation comes from.

    Attributes:
        function: its qualified name.
        file: its path.
        line: counted from 1.
    """

    function: str
    file: str
    line: int


@dataclass
class Operation:
    """One operation of a computation.

    Attributes:
        name: the only one of its name in the program.
        opcode: what it does, such as "fusion".
        result: its array or arrays.
        operands: the names of what it takes; of a constant, its value.
        rest: its attributes as they are written.
        is_root: whether it is what its computation gives.
    """

    name: str
    opcode: str
    result: Result
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result, those of tuples one after another."""
        return tuple(_flat(self.result))

    @property
    def nbytes(self) -> int:
        """The bytes of its result."""
        return sum(x.nbytes for x in self.arrays)

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Its attributes, each as it is written."""
        pairs = (part.strip().partition("=") for part in _split(self.rest))
        return {key: value for key, _, value in pairs if key}

    @cached_property
    def called(self) -> tuple[tuple[str, str], ...]:
        """The computations that it runs, as (role, name)."""
        found = ((role, self.attributes.get(role, "")) for role in _CALLS)
        return tuple(
            (role, name)
            for role, text in found
            for name in re.findall(r"[\w.-]+", text)
        )

    @property
    def op_name(self) -> str:
        """What in the program that was traced it comes from, as JAX has it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self._metadata)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def frame(self) -> int:
        """The number of its place in the source; 0: not known."""
        found = re.search(r"stack_frame_id=(\d+)", self._metadata)
        return int(found[1]) if found else 0

    @property
    def _metadata(self) -> str:
        return self.attributes.get("metadata", "")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the compiler notes for its own backend, where it is JSON; else {}."""
        text = self.attributes.get("backend_config", "")
        if text.startswith('"'):  # a custom call's is text within the text
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Computation:
    """Operations that run together, in the order that they are scheduled.

    Attributes:
        name: the only one of its name in the program.
        operations: {name: operation}.
    """

    name: str
    operations: dict[str, Operation]

    @cached_property
    def root(self) -> Operation:
        """The operation whose result is the computation's."""
        found = [x for x in self.operations.values() if x.is_root]
        return found[0] if found else list(self.operations.values())[-1]

    @cached_property
    def parameters(self) -> list[Operation]:
        """What it is given, in order."""
        found = [x for x in self.operations.values() if x.opcode == "parameter"]
        return sorted(found, key=lambda x: int(x.operands[0]))

    @cached_property
    def users(self) -> dict[str, list[Operation]]:
        """{operation: what takes its result}."""
        found: dict[str, list[Operation]] = {name: [] for name in self.operations}
        for one in self.operations.values():
            for name in dict.fromkeys(one.operands):
                if name in found:
                    found[name].append(one)
        return found


@dataclass
class Program:
    """A compiled program.

    Attributes:
        computations: {name: computation}.
        entry: the one that runs first.
        scheduled: whether operations stand in the order that they run.
        aliases: {place of a result: number of the argument in whose memory it lies}.
        frames: {number: (place in the source, number of the place that called it)}.
    """

    computations: dict[str, Computation]
    entry: Computation
    scheduled: bool
    aliases: dict[tuple[int, ...], int]
    frames: dict[int, tuple[Frame, int]]

    def source(self, operation: Operation) -> list[Frame]:
        """The places in the source that an operation comes from, the innermost first.

        Args:
            operation: of this program.
        """
        found, at = [], operation.frame
        while at in self.frames:
            frame, at = self.frames[at]
            found.append(frame)
        return found


def read(program: Any) -> Program:
    """Reads the text of a compiled program.

    Args:
        program: a `jax.stages.Compiled` or its HLO text.

    Raises:
        ValueError: it is no HLO text, or an operation is written in a way not known.
    """
    text = program if isinstance(program, str) else program.as_text()
    head, computations, entry, tables = "", {}, "", []
    into: dict[str, Operation] | None = None
    for line in _whole_lines(text):
        if line.startswith("HloModule"):
            head = line
        elif start := _COMPUTATION.match(line):
            into = {}
            computations[start[2]] = Computation(start[2], into)
            entry = start[2] if start[1] else entry
        elif _END.match(line):
            into = None
        elif into is None:
            tables.append(line)
        elif (one := _operation(line)) is not None:
            into[one.name] = one
    if not entry:
        raise ValueError("the text of a program without an entry; give HLO text")
    aliases = {
        tuple(int(n) for n in at.split(",") if n.strip()): int(number)
        for at, number, _ in _ALIAS.findall(head.split("entry_computation_layout")[0])
    }
    return Program(
        computations=computations,
        entry=computations[entry],
        scheduled="is_scheduled=true" in head,
        aliases=aliases,
        frames=_frames(tables),
    )


def _whole_lines(text: str) -> list[str]:
    """The lines of a text, each operation in one, though its notes may have several."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        starts, ends = _COMPUTATION.match(line), _END.match(line)
        if inside and not (starts or ends or _OPERATION.match(line)):
            lines[-1] += f" {line}"
            continue
        inside = bool(starts) or (inside and not ends)
        lines.append(line)
    return lines


def bits(dtype: str) -> int:
    """The bits of an element.

    Args:
        dtype: XLA's name of it.

    Raises:
        ValueError: it is none.
    """
    if dtype in BITS:
        return BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    raise ValueError(f"the dtype {dtype} in a program's text is not known")


def _operation(line: str) -> Operation | None:
    """The operation in a line; None where there is none."""
    start = _OPERATION.match(line)
    if start is None:
        return None
    at = start.end()
    end = _closed(line, at) if line[at] == "(" else line.find(" ", at)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"an operation is written in a way that is not known: {line}")
    close = _closed(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    operands = (_operand(part) for part in _split(inside))
    return Operation(
        name=start[2],
        opcode=opcode[1],
        result=_result(line[at:end]),
        operands=tuple(x for x in operands if x),
        rest=line[close:],
        is_root=bool(start[1]),
    )


def _operand(text: str) -> str:
    """The name in an operand, which may have its type before it."""
    words = re.sub(r"/\*.*?\*/", "", text).split()
    return words[-1].removeprefix("%") if words else ""


def _result(text: str) -> Result:
    text = re.sub(r"/\*.*?\*/", "", text).strip()
    if text.startswith("("):
        return tuple(_result(part) for part in _split(text[1:-1]) if part.strip())
    found = _ARRAY.match(text)
    if found is None:
        raise ValueError(f"the type of a result is written in a way not known: {text}")
    shape = found[2].replace("<=", "")
    return Array(found[1], tuple(int(n) for n in shape.split(",") if n), found[3] or "")


def _flat(result: Result) -> Iterator[Array]:
    if isinstance(result, Array):
        yield result
        return
    for one in result:
        yield from _flat(one)


def _closed(text: str, start: int) -> int:
    """Where what the bracket at `start` opens has ended."""
    depth = 0
    for mark in _MARKS.finditer(text, start):
        if mark[0] in "({[":
            depth += 1
        elif mark[0] in ")}]":
            depth -= 1
            if depth == 0:
                return mark.end()
    raise ValueError(f"a bracket stays open in a program's text: {text[start:]}")


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0] in "({[":
            depth += 1
        elif mark[0] in ")}]":
            depth -= 1
        elif mark[0] == "," and depth == 0:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [*parts, text[start:]]


def _frames(lines: list[str]) -> dict[int, tuple[Frame, int]]:
    """The places in the source, from the tables before the first computation."""
    names: dict[str, dict[int, str]] = {"FileNames": {}, "FunctionNames": {}}
    places: dict[int, Frame] = {}
    frames: dict[int, tuple[Frame, int]] = {}
    into: dict[int, str] = {}
    for line in lines:
        if line in names:
            into = names[line]
        elif found := _NAMED.fullmatch(line):
            into[int(found[1])] = found[2]
        elif found := _LOCATION.match(line):
            number, file, function, at = (int(n) for n in found.groups())
            function_name = names["FunctionNames"].get(function, "")
            places[number] = Frame(function_name, names["FileNames"].get(file, ""), at)
        elif found := _FRAME.match(line):
            number, place, parent = (int(n) for n in found.groups())
            # Parents are written one higher than they are, so that 0 is none.
            frames[number] = (places.get(place, Frame("", "", 0)), parent - 1)
    return frames
