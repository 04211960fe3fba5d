"""What is to be true of every step's program, as numbers that a test can hold."""

import math
from dataclasses import dataclass
from typing import Any

from jaxpeft.plan.collectives import collectives, totals
from jaxpeft.plan.loops import Run, runs
from jaxpeft.plan.origins import Origins
from jaxpeft.plan.products import products
from jaxpeft.plan.program_text import Array, Computation, Operation, Program, read

# What names an array that is there, or lies in its place.
NAMES = (
    *("parameter", "get-tuple-element", "tuple", "while", "conditional", "bitcast"),
    *("call", "optimization-barrier", "constant", "after-all"),
)
_MOVES = ("parameter", "copy", "bitcast", "transpose", "reshape")
_FILLS = ("parameter", "constant", "broadcast", "bitcast", "reshape", "convert")


@dataclass(frozen=True)
class Facts:
    """Numbers of a step's program, on one device.

    Attributes:
        products: {dtype of the operands: FLOP}, of all products of a step.
        float32: the largest array of float32 that is made, as XLA writes it.
        float32_bytes: of that array.
        squares: the arrays with two axes as long as the sequences.
        logits: how many rows of float32 logits there are at one time, at the most.
        filled: bytes of constants that were filled before a loop and that it reads.
        copied: bytes that copies of whole stacks of weights write in a step.
        not_donated: the parts of the state whose memory the new state does not take.
        sent: {kind of collective: bytes that a device sends in a step}.
        overlapping: of all those bytes the share for whose time something is computed.
    """

    products: dict[str, float]
    float32: str
    float32_bytes: int
    squares: tuple[str, ...]
    logits: int
    filled: int
    copied: int
    not_donated: tuple[str, ...]
    sent: dict[str, float]
    overlapping: float

    def lines(self) -> list[str]:
        """The facts in lines, for whoever compares two programs."""
        share = {k: f"{v / 1e9:,.3f} GFLOP" for k, v in sorted(self.products.items())}
        sent = {k: f"{v / 2**20:,.2f} MiB" for k, v in sorted(self.sent.items())}
        return [
            f"products by dtype: {_listed(share)}",
            f"largest float32 array: {self.float32 or 'none'}",
            f"arrays of sequence x sequence: {', '.join(self.squares) or 'none'}",
            f"rows of float32 logits at one time: {self.logits:,}",
            f"constants filled before loops: {self.filled / 2**20:,.2f} MiB",
            f"copies of whole stacks: {self.copied / 2**20:,.2f} MiB",
            f"state that is not donated: {', '.join(self.not_donated) or 'none'}",
            f"sent: {_listed(sent)}; {self.overlapping:.0%} of it beside computing",
        ]


