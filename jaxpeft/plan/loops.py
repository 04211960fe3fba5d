"""How often each operation of a compiled program runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxpeft.plan.program_text import Computation, Operation, Program

# A loop that has not ended after so many turns counts as one of unknown length.
LONGEST = 100_000

_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_COMPUTED: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: int(not a),
    "negate": lambda a: -a,
    "copy": lambda a: a,
    "convert": lambda a: a,
    "bitcast": lambda a: a,
    "reshape": lambda a: a,
    "select": lambda c, a, b: a if c else b,
}


class Run(NamedTuple):
    """An operation that a program runs.

    Attributes:
        operation: what runs.
        computation: where it stands.
        times: how often a run of the program performs it.
        loops: the names of the loops that it stands in, the outermost first.
    """

    operation: Operation
    computation: Computation
    times: int
    loops: tuple[str, ...]


def runs(program: Program) -> Iterator[Run]:
    """Every operation that a program runs by itself, in the order of its schedule.

    A fusion is one operation: what it fuses is not listed, nor the function that a
    reduction or a sort applies. Of the branches of a conditional, the one that writes
    the most bytes counts. A loop whose length nothing says counts as one turn.

    Args:
        program: a compiled program.
    """
    yield from _in(program, program.entry, 1, ())


def _in(
    program: Program, computation: Computation, times: int, loops: tuple[str, ...]
) -> Iterator[Run]:
    for one in computation.operations.values():
        yield Run(one, computation, times, loops)
        if one.opcode == "while":
            turns = times * (trips(program, one, computation) or 1)
            inner = program.computations[dict(one.called)["body"]]
            yield from _in(program, inner, turns, (*loops, one.name))
            continue
        for inner in _run_by(program, one):
            yield from _in(program, inner, times, loops)


def _run_by(program: Program, operation: Operation) -> list[Computation]:
    """The computations that an operation runs operation by operation."""
    called = [
        (role, program.computations[name])
        for role, name in operation.called
        if name in program.computations
    ]
    if operation.opcode == "conditional":
        return [dearest(program, operation)]
    if operation.opcode == "call":
        return [one for _, one in called]
    if operation.opcode == "async-start":
        return [one for role, one in called if role == "calls"]
    return []


def dearest(program: Program, operation: Operation) -> Computation:
    """The branch of a conditional that counts: that which writes the most bytes.

    Args:
        program: a compiled program.
        operation: a conditional of it.
    """
    branches = [program.computations[name] for _, name in operation.called]
    return max(branches, key=lambda one: written(program, one))


def written(program: Program, computation: Computation) -> int:
    """The bytes of all that a computation's operations give.

    Args:
        program: a compiled program.
        computation: of the program.
    """
    return sum(x.operation.nbytes * x.times for x in _in(program, computation, 1, ()))


def fused(
    program: Program, operation: Operation
) -> Iterator[tuple[Computation, Operation]]:
    """What a fusion fuses, each with where it stands; what those fuse included.

    Args:
        program: a compiled program.
        operation: of it; others than fusions fuse nothing.
    """
    if operation.opcode != "fusion":
        return
    for _, name in operation.called:
        inner = program.computations[name]
        for one in inner.operations.values():
            yield inner, one
            yield from fused(program, one)


def trips(program: Program, loop: Operation, computation: Computation) -> int | None:
    """How often a loop turns; None where neither its note nor its counter says it.

    Where the compiler notes no number the counter is followed from its start, which
    also holds for loops that were unrolled and count by more than one.

    Args:
        program: a compiled program.
        loop: the `while` operation.
        computation: where it stands.
    """
    noted = loop.config.get("known_trip_count")
    if isinstance(noted, dict) and str(noted.get("n", "")).isdigit():
        return int(noted["n"])
    called = dict(loop.called)
    condition = program.computations[called["condition"]]
    body = program.computations[called["body"]]
    start = _start(program, loop, computation)
    counters = _Counters(start)
    for turn in range(LONGEST):
        scalars = _Scalars(program)
        goes_on = scalars.value(condition, condition.root.name, [counters])
        if goes_on is None:
            return None
        if not goes_on:
            return turn
        counters = scalars.next(body, counters)
    return None


def _start(
    program: Program, loop: Operation, computation: Computation
) -> dict[int, int | None]:
    """The numbers that a loop starts with.

    One that comes from outside is taken to be 0, as where a loop lies in a loop.
    """
    given = computation.operations.get(loop.operands[0])
    operands = given.operands if given and given.opcode == "tuple" else ()
    scalars = _Scalars(program)
    found = {at: scalars.value(computation, x, []) for at, x in enumerate(operands)}
    return {at: found.get(at) or 0 for at in range(len(loop.arrays))}


class _Counters:
    """The whole numbers among a loop's values, and which of them were asked for."""

    def __init__(self, known: dict[int, int | None]):
        self.known: dict[int, int | None] = known
        self.asked: set[int] = set()

    def __getitem__(self, at: int) -> int | None:
        self.asked.add(at)
        return self.known.get(at)


