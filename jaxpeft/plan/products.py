"""The matrix products of a compiled program: their arithmetic and what they are of."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxpeft.plan.loops import fused
from jaxpeft.plan.program_text import Array, Computation, Operation, Program, bits

# How many products of bfloat16 stand for one of float32 on a TPU, by its precision.
PASSES = {"default": 1, "high": 3, "highest": 6}


class Product(NamedTuple):
    """A matrix product, or a kernel of several.

    Attributes:
        flops: a multiplication and an addition are two.
        dtype: of the operands, the wider one.
        precision: "default", "high" or "highest"; says something of float32 alone.
        operation: the product itself, which may lie in a fusion.
    """

    flops: float
    dtype: str
    precision: str
    operation: Operation


def products(
    program: Program, computation: Computation, operation: Operation
) -> Iterator[Product]:
    """The products that an operation computes, those in its fusion or kernel.

    Args:
        program: a compiled program.
        computation: where the operation stands.
        operation: of the program.
    """
    for where, one in ((computation, operation), *fused(program, operation)):
        compute = _FLOPS.get(one.opcode)
        if compute is None:
            continue
        given = [where.operations[x].arrays for x in one.operands]
        operands = [arrays[0] for arrays in given if arrays]
        flops = compute(one, operands)
        if flops:
            dtype = _of_kernel if one.opcode == "custom-call" else _widest
            precision = re.search(
                r"\{(\w+)", one.attributes.get("operand_precision", "")
            )
            yield Product(
                flops=flops,
                dtype=dtype(operands),
                precision=precision[1] if precision else "default",
                operation=one,
            )


def is_costed(operation: Operation) -> bool:
    """Whether a custom call's arithmetic is known, by its own note or a formula here.

    Args:
        operation: a custom call.
    """
    target = operation.attributes.get("custom_call_target", "").strip('"')
    known = target in _KERNELS or target in NO_WORK or bool(_cost_note(operation))
    return known or _scoped(operation) > 0


# Kernels of attention, by their scopes -> the products that each has: ours for GPUs
# (`models.attention.triton`), and splash attention. Going back, both compute the scores
# and the slopes of the probabilities.
SCOPES = {
    "attention_forward": 2,
    "attention_backward_keys": 4,
    "attention_backward_queries": 3,
    "splash_mha_fwd": 2,
    "splash_mqa_fwd": 2,
    "splash_mha_dkv": 4,
    "splash_mqa_dkv": 4,
    "splash_mha_dq": 3,
    "splash_mqa_dq": 3,
}

# Custom calls that compute nothing: they name memory, or say something of it.
NO_WORK = (
    *("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding"),
    *("GatherScatterIndicesBitpacked", "AsyncCollectiveStart", "AsyncCollectiveDone"),
    *("X64SplitLow", "X64SplitHigh", "X64Combine"),
)


def cost_note(operation: Operation) -> dict[str, float]:
    """What a kernel says of its own cost: "flops" and "bytes_accessed"; {}: nothing.

    Args:
        operation: a custom call.
    """
    return _cost_note(operation)


def _widest(operands: list[Array]) -> str:
    numbers = [x for x in operands[:2] if x.dtype != "pred"]
    return max((x.dtype for x in numbers), key=bits, default="")


def _of_kernel(operands: list[Array]) -> str:
    """What a kernel computes in: its largest operand that holds no whole numbers."""
    numbers = [x for x in operands if x.dtype[0] in "bf"]
    return max(numbers, key=lambda x: x.nbytes).dtype if numbers else _widest(operands)


def _dot(one: Operation, operands: list[Array]) -> float:
    axes = re.findall(r"\d+", one.attributes.get("lhs_contracting_dims", ""))
    depth = math.prod(operands[0].shape[int(axis)] for axis in axes)
    return 2.0 * depth * math.prod(one.arrays[0].shape)


def _convolution(one: Operation, operands: list[Array]) -> float:
    """Of the places of a window only those count that meet the input.

    TPUs have products with batches as such windows, of which most lie beside it.
    """
    left, right, out = re.split("_|->", one.attributes["dim_labels"])
    size = dict(zip(left, operands[0].shape, strict=True))
    kernel = dict(zip(right, operands[1].shape, strict=True))
    result = dict(zip(out, one.arrays[0].shape, strict=True))
    window = one.attributes.get("window", "")
    pairs = 1
    for axis in sorted(set(out) - {"b", "f"}):
        found = {
            name: _of_axis(window, name, int(axis), default)
            for name, default in _WINDOW.items()
        }
        before = int(found["pad"].split("_")[0])
        at = np.arange(result[axis])[:, None] * int(found["stride"]) - before
        at = at + np.arange(kernel[axis])[None] * int(found["rhs_dilate"])
        apart = int(found["lhs_dilate"])
        meets = (at >= 0) & (at <= (size[axis] - 1) * apart) & (at % apart == 0)
        pairs *= int(meets.sum())
    return 2.0 * result["b"] * result["f"] * kernel["i"] * pairs


_WINDOW = {"pad": "0_0", "stride": "1", "rhs_dilate": "1", "lhs_dilate": "1"}


def _of_axis(window: str, name: str, axis: int, default: str) -> str:
    found = re.search(rf"\b{name}=(\S+?)[\s}}]", window)
    return found[1].split("x")[axis] if found else default


def _custom_call(one: Operation, operands: list[Array]) -> float:
    note = _cost_note(one)
    if note:
        return float(note.get("flops", 0))
    if count := _scoped(one):
        # Queries (batch, queries, heads, head_dim) or (heads, queries, head_dim), of
        # which each sees half the keys of its row: rows that are packed, and windows,
        # have less to do.
        queries = next(
            x.shape for x in operands if len(x.shape) > 2 and x.dtype[0] in "bf"
        )
        row = queries[1]
        if lists := [
            x.shape for x in operands if x.dtype == "s32" and len(x.shape) == 3
        ]:
            # Splash attention's rows are end to end: for each block (1, blocks, most),
            # or the other way round, the most that it reads.
            row *= min(lists[0][1:]) / max(lists[0][1:])
        return 2.0 * count * math.prod(queries) * (row + 1) / 2
    target = one.attributes.get("custom_call_target", "").strip('"')
    kernel = _KERNELS.get(target)
    return kernel(one, operands) if kernel else 0.0


def _scoped(one: Operation) -> int:
    """How many products of queries' and keys' size a kernel has; 0: not known."""
    target = one.attributes.get("custom_call_target", "").strip('"')
    found = [n for name, n in SCOPES.items() if re.search(rf"\b{name}", one.op_name)]
    return found[-1] if found and target not in NO_WORK else 0


def _cost_note(one: Operation) -> dict[str, float]:
    """The cost estimate that Pallas writes into its calls."""
    config: Any = one.config
    for name in ("custom_call_config", "cost_estimate"):
        config = config.get(name, config) if isinstance(config, dict) else config
    if isinstance(config, dict) and "flops" in config:
        return {key: float(n) for key, n in config.items() if _is_number(n)}
    return {}


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _attention(one: Operation, operands: list[Array]) -> float:
    """cuDNN's fused attention: two products forwards, five backwards.

    Of a causal mask the half of each counts, of a window its width.
    """
    config = one.config.get("cudnn_fmha_backend_config", {})
    shape = config.get("intermediate_tensor_shape", {}).get("dimensions", [])
    if len(shape) != 4:
        return 0.0
    batch, heads, queries, keys = (int(n) for n in shape)
    depth = operands[0].shape[-1]
    seen = float(keys)
    if "CAUSAL" in config.get("mask_type", ""):
        seen = (keys + 1) / 2
    width = int(config.get("sliding_window_length", 0))
    if width:
        seen = min(seen, float(width))
    count = 5 if one.attributes["custom_call_target"].endswith('Backward"') else 2
    return 2.0 * count * batch * heads * queries * seen * depth


def _gemm(one: Operation, operands: list[Array]) -> float:
    """cuBLAS."""
    config = one.config.get("gemm_backend_config", {})
    numbers = config.get("dot_dimension_numbers", {})
    axes = numbers.get("lhs_contracting_dimensions", [])
    depth = math.prod(operands[0].shape[int(axis)] for axis in axes)
    return 2.0 * depth * math.prod(one.arrays[0].shape)


_FLOPS: dict[str, Callable[[Operation, list[Array]], float]] = {
    "dot": _dot,
    "convolution": _convolution,
    "custom-call": _custom_call,
}
_KERNELS: dict[str, Callable[[Operation, list[Array]], float]] = {
    "__cudnn$fmhaSoftmax": _attention,
    "__cudnn$fmhaSoftmaxBackward": _attention,
    "__cudnn$fmhaScaleBiasSoftmax": _attention,
    "__cudnn$fmhaScaleBiasSoftmaxBackward": _attention,
    "__cublas$gemm": _gemm,
    "__cublas$lt$matmul": _gemm,
    "__cublas$lt$matmul$f8": _gemm,
}
