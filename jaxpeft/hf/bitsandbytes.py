"""Weights that bitsandbytes stored in 4 bits: its safetensors, in and out.

For a matrix (out, in) named `W`, flattened, with blocks of 64: `W` holds the codes, two
a byte; `W.absmax` the scales of the blocks, float32, or with double quantization their
codes, whose own scales are `W.nested_absmax`; `W.quant_map` and `W.nested_quant_map`
the code books; `W.quant_state.bitsandbytes__nf4` a JSON object as bytes: shapes, block
sizes, the dtype of the weights before, and the mean of the scales (`nested_offset`).
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxpeft import hardware, kernel, quant, tree
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.safetensors_file import FLOATS
from jaxpeft.hf.stored_tensors import Sources, Stored
from jaxpeft.models.spec import ModelConfig, ParamSpec
from jaxpeft.models.stored import BNB, REMEDY
from jaxpeft.quant import NF4, codebooks
from jaxpeft.quant.nf4 import BLOCK, SCALES_BLOCK, VALUES

Announced = tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]

MARK = ".quant_state.bitsandbytes__"  # then nf4 or fp4: only quantized weights have it
STATE = f"{MARK}nf4"
LARGEST_STATE = 10_000  # bytes of JSON; there are about 200
MOST_PROBLEMS = 8
LARGEST = float(np.finfo(np.float32).max)


def check(cfg: ModelConfig) -> None:
    """Checks that bitsandbytes' format has tensors for the kernels of a model's family.

    Args:
        cfg: The model's configuration.

    Raises:
        InputError: Where its kernels are no linear modules there (Conv1D, experts).
    """
    if cfg.conv1d or cfg.experts is not None:
        raise InputError(
            f"model.path: {cfg.model_type!r} is not handled in bitsandbytes' 4 bits, "
            "for its kernels are no linear modules there; store the model whole, and "
            "quantize while loading (model.quantization)"
        )


def find(
    sources: Sources, specs: Any, cfg: ModelConfig, kind: str
) -> dict[str, ParamSpec]:
    """The weights that a checkpoint stores in 4 bits: {dotted name: declaration}.

    The names are those in the params mapping. Headers and states are checked, no weight
    is read.

    Args:
        sources: {tensor name: where it is stored}.
        specs: The declarations of the model's weights, as the files name them.
        cfg: The model's configuration.
        kind: "nf4" with double quantization, "nf4_single" without.

    Raises:
        InputError: Where the tensors are damaged or not as `kind` says, where a stack
            of layers is stored in two ways, and for other weights in 4 bits than the
            layers'.
    """
    check(cfg)
    problems, found, known = [], {}, set()
    for path, spec in tree.walk(specs):
        names = spec.hf_names()
        quantized = [name for name in names if name + STATE in sources]
        if not (spec.stacked and path.endswith(".kernel") and quantized):
            continue
        known.update(name + STATE for name in quantized)
        if len(quantized) < len(names):
            whole = next(name for name in names if name not in quantized)
            problems.append(
                f"model.path: {quantized[0]!r} is stored in 4 bits and {whole!r} is "
                f"not; the layers of a module must be stored alike: {REMEDY}"
            )
            continue
        for name in names:
            problems += _problems(sources, name, spec, kind)
        found[path] = spec
    problems += [
        f"{stored}: handled in 4 bits are the layers' kernels in nf4 alone: {REMEDY}"
        for name, stored in sources.items()
        if MARK in name and name not in known
    ]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = [f"... and {more} more"] if more > 0 else []
        raise InputError(*problems[:MOST_PROBLEMS], *rest)
    return found


def tensors(name: str, kind: str) -> list[str]:
    """The names of all tensors that hold the weight `name`, stored as `kind`."""
    return [name, name + STATE, *(f"{name}.{part}" for part in _parts(1, kind))]


def read(
    sources: Sources,
    spec: ParamSpec,
    kind: str,
    dtype: str,
    target: hardware.Target,
) -> NF4:
    """The kernels of all layers of a weight, of the codes and scales that are stored.

    Args:
        sources: {tensor name: where it is stored}.
        spec: A declaration that `find` returned.
        kind: "nf4" with double quantization, "nf4_single" without.
        dtype: What products are to be formed in; with the dtype of the weights before,
            they are bit for bit those of bitsandbytes.
        target: What they are held for.

    Returns:
        The node, with numpy's arrays.

    Raises:
        InputError: Where a scale is not finite.
    """

    def layer(name: str) -> NF4:
        one = NF4(**_layer(sources, name, spec, kind), dtype=dtype)
        return jax.tree.map(np.asarray, quant.held(one, target))

    layers = [layer(name) for name in spec.hf_names()]
    return jax.tree.map(lambda *parts: np.stack(parts), *layers)


def _layer(sources: Sources, name: str, spec: ParamSpec, kind: str) -> dict[str, Any]:
    """The fields of one layer's NF4."""

    def values(tensor: str, dtype: type) -> np.ndarray:
        stored = sources[tensor]
        array = stored.raw().copy().view(dtype)
        stored.release()
        if dtype == np.float32:
            layout.require_finite(array, str(stored))
        return array

    d_out, _ = spec.hf_shape()
    fields: dict[str, Any] = {"codes": values(name, np.uint8).reshape(d_out, -1)}
    scales = values(f"{name}.absmax", np.uint8 if kind == "nf4" else np.float32)
    fields["scales"] = scales.reshape(d_out, -1)
    if kind == "nf4":
        fields["scales_max"] = values(f"{name}.nested_absmax", np.float32)
        state = _state(sources[name + STATE])
        fields["offset"] = np.asarray(state["nested_offset"], np.float32)
    return fields