def facts(program: Any, *, length: int, vocabulary: int, state: str = "state") -> Facts:
    """The facts of the program of a training step.

    Args:
        program: a `jax.stages.Compiled`, its HLO text, or what `read` made of it.
        length: of a sequence, in tokens; told from other axes by no other being as
            long.
        vocabulary: its size on a device, told in the same way.
        state: how the step calls the argument that is donated.
    """
    one = program if isinstance(program, Program) else read(program)
    found = list(runs(one))
    made = [x for run in found for x in _made(run)]
    float32 = [x for x in made if x.dtype == "f32"]
    largest = max(float32, key=lambda x: x.nbytes, default=Array("f32", (0,)))
    logits = [x for x in float32 if vocabulary in x.shape]
    sent, stacks = collectives(one), _stacks(one)
    moved = sum(x.moved for x in sent)
    return Facts(
        products=_products(one, found),
        float32=str(largest) if largest.nbytes else "",
        float32_bytes=largest.nbytes,
        squares=tuple(
            sorted({str(x) for x in made if list(x.shape).count(length) > 1})
        ),
        logits=max((math.prod(x.shape) // vocabulary for x in logits), default=0),
        filled=sum(_filled(one, run) for run in found),
        copied=sum(_copied(one, run, stacks) for run in found),
        not_donated=_not_donated(one, state),
        sent=totals(sent),
        overlapping=sum(x.moved for x in sent if x.overlaps) / moved if moved else 1.0,
    )


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "none"


def _made(run: Run) -> tuple[Array, ...]:
    """The arrays that an operation makes."""
    if run.operation.opcode in NAMES or run.operation.opcode.endswith("-done"):
        return ()
    return run.operation.arrays


def _products(program: Program, found: list[Run]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for run in found:
        for one in products(program, run.computation, run.operation):
            sums[one.dtype] = sums.get(one.dtype, 0.0) + one.flops * run.times
    return sums


def _filled(program: Program, run: Run) -> int:
    """The bytes of filled constants that a loop is given and does not change."""
    if run.operation.opcode != "while":
        return 0
    given = run.computation.operations.get(run.operation.operands[0])
    root = program.computations[dict(run.operation.called)["body"]].root
    if given is None or given.opcode != "tuple" or root.opcode != "tuple":
        return 0
    body = program.computations[dict(run.operation.called)["body"]]
    total = 0
    for at, name in enumerate(given.operands):
        after = body.operations[root.operands[at]]
        stays = after.opcode == "get-tuple-element"
        stays = stays and after.attributes["index"] == str(at)
        # A few numbers are no harm; XLA keeps vectors of them as they are.
        if stays and len(_shape(run.computation, name)) > 1:
            total += _if_filled(program, run.computation, name)
    return total


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    arrays = computation.operations[name].arrays
    return arrays[0].shape if len(arrays) == 1 else ()


def _if_filled(program: Program, computation: Computation, name: str) -> int:
    """The bytes of an array if one number fills it; else 0."""
    one = computation.operations[name]
    if one.opcode in ("copy", "bitcast", "reshape", "copy-done", "copy-start"):
        return _if_filled(program, computation, one.operands[0]) and one.nbytes
    if one.opcode == "broadcast":
        number = computation.operations[one.operands[0]]
        return 0 if _has_axes(number) else one.nbytes
    if one.opcode == "fusion":
        inner = program.computations[one.called[0][1]]
        fills = all(x.opcode in _FILLS for x in inner.operations.values())
        whole = [x for x in inner.parameters if _has_axes(x)]
        return one.nbytes if fills and not whole else 0
    return 0


def _has_axes(one: Operation) -> bool:
    return any(array.shape for array in one.arrays)


def _stacks(program: Program) -> set[tuple]:
    """The arrays of all layers that the program is given, in any order of axes."""
    given = program.entry.parameters
    found = [x.arrays[0] for x in given if "['layers']" in x.op_name and x.arrays]
    return {_size(x) for x in found if len(x.shape) > 2}


def _size(array: Array) -> tuple:
    return array.dtype, *sorted(array.shape)


def _copied(program: Program, run: Run, stacks: set[tuple]) -> int:
    """The bytes that an operation writes where it copies a whole stack."""
    one = run.operation
    copies = one.opcode in ("copy", "transpose")
    if one.opcode == "fusion":
        inner = program.computations[one.called[0][1]]
        copies = all(x.opcode in _MOVES for x in inner.operations.values())
    if not copies:
        return 0
    whole = [x for x in one.arrays if _size(x) in stacks]
    return run.times * sum(x.nbytes for x in whole)


def _not_donated(program: Program, state: str) -> tuple[str, ...]:
    """The parts of the state that the program does not write over."""
    over = set(program.aliases.values())
    return tuple(
        one.op_name
        for at, one in enumerate(program.entry.parameters)
        if one.op_name.startswith(f"{state}.") and at not in over
    )


def which(program: Program, array: str) -> list[str]:
    """The code that makes an array, for a fact that does not hold.

    Args:
        program: a compiled program.
        array: as XLA writes it, such as "f32[8,128]".
    """
    names = Origins(program)
    return [
        f"{run.operation.name}: {names.name(run.computation, run.operation)} "
        f"({run.operation.op_name})"
        for run in runs(program)
        if any(str(x) == array for x in _made(run))
    ]
