"""Which arrays of a compiled program are in memory at its fullest moment.

The text of a program names its operations in the order that they run, but not where in
memory their results lie. Here each result takes memory from its operation to its last
use, and what is changed in place takes none of its own. The compiler shares memory by
more rules than these: for the steps of large models `Peak.nbytes` is between 0.76 and
1.17 of its temporaries, and what is large then is large there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxpeft.plan.loops import dearest
from jaxpeft.plan.program_text import Array, Computation, Operation, Program, Result

# What gives its operands, or parts of them, under another name.
_SAME = ("bitcast", "optimization-barrier", "domain", "copy-done")
_ALREADY = ("constant",)  # is there before the program runs


@dataclass(frozen=True, eq=False)
class Buffer:
    """An array in memory.

    Attributes:
        operation: what makes it.
        computation: where that stands.
        array: its type.
    """

    operation: Operation
    computation: Computation
    array: Array

    @property
    def nbytes(self) -> int:
        """Its bytes, with what tiles leave empty."""
        return self.array.held


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a program.

    Attributes:
        nbytes: of all arrays then, without the program's arguments.
        buffers: they, the largest first.
    """

    nbytes: int
    buffers: tuple[Buffer, ...]


def peak(program: Program) -> Peak:
    """The fullest moment of a program that is scheduled.

    Args:
        program: what was read of its text.
    """
    course = _Course(program)
    given: list[list[Place]] = [
        [None] * len(x.arrays) for x in program.entry.parameters
    ]
    course.run(program.entry, given, frozenset())
    found = sorted(course.fullest, key=lambda x: (-x.nbytes, x.operation.name))
    return Peak(course.most, tuple(found))


# Where an array lies: a buffer, or None for a part of the arguments.
Place = Buffer | None


@dataclass
class _Course:
    """A program gone through in its order."""

    program: Program
    most: int = 0
    fullest: list[Buffer] = field(default_factory=list)

    def run(
        self,
        computation: Computation,
        given: list[list[Place]],
        outside: frozenset[Buffer],
    ) -> None:
        """Goes through a computation and notes its fullest moment.

        Args:
            computation: of the program.
            given: where its parameters lie.
            outside: the buffers that live on around it.
        """
        places = self._places(computation, given)
        ends = _ends(computation, places)
        live = set(outside)
        for at, one in enumerate(computation.operations.values()):
            live |= {x for x in places[one.name] if x is not None and x in ends}
            self._note(live)
            operands = [places.get(name, []) for name in one.operands]
            if one.opcode == "while":
                body = self.program.computations[dict(one.called)["body"]]
                self.run(body, operands, frozenset(live))
            elif one.opcode == "conditional":
                branch = dearest(self.program, one)
                number = [name for _, name in one.called].index(branch.name)
                self.run(branch, [operands[1 + number]], frozenset(live))
            live -= {x for x in live if ends.get(x, at) <= at and x not in outside}

    def _note(self, live: set[Buffer]) -> None:
        total = sum(one.nbytes for one in live)
        if total > self.most:
            self.most, self.fullest = total, list(live)

    def _places(
        self, computation: Computation, given: list[list[Place]]
    ) -> dict[str, list[Place]]:
        """Where the arrays of each operation's result lie."""
        places: dict[str, list[Place]] = {}
        results = _results(computation, given)
        for one in computation.operations.values():
            operands = [places.get(name, []) for name in one.operands]
            if one.opcode == "parameter":
                places[one.name] = given[int(one.operands[0])]
            elif one.opcode in _ALREADY:
                places[one.name] = [None] * len(one.arrays)
            elif one.opcode == "tuple":
                places[one.name] = [place for some in operands for place in some]
            elif one.opcode == "get-tuple-element":
                source = computation.operations[one.operands[0]].result
                part = _part(source, int(one.attributes["index"]))
                places[one.name] = operands[0][part]
            elif one.opcode == "while":
                places[one.name] = operands[0]
            elif one.opcode in _SAME:
                places[one.name] = [x for some in operands for x in some]
            elif one.opcode.endswith(("-done", "-update")):
                places[one.name] = _finished(one, operands[0])
            elif one.name in results:
                places[one.name] = results[one.name]
            else:
                places[one.name] = self._made(computation, one, operands)
        return places

    def _made(
        self, computation: Computation, one: Operation, operands: list[list[Place]]
    ) -> list[Place]:
        """New buffers for a result, where it is not an operand changed in place."""
        inside = dict(self._in_place(one, operands))
        taken = [x for some in operands for x in some]
        found: list[Place] = []
        for number, array in enumerate(one.arrays):
            if number in inside:
                found.append(inside[number])
            elif one.opcode.endswith("-start") and _is_operand(array, number, one):
                found.append(taken[0] if taken else None)
            else:
                found.append(Buffer(one, computation, array))
        return found

    def _in_place(
        self, one: Operation, operands: list[list[Place]]
    ) -> Iterator[tuple[int, Place]]:
        """(number of a result, where it lies) of what is changed in place."""
        if one.opcode in ("dynamic-update-slice", "scatter") and operands[0]:
            yield 0, operands[0][0]
        if one.opcode != "fusion":
            return
        inner = self.program.computations[one.called[0][1]]
        roots = [inner.root]
        if inner.root.opcode == "tuple":
            roots = [inner.operations[name] for name in inner.root.operands]
        for number, root in enumerate(roots):
            root = _named(inner, root)
            if root.opcode not in ("dynamic-update-slice", "scatter"):
                continue
            source = _named(inner, inner.operations[root.operands[0]])
            if source.opcode == "parameter":
                place = operands[int(source.operands[0])]
                if len(place) == 1:
                    yield number, place[0]


