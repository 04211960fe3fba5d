"""The largest arrays that a compiled program makes, and the code that asks for them."""

from typing import NamedTuple

from jaxpeft.plan.facts import NAMES
from jaxpeft.plan.loops import runs
from jaxpeft.plan.origins import Origins
from jaxpeft.plan.program_text import Program

# What brings a part of an array nearer, and what is written in its operand's place.
NEARER = ("copy-start", "slice-start", "async-start", "dynamic-update-slice")


class Large(NamedTuple):
    """An array that a program makes.

    Attributes:
        nbytes: on one device, with what tiles leave empty.
        array: its dtype and shape, as XLA writes them.
        opcode: what makes it, such as "fusion".
        times: how many of its kind the text has, not all of them at one time.
        name: of the code that it comes from, as `origins` has it.
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
    origins, found = Origins(program), dict[tuple[str, str], Large]()
    for run in runs(program):
        one = run.operation
        if one.opcode in (*NAMES, *NEARER) or one.opcode.endswith("-done"):
            continue
        # What only begins here has its operands in its result, too.
        begins = one.opcode.endswith("-start") and len(one.arrays) > 1
        for array in one.arrays[len(one.arrays) // 2 :] if begins else one.arrays:
            if array.space:
                continue
            name = origins.name(run.computation, one)
            key = str(array), name
            times = found[key].times + 1 if key in found else 1
            found[key] = Large(array.held, key[0], one.opcode, times, name)
    return sorted(found.values(), key=lambda x: -x.nbytes)[:count]
