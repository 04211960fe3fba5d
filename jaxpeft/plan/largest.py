"""The largest arrays at a program's fullest moment, and the code that asks for them."""

from typing import NamedTuple

from jaxpeft.plan.buffers import peak
from jaxpeft.plan.origins import Origins
from jaxpeft.plan.program_text import Program


class Large(NamedTuple):
    """Arrays of one kind that a program has in memory.

    Attributes:
        nbytes: of all of them on one device, with what tiles leave empty.
        array: the dtype and shape of each, as XLA writes them.
        opcode: what makes them, such as "fusion".
        times: how many there are.
        name: of the code that they come from, as `origins` has it.
    """

    nbytes: int
    array: str
    opcode: str
    times: int
    name: str

    def __str__(self) -> str:
        often = f"{self.times} x " if self.times > 1 else ""
        return f"{often}{self.array} by {self.opcode}: {self.name}"


def largest(program: Program, count: int) -> list[Large]:
    """What takes the most of a device's memory at the fullest moment of a program.

    What it is given is not among it.

    Args:
        program: a compiled program.
        count: how many kinds of arrays to name.
    """
    origins, found = Origins(program), dict[tuple[str, str, str], Large]()
    for one in peak(program).buffers:
        name = origins.name(one.computation, one.operation)
        key = str(one.array), one.operation.opcode, name
        before = found.get(key, Large(0, key[0], key[1], 0, name))
        nbytes, times = before.nbytes + one.nbytes, before.times + 1
        found[key] = before._replace(nbytes=nbytes, times=times)
    return sorted(found.values(), key=lambda x: -x.nbytes)[:count]
