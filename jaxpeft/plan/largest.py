"""The largest arrays that a compiled program makes, and the code that asks for them."""

from typing import NamedTuple

from jaxpeft.plan.loops import runs
from jaxpeft.plan.program_text import Program

# What gives no array of its own: its operand under another name, or in its place.
NAMES = (
    *("parameter", "get-tuple-element", "tuple", "while", "conditional", "bitcast"),
    *("optimization-barrier", "call", "copy-done", "all-gather-done", "async-done"),
    *("all-reduce-done", "collective-permute-done", "dynamic-update-slice"),
)


class Large(NamedTuple):
    """An array that a program makes.

    Attributes:
        nbytes: on one device, with what tiles leave empty.
        array: its dtype and shape, as XLA writes them.
        opcode: what makes it, such as "fusion".
        times: how many of its kind the text has, not all of them at one time.
        name: the operation that it comes from, as it was traced.
    """

    nbytes: int
    array: str
    opcode: str
    times: int
    name: str

    def __str__(self) -> str:
        often = f" ({self.times} of them)" if self.times > 1 else ""
        return f"{self.array} by {self.opcode}{often}: {self.name}"


def largest(program: Program, count: int) -> list[Large]:
    """The largest arrays in a device's memory that a program makes.

    What it is given is not among them, and those that live inside a kernel neither.

    Args:
        program: a compiled program.
        count: how many to name.
    """
    found: dict[tuple[str, str], Large] = {}
    for run in runs(program):
        one = run.operation
        if one.opcode in NAMES:
            continue
        for array in one.arrays:
            if array.space:
                continue
            name = short(one.op_name)
            key = str(array), name
            times = found[key].times + 1 if key in found else 1
            found[key] = Large(array.held, key[0], one.opcode, times, name)
    return sorted(found.values(), key=lambda x: -x.nbytes)[:count]


def short(op_name: str) -> str:
    """The end of an operation's traced name, which says most of it.

    Args:
        op_name: such as "jit(step)/while/body/mlp/dot_general".
    """
    parts = [part for part in op_name.split("/") if part not in ("body", "while")]
    return "/".join(parts[-3:]) or "of the compiler's own"