def _parts(count: int, kind: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{what follows the name: (dtype, shape)} of `count` blocks, but for the state."""
    parts = {
        "absmax": ("U8" if kind == "nf4" else "F32", (count,)),
        "quant_map": ("F32", (len(VALUES),)),
    }
    if kind == "nf4":
        parts["nested_absmax"] = ("F32", (-(-count // SCALES_BLOCK),))
        parts["nested_quant_map"] = ("F32", (256,))
    return parts


def _books(kind: str) -> dict[str, np.ndarray]:
    nested = {"nested_quant_map": codebooks.values(signed=True)}
    return {"quant_map": VALUES, **(nested if kind == "nf4" else {})}


def _problems(sources: Sources, name: str, spec: ParamSpec, kind: str) -> Iterable[str]:
    """What is wrong with the tensors of one weight."""
    d_out, d_in = spec.hf_shape()
    if d_in % BLOCK:
        yield (
            f"model.path: {name!r} has an input of {d_in}, of which {BLOCK} is no "
            f"divisor, so that blocks of weights span two outputs; {REMEDY}"
        )
        return
    parts = _parts(d_out * d_in // BLOCK, kind)
    missing = [key for key in tensors(name, kind) if key not in sources]
    if missing:
        yield (
            f"model.path: the tensor {missing[0]!r} is missing; config.json says that "
            f"{name!r} is stored in {kind}: download the weights again"
        )
        return
    tensor = sources[name].tensor
    if tensor.stop - tensor.start != d_out * d_in // 2:
        yield (
            f"{sources[name]} has {tensor.stop - tensor.start} bytes; config.json "
            f"implies {d_out * d_in // 2}: restore both from the same source"
        )
    for part, expected in parts.items():
        key = f"{name}.{part}"
        entry = sources[key].tensor
        if (entry.dtype, entry.shape) != expected:
            yield (
                f"{sources[key]} is {entry.dtype} {entry.shape}, "
                f"expected {expected[0]} {expected[1]}: download the weights again"
            )
        elif part in _books(kind):
            values = sources[key].raw().view(np.float32)
            if not np.array_equal(values, _books(kind)[part]):
                yield (
                    f"{sources[key]} is not the code book of "
                    f"bitsandbytes' {kind}; {REMEDY}"
                )
    yield from _state_problems(sources[name + STATE], spec, kind)


def _state_problems(stored: Stored, spec: ParamSpec, kind: str) -> Iterable[str]:
    try:
        state = _state(stored)
    except InputError as error:
        yield from error.problems
        return
    wanted = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(spec.hf_shape())}
    if kind == "nf4":
        wanted |= {"nested_blocksize": SCALES_BLOCK, "nested_dtype": "float32"}
        offset = state.get("nested_offset")
        if type(offset) is not float or not abs(offset) < LARGEST:
            yield (
                f"{stored}: nested_offset: found {offset!r}; it must be a "
                "float32 number: download the weights again"
            )
    for field, expected in wanted.items():
        if state.get(field) != expected:
            yield (
                f"{stored}: {field}: found {state.get(field)!r}, handled "
                f"is {expected!r}: {REMEDY}"
            )


def _state(stored: Stored) -> dict[str, Any]:
    """The JSON object in a tensor of bytes."""
    tensor = stored.tensor
    if tensor.dtype != "U8" or tensor.stop - tensor.start > LARGEST_STATE:
        raise InputError(
            f"{stored} is {tensor.dtype} {tensor.shape}, not a JSON object "
            "as bytes: download the weights again"
        )
    try:
        state = json.loads(bytes(stored.raw()))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{stored} is not valid JSON ({error}): download the weights again"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{stored} holds no JSON object: download the weights again")
    return state


def stored(node: NF4, spec: ParamSpec, dtype: str) -> dict[str, Announced]:
    """The tensors to write for a stack of kernels: {name: (dtype, shape, values)}.

    Args:
        node: The kernels of all layers.
        spec: The weight's declaration.
        dtype: What they count as the dtype of the weights before.

    Returns:
        For every tensor its dtype, its shape and a function that returns its values.
    """
    kind = "nf4_single" if node.offset is None else "nf4"
    d_out, d_in = spec.hf_shape()
    dtypes = {"U8": np.dtype(np.uint8), "F32": FLOATS["F32"]}
    fields = {"absmax": node.scales, "nested_absmax": node.scales_max}
    books = _books(kind)
    announced: dict[str, Announced] = {}

    def announce(name: str, dtype: np.dtype, shape: tuple, values: Any) -> None:
        announced[name] = (dtype, shape, lambda: tree.to_host(values()).reshape(shape))

    for layer, name in enumerate(spec.hf_names()):
        half = (d_out * d_in // 2, 1)

        def codes(layer: int = layer) -> Any:
            return kernel.layer(node, layer).in_rows().codes

        announce(name, dtypes["U8"], half, codes)
        for part, (code, shape) in _parts(d_out * d_in // BLOCK, kind).items():

            def values(part: str = part, layer: int = layer) -> Any:
                return books[part] if part in books else fields[part][layer]

            announce(f"{name}.{part}", dtypes[code], shape, values)
        state = {
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": dtype,
            "shape": [d_out, d_in],
        }
        if node.offset is not None:
            state["nested_blocksize"] = SCALES_BLOCK
            state["nested_dtype"] = "float32"
            state["nested_offset"] = float(tree.to_host(node.offset)[layer])
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        announce(name + STATE, dtypes["U8"], text.shape, lambda text=text: text)
    return announced


def config(
    params: Mapping[str, Any], dtype: str, beside: Collection[str] = ()
) -> dict[str, Any]:
    """The `quantization_config` of a config.json for params that hold NF4 kernels.

    Args:
        params: The params mapping.
        dtype: What transformers computes in.
        beside: The modules beside a language model, all of which stay whole.
    """
    kernels = {n: k for n, k in tree.walk(params) if n.endswith(".kernel")}
    nodes = [k for k in kernels.values() if isinstance(k, NF4)]
    whole = sorted(
        {name.split(".")[-2] for name, k in kernels.items() if not isinstance(k, NF4)}
    )
    if beside:
        whole = sorted({*whole, *beside, "lm_head"})
    return {
        "quant_method": BNB,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": any(node.offset is not None for node in nodes),
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        # Without a list transformers leaves the head alone out.
        "llm_int8_skip_modules": None if whole in ([], ["lm_head"]) else whole,
    }
