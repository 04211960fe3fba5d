"""The bytes that an operation of a compiled program moves to and from memory."""

from jaxpeft.plan.products import NO_WORK, cost_note
from jaxpeft.plan.program_text import Array, Computation, Operation, Program

# They name what is there, or run others that are counted themselves.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "optimization-barrier", "partition-id"),
    *("replica-id", "add-dependency", "domain", "opt-barrier", "async-start"),
)
BLAS = "__cublas$"  # how NVIDIA's library of products is called
# Names of the same array, through which is looked for who reads it.
_SAME = ("bitcast", "reshape", "get-tuple-element")


def moved(program: Program, computation: Computation, operation: Operation) -> int:
    """The bytes that an operation reads from the device's memory and writes to it.

    What lies in a smaller memory near the units is free. Of an array of which a slice
    is taken the slice counts, and of one that is changed in place what changes.

    Args:
        program: a compiled program.
        computation: where the operation stands.
        operation: of the program.
    """
    if operation.opcode in FREE or operation.opcode.endswith(("-done", "-update")):
        return 0
    target = operation.attributes.get("custom_call_target", "").strip('"')
    if operation.opcode == "custom-call" and target in NO_WORK:
        return 0
    note = cost_note(operation) if operation.opcode == "custom-call" else {}
    if "bytes_accessed" in note:
        return int(note["bytes_accessed"])
    if operation.opcode in ("copy-start", "slice-start"):
        return _copied(operation)
    if operation.opcode == "fusion":
        return _of_fusion(program, computation, operation)
    read = sum(
        _read(computation, operation, at, name)
        for at, name in enumerate(operation.operands)
    )
    if operation.opcode == "custom-call" and target.startswith(BLAS):
        # The last array is what it works in, of as many bytes as it may ever need.
        return read + _in_memory(operation.arrays[: max(1, len(operation.arrays) - 1)])
    return read + _written(computation, operation)


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(x.nbytes for x in arrays if x.space == 0)


def _copied(operation: Operation) -> int:
    """Of a copy between two memories what goes through the device's."""
    *arrays, _ = operation.arrays
    size = min(x.nbytes for x in arrays)
    return sum(size for x in arrays if x.space == 0)


def _read(computation: Computation, one: Operation, at: int, name: str) -> int:
    """What an operation reads of an operand."""
    arrays = computation.operations[name].arrays
    size = _in_memory(arrays)
    if at == 0 and one.opcode in ("dynamic-slice", "slice", "gather"):
        return min(size, one.nbytes)
    if at == 0 and one.opcode in ("dynamic-update-slice", "scatter"):
        return 0
    return size


def _written(computation: Computation, one: Operation) -> int:
    """What an operation writes of its result."""
    size = _in_memory(one.arrays)
    if one.opcode == "dynamic-update-slice" and size:
        return min(size, computation.operations[one.operands[1]].nbytes)
    if one.opcode == "scatter" and size:
        return min(size, computation.operations[one.operands[-1]].nbytes)
    return size


def _of_fusion(program: Program, computation: Computation, one: Operation) -> int:
    inner = program.computations[one.called[0][1]]
    read = 0
    for name, parameter in zip(one.operands, inner.parameters, strict=True):
        size = _in_memory(computation.operations[name].arrays)
        read += min(size, _used(program, inner, parameter)) if size else 0
    results = one.arrays
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.operations[name] for name in inner.root.operands]
    if len(roots) != len(results):
        return read + _in_memory(results)
    for array, root in zip(results, roots, strict=True):
        if array.space == 0:
            read += min(array.nbytes, _made(inner, root))
    return read


def _used(program: Program, inner: Computation, one: Operation) -> int:
    """The bytes of an array that a fused computation reads."""
    total = one.nbytes if one.is_root else 0
    for user in inner.users[one.name]:
        if user.opcode in _SAME:
            total += _used(program, inner, user)
        elif user.opcode == "fusion":
            deeper = program.computations[user.called[0][1]]
            for name, parameter in zip(user.operands, deeper.parameters, strict=True):
                total += _used(program, deeper, parameter) if name == one.name else 0
        else:
            total += sum(
                _read(inner, user, at, name)
                for at, name in enumerate(user.operands)
                if name == one.name
            )
    return min(total, one.nbytes)


def _made(inner: Computation, root: Operation) -> int:
    """The bytes that a fused computation writes of a result."""
    while root.opcode in ("bitcast", "reshape") and root.operands[0] in (
        inner.operations
    ):
        root = inner.operations[root.operands[0]]
    return _written(inner, root)
