"""Which code an operation of a compiled program comes from, in a word or two."""

import re
from dataclasses import dataclass, field

from jaxpeft.plan.loops import Run, runs
from jaxpeft.plan.products import products
from jaxpeft.plan.program_text import Computation, Frame, Operation, Program

# File of the source, within its package, and how the function's name begins -> what it
# is. Of the places that called each other the innermost that is listed counts.
PARTS: tuple[tuple[str, str, str], ...] = (
    ("objectives/token_loss", "", "loss"),
    ("models/head", "", "loss"),
    ("models/attention", "", "attention"),
    ("splash_attention", "", "attention"),
    ("optim/", "", "optimizer"),
    ("optax/", "", "optimizer"),
    ("quant/", "", "decoding"),
    ("models/rope", "", "rotary embedding"),
    ("models/experts", "", "experts"),
    ("models/layer", "norm", "norms"),
    ("models/layer", "apply_layer.<locals>.normed", "norms"),
    ("models/layer", "_mlp", "mlp"),
    ("models/layer", "_gated", "mlp"),
    ("models/layer", "_self_attention", "self_attn"),
    ("models/transformer", "embed", "embedding"),
)
# What is known where none of these is.
REST = (
    ("objectives/", "", "loss"),
    ("models/layer", "", "layer"),
    ("models/", "", "model"),
    ("assembly/", "", "step"),
)
# Parts with products of weights: the weight is the better name.
_WEIGHTED = ("mlp", "self_attn", "decoding", "experts", "layer", "model", "step", "")

# What passes an array on as it is, or parts of it, or a cast of it.
_PASSES = (
    *("copy", "bitcast", "reshape", "transpose", "convert", "dynamic-slice", "slice"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "all-gather"),
    *("all-gather-start", "all-gather-done", "async-start", "async-done"),
    *("get-tuple-element", "collective-permute-start", "collective-permute-done"),
    *("optimization-barrier",),
)
_KEY = re.compile(r"\['([^']*)'\]")
_MATRIX = re.compile(r"\['(kernel|embedding)'\]")
_LEAF = re.compile(r"\.(\w+)$")


@dataclass
class Origins:
    """Names the code that operations of a program come from.

    Attributes:
        program: a compiled program.
    """

    program: Program
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)
    _loops: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for run in runs(self.program):
            if run.operation.opcode == "while":
                body = dict(run.operation.called)["body"]
                self._loops[body] = run

    def name(self, computation: Computation, operation: Operation) -> str:
        """What an operation is of: such as "loss", "mlp.up_proj, backward".

        The weight of a product names it, else the place in the source.

        Args:
            computation: where the operation stands.
            operation: of the program.
        """
        inner = list(products(self.program, computation, operation))
        main = max(inner, key=lambda x: x.flops).operation if inner else operation
        if not (main.op_name or main.frame):
            main = operation
        part = self._part(main)
        if inner and part in _WEIGHTED:
            part = self._weight(computation, operation) or part
        if not part:
            return _unnamed(operation)
        return f"{part}{_phase(main.op_name)}" if part != "optimizer" else part

    def _part(self, operation: Operation) -> str:
        frames = self.program.source(operation)
        for table in (PARTS, REST):
            for frame in frames:
                if part := _part_of(frame, table):
                    return part
        return ""

    def _weight(self, computation: Computation, operation: Operation) -> str:
        """The weight that an operation takes, the largest where there are several."""
        found: dict[str, int] = {}
        for name in operation.operands:
            if path := self.parameter(computation, name):
                size = max(x.nbytes for x in computation.operations[name].arrays)
                found[path] = max(size, found.get(path, 0))
        kernels = {path: n for path, n in found.items() if _MATRIX.search(path)}
        return _short(max(kernels, key=lambda path: kernels[path])) if kernels else ""

    def parameter(self, computation: Computation, name: str) -> str:
        """The argument of the program that an array is, or is cut from; "": none.

        Args:
            computation: where the operation stands that gives the array.
            name: of that operation.

        Returns:
            The argument's name, such as "frozen.params['model']['embed_tokens']".
        """
        key = computation.name, name
        if key not in self._seen:
            self._seen[key] = ""  # what leads back to itself is no argument
            self._seen[key] = self._parameter(computation, name)
        return self._seen[key]

    def _parameter(self, computation: Computation, name: str) -> str:
        one = computation.operations.get(name)
        if one is None:
            return ""
        if one.opcode == "parameter":
            return one.op_name if computation is self.program.entry else ""
        if one.opcode == "get-tuple-element":
            source = computation.operations[one.operands[0]]
            at = int(one.attributes["index"])
            if source.opcode == "parameter" and computation.name in self._loops:
                return self._given(self._loops[computation.name], computation, at)
            if source.opcode == "tuple":
                return self.parameter(computation, source.operands[at])
            if source.opcode == "while":
                return ""
        if one.opcode in _PASSES and one.operands:
            return self.parameter(computation, one.operands[0])
        if one.opcode == "fusion":
            found = {self.parameter(computation, x) for x in one.operands} - {""}
            return found.pop() if len(found) == 1 else ""
        return ""

    def _given(self, run: Run, body: Computation, at: int) -> str:
        """What a loop is given at a place, if it stays the same there or goes round."""
        root = body.root
        if root.opcode != "tuple":
            return ""
        after = body.operations[root.operands[at]]
        stays = after.opcode == "get-tuple-element" and after.attributes["index"] == (
            str(at)
        )
        if not stays and not after.opcode.startswith("collective-permute"):
            return ""
        given = run.computation.operations[run.operation.operands[0]]
        if given.opcode != "tuple":
            return ""
        return self.parameter(run.computation, given.operands[at])


def _part_of(frame: Frame, table: tuple[tuple[str, str, str], ...]) -> str:
    _, _, own = frame.file.replace("\\", "/").rpartition("/jaxpeft/")
    _, _, others = own.rpartition("/site-packages/")
    for file, function, part in table:
        fits = others.startswith(file) or file in others.rsplit("/", 1)[-1]
        if fits and frame.function.startswith(function):
            return part
    return ""


def _phase(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return ", once more"
    if "transpose(" in op_name:
        return ", backward"
    return ""


def _short(path: str) -> str:
    """The last two modules of a parameter's name, and what it is to an adapter."""
    keys = [
        x
        for x in _KEY.findall(path)
        if x not in ("kernel", "embedding", "model", "layers")
    ]
    leaf = _LEAF.search(path)
    is_factor = leaf is not None and leaf[1] in ("a", "b")
    return ".".join(keys[-2:]) + (" adapter" if is_factor else "")


def _unnamed(operation: Operation) -> str:
    """What is known of an operation that comes from the compiler alone."""
    for begin, name in _UNNAMED.items():
        if operation.opcode.startswith(begin):
            return name
    return "other"


_UNNAMED = {"copy": "copies", "slice": "copies", "all-": "collectives"}
_UNNAMED |= {"collective": "collectives", "reduce-scatter": "collectives"}