def _named(inner: Computation, one: Operation) -> Operation:
    """What an operation is another name of."""
    while one.opcode in ("bitcast", "reshape", "convert", "copy"):
        one = inner.operations[one.operands[0]]
    return one


def _results(
    computation: Computation, given: list[list[Place]]
) -> dict[str, list[Place]]:
    """{operation: where its result lies} of what a loop's body carries on.

    It lies where the loop's value lay before, unless that is read again after it.
    """
    if len(given) != 1 or computation.root.opcode != "tuple":
        return {}
    order = {name: at for at, name in enumerate(computation.operations)}
    elements = {
        int(x.attributes["index"]): x
        for x in computation.users[computation.parameters[0].name]
        if x.opcode == "get-tuple-element"
    }
    found: dict[str, list[Place]] = {}
    for at, name in enumerate(computation.root.operands):
        one, before = computation.operations[name], elements.get(at)
        if at >= len(given[0]) or len(one.arrays) != 1:
            continue
        reads = (
            [order[x.name] for x in computation.users[before.name]] if before else []
        )
        place = given[0][at]
        fits = place is not None and place.array == one.arrays[0]
        if (
            fits
            and one.opcode in ("fusion", "copy", "add")
            and (max(reads, default=0) <= order[name])
        ):
            found[name] = [place]
    return found


def _ends(
    computation: Computation, places: dict[str, list[Place]]
) -> dict[Buffer, int]:
    """{buffer that is made here: when it is used last}."""
    ends: dict[Buffer, int] = {}
    for at, one in enumerate(computation.operations.values()):
        for place in places[one.name]:
            own = place is not None and place.computation is computation
            if place is not None and own and place.array.space == 0:
                ends.setdefault(place, at)
        if one.opcode in ("tuple", "get-tuple-element", *_SAME) and not one.is_root:
            continue
        for name in one.operands:
            for place in places.get(name, ()):
                if place in ends:
                    ends[place] = at
    for place in places[computation.root.name]:
        if place in ends:
            ends[place] = len(computation.operations)
    return ends


def _is_operand(array: Array, number: int, one: Operation) -> bool:
    """Whether a part of what a start gives is what it takes."""
    if one.opcode == "copy-start":
        return number == 1
    first = one.result[0] if not isinstance(one.result, Array) else one.result
    return one.opcode != "all-reduce-start" and number < _count(first)


def _part(result: Result, index: int) -> slice:
    """Where an element of a tuple is among all its arrays."""
    if isinstance(result, Array):
        return slice(0, 1)
    sizes = [_count(one) for one in result]
    start = sum(sizes[:index])
    return slice(start, start + sizes[index])


def _count(result: Result) -> int:
    return 1 if isinstance(result, Array) else sum(_count(one) for one in result)


def _finished(one: Operation, started: list[Place]) -> list[Place]:
    """What a started operation gives: the buffers of those types, made by it."""
    found: list[Place] = []
    for array in one.arrays:
        fitting = [x for x in started if x is not None and x.array == array]
        found.append(fitting[-1] if fitting else None)
    return found
