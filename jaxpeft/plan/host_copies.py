"""What a compiled program copies between its device's memory and the host's."""

from typing import NamedTuple

from jaxpeft.plan.program_text import Array, Computation, Operation, Program

HOST = 5  # the memory space that XLA gives the host's memory
# What names an array that is there, and copies nothing.
_NAMES = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
_NAMES += ("call", "custom-call", "optimization-barrier", "copy-done", "async-done")


class Copy(NamedTuple):
    """A copy to the host or from it.

    Attributes:
        nbytes: that go over the link.
        to_host: whether they go there; false: they come from there.
        done: the operation that waits for its end, the same where it is one.
    """

    nbytes: int
    to_host: bool
    done: str


def copies(program: Program) -> dict[tuple[str, str], Copy]:
    """The copies of a program, by (computation, the operation that begins them).

    Args:
        program: what was read of its text.
    """
    inside = {
        name
        for computation in program.computations.values()
        for one in computation.operations.values()
        if one.opcode.startswith(("fusion", "async"))
        for _, name in one.called
    }
    return {
        (computation.name, one.name): found
        for computation in program.computations.values()
        if computation.name not in inside
        for one in computation.operations.values()
        if (found := _copy(computation, one)) is not None
    }


def _copy(computation: Computation, one: Operation) -> Copy | None:
    if one.opcode in _NAMES or one.opcode.endswith(("-done", "-update")):
        return None
    taken = [
        x
        for name in one.operands
        if name in computation.operations
        for x in computation.operations[name].arrays
    ]
    reads = any(x.space == HOST for x in taken)
    done, made = one.name, one.arrays
    if one.opcode.endswith("-start"):
        ends = [x for x in computation.users[one.name] if x.opcode.endswith("-done")]
        if not ends:
            return None
        done, made = ends[0].name, ends[0].arrays
    writes = any(x.space == HOST for x in made)
    if not reads and not writes:
        return None
    sizes = _sizes(taken if writes else list(made))
    if writes and reads and not sizes:
        return None  # within the host's memory
    return Copy(max(sizes, default=0), writes, done)


def _sizes(arrays: list[Array]) -> list[int]:
    return [x.nbytes for x in arrays if x.space != HOST and x.shape]