@dataclass
class _Scalars:
    """Works out whole numbers in a program, where they follow from constants.

    What it has worked out it keeps: fused operations share operands, and without that
    the work would double with every one of them. So it is for one turn of a loop.
    """

    program: Program
    _known: dict[tuple, Any] = field(default_factory=dict)

    def next(self, body: Computation, counters: _Counters) -> _Counters:
        """The numbers after a turn, of those that were asked for or lead to them."""
        root = body.root
        operands = list(root.operands) if root.opcode == "tuple" else []
        found: dict[int, int | None] = {}
        while missing := counters.asked - found.keys():
            for at in missing:
                known = at < len(operands)
                found[at] = (
                    self.value(body, operands[at], [counters]) if known else None
                )
        after = _Counters(found)
        after.asked = counters.asked
        return after

    def value(self, where: Computation, name: str, given: list[Any]) -> Any:
        """The number that an operation gives; None: constants do not say it.

        Args:
            where: the computation that it is of.
            name: of the operation.
            given: what the computation's parameters are: a number, the numbers in a
                tuple, or None.
        """
        passed = tuple(id(x) if isinstance(x, _Counters) else x for x in given)
        key = where.name, name, passed
        if key not in self._known:
            self._known[key] = self._worked_out(where, name, given)
        return self._known[key]

    def _worked_out(self, where: Computation, name: str, given: list[Any]) -> Any:
        one = where.operations.get(name)
        if one is None:
            return None
        if one.opcode == "constant":
            return _number(one.operands)
        if one.opcode == "parameter":
            at = int(one.operands[0])
            return given[at] if at < len(given) else None
        if one.opcode == "get-tuple-element":
            source = where.operations[one.operands[0]]
            at = int(one.attributes["index"])
            if source.opcode == "parameter":
                numbers = self.value(where, source.name, given)
                return None if numbers is None else numbers[at]
            return self._part(where, source, at, given)
        if any(array.shape for array in one.arrays):
            return None
        if one.opcode in ("fusion", "call"):
            inner = self.program.computations[one.called[0][1]]
            passed = [self.value(where, x, given) for x in one.operands]
            return self.value(inner, inner.root.name, passed)
        compute = _COMPUTED.get(one.opcode)
        if one.opcode == "compare":
            compute = _COMPARED[one.attributes["direction"]]
        values = [self.value(where, x, given) for x in one.operands] if compute else []
        if compute is None or any(x is None for x in values):
            return None
        return int(compute(*values))

    def _part(
        self, where: Computation, source: Operation, at: int, given: list[Any]
    ) -> Any:
        """An element of what an operation gives."""
        if source.opcode == "tuple":
            return self.value(where, source.operands[at], given)
        if source.opcode not in ("fusion", "call"):
            return None
        inner = self.program.computations[source.called[0][1]]
        if inner.root.opcode != "tuple":
            return None
        passed = [self.value(where, x, given) for x in source.operands]
        return self.value(inner, inner.root.operands[at], passed)


def _number(literal: tuple[str, ...]) -> int | None:
    text = literal[0] if len(literal) == 1 else ""
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if text.lstrip("-").isdigit() else None
