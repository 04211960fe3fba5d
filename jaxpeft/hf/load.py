"""A model's weights, from safetensors straight into their place in the params."""

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import console, hardware, quant, tree
from jaxpeft.devices import host_memory, sharding
from jaxpeft.errors import InputError, suggest
from jaxpeft.hf import bitsandbytes, layout, stored_tensors
from jaxpeft.hf.safetensors_file import FLOATS
from jaxpeft.hf.stored_tensors import Sources
from jaxpeft.hf.tensor_names import TensorNames
from jaxpeft.models import stored
from jaxpeft.models.spec import ModelConfig, ParamSpec, Piece
from jaxpeft.models.weights import is_spec

DTYPES = ("float32", "bfloat16", "float16")
# Tables that older versions of transformers stored and every version computes.
INERT = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_)?bias)")
READERS = 8  # threads, each on a tensor of its own
MOST_PROBLEMS = 8  # listed of one kind; a wrong config breaks every tensor alike


Shardings = Callable[[ParamSpec], jax.sharding.Sharding]


def load(
    path: str | Path,
    cfg: ModelConfig,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    *,
    shardings: Shardings | None = None,
    quantization: str | None = None,
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """The params mapping of a model's folder, layers stacked, cast to `dtype`.

    No second copy of the model ever exists in memory. What a checkpoint of bitsandbytes
    holds in 4 bits stays as it is.

    Args:
        path: A local folder with `model.safetensors` or its shards.
        cfg: The model's configuration.
        dtype: "float32", "bfloat16" or "float16".
        mesh: The devices, each of which then reads its own part alone; with
            `cfg.offload` the layers' matrices go to the memory of their hosts.
        shardings: Where a weight goes, by its declaration, if not where its logical
            axes say.
        quantization: One of `quant.KERNELS`, which every stacked kernel is stored in, a
            layer at a time, so that they never exist in 16 bits together.
        skip: Names of modules ("down_proj") whose kernels stay unquantized: those whose
            name ends with one of them.

    Returns:
        The params, as the functions of `jaxpeft.models` take them.

    Raises:
        InputError: For tensors that are missing, left over, of another shape than `cfg`
            says, not finite, or neither float32, float16 nor bfloat16; for a checkpoint
            in 4 bits and another quantization.
    """
    _check_names(dtype, quantization)
    names, sources = stored_tensors.sources(Path(path), cfg)
    specs = names.specs(cfg)
    kind = stored.quantization(cfg.hf)
    ready, done = _ready(sources, specs, cfg, kind, quantization, skip)
    others = [spec for path, spec in tree.walk(specs) if path not in ready]
    left = {n: source for n, source in sources.items() if n not in done}
    _check(others, left, names, cfg)

    def place(spec: ParamSpec, pool: Executor) -> Array:
        read = functools.partial(_read, sources, jnp.dtype(dtype), spec, pool)
        array = _array(read, spec, cfg, mesh, shardings)
        # Transfers are asynchronous: without waiting, the host could hold several.
        return array.block_until_ready()

    def load_one(path: str, spec: ParamSpec, pool: Executor) -> Any:
        loaded = load_node(path, spec, pool)
        work.advance(math.prod(spec.shape))
        return loaded

    def load_node(path: str, spec: ParamSpec, pool: Executor) -> Any:
        if kind is not None and path in ready:
            return put(bitsandbytes.read(sources, spec, kind, dtype, target), spec)
        if kind or quantization is None or not is_quantized(path, spec, skip):
            return place(spec, pool)
        make = quant.KERNELS[quantization]
        return put(_quantized(sources, dtype, spec, pool, make, target), spec)

    def put(node: Any, spec: ParamSpec) -> Any:
        if mesh is None:
            return jax.tree.map(jnp.asarray, node)
        by_axes = sharding.of(mesh, node.axes(spec.axes), node)
        return sharding.put(node, _placed(by_axes, node, spec, cfg))

    target = hardware.current() if mesh is None else hardware.of_mesh(mesh)
    total = sum(math.prod(spec.shape) for _, spec in tree.walk(specs))
    with (
        console.Work("loading weights, in parameters", total) as work,
        ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool,
    ):
        return tree.map_named(
            lambda path, spec: load_one(path, spec, pool), specs, is_leaf=is_spec
        )


def _array(
    read: Callable[[Any], Any],
    spec: ParamSpec,
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh | None,
    shardings: Shardings | None,
) -> Array:
    """A weight where it belongs, of what `read` gives of each part of it."""
    if shardings is not None:
        return jax.make_array_from_callback(spec.shape, shardings(spec), read)
    if mesh is None:
        return jax.device_put(read((slice(None),) * len(spec.shape)))
    by_axes = sharding.named(mesh, spec.axes, spec.shape)
    places = _placed(by_axes, spec, spec, cfg)
    return jax.make_array_from_callback(spec.shape, places, read)


def _placed(places: Any, arrays: Any, spec: ParamSpec, cfg: ModelConfig) -> Any:
    """The places of a weight's arrays, those of layers where the model has them."""
    if cfg.offloads_weights and spec.stacked:
        return host_memory.placed_stacks(places, arrays)
    return places


def _check_names(dtype: str, quantization: str | None) -> None:
    if dtype not in DTYPES:
        raise InputError(f"model.dtype: found {dtype!r}" + suggest(dtype, DTYPES))
    if quantization not in (None, *quant.KERNELS):
        raise InputError(
            f"model.quantization: found {quantization!r}"
            + suggest(str(quantization), quant.KERNELS)
        )


def is_quantized(path: str, spec: ParamSpec, skip: Sequence[str]) -> bool:
    """Whether quantization concerns a weight: the layers' kernels, some left out.

    A router's never is: small differences decide there, and it is small itself.

    Args:
        path: The weight's dotted name in the params mapping.
        spec: Its declaration.
        skip: Names of modules that are left out, see `load`.
    """
    if spec.parameter is not None and len(spec.stack) == 1:
        return False
    module = path.removesuffix(".kernel")
    kept = any(module == name or module.endswith(f".{name}") for name in skip)
    return spec.stacked and module != path and not kept


def _ready(
    sources: Sources,
    specs: Any,
    cfg: ModelConfig,
    kind: str | None,
    quantization: str | None,
    skip: Sequence[str],
) -> tuple[dict[str, ParamSpec], set[str]]:
    """(weights by path, names of all their tensors) of what is stored in few bits.

    Raises InputError where the kernels are wanted in other few bits.
    """
    if kind is None:
        return {}, set()
    ready = bitsandbytes.find(sources, specs, cfg, kind)
    stored.check(kind, quantization)
    kept = [p for p, spec in ready.items() if not is_quantized(p, spec, skip)]
    if kept:
        raise InputError(
            f"model.quantization_skip: found {list(skip)!r}, but the checkpoint stores "
            f"{kept[0].removesuffix('.kernel')} in {kind}; leave it out, or "
            + stored.REMEDY
        )
    names = [name for spec in ready.values() for name in spec.hf_names()]
    return ready, {t for name in names for t in bitsandbytes.tensors(name, kind)}


def kept_whole(path: str | Path, cfg: ModelConfig) -> tuple[str, ...]:
    """The names of the layers' modules that a checkpoint in 4 bits stores as they are.

    No weight is read.

    Args:
        path: The model's folder.
        cfg: Its configuration, which says that the checkpoint is stored in 4 bits.

    Raises:
        InputError: As `load` does.
    """
    kind = stored.quantization(cfg.hf)
    assert kind is not None
    names, sources = stored_tensors.sources(Path(path), cfg)
    specs = names.specs(cfg)
    ready = bitsandbytes.find(sources, specs, cfg, kind)
    return tuple(
        name.split(".")[-2]
        for name, spec in tree.walk(specs)
        if is_quantized(name, spec, ()) and name not in ready
    )


def _quantized(
    sources: Sources,
    dtype: str,
    spec: ParamSpec,
    pool: Executor,
    make: Callable[[Array, str], Any],
    target: hardware.Target,
) -> Any:
    """A stack of kernels in few bits, from its matrices one after another.

    Its arrays are numpy's.
    """
    kernels = []
    for at in np.ndindex(*spec.stack):
        index = (*(slice(i, i + 1) for i in at), slice(None), slice(None))
        matrix = _read(sources, jnp.dtype(dtype), spec, pool, index)
        matrix = jnp.asarray(matrix.reshape(spec.shape[-2:]))
        made = make(matrix, dtype)
        kernels.append(jax.tree.map(np.asarray, quant.held(made, target)))

    def stacked(*parts: np.ndarray) -> np.ndarray:
        return np.stack(parts).reshape(*spec.stack, *parts[0].shape)

    return jax.tree.map(stacked, *kernels)


def _read(
    sources: Sources,
    dtype: np.dtype,
    spec: ParamSpec,
    pool: Executor,
    index: tuple[slice, ...] | None,
) -> np.ndarray:
    """The part `index` of a weight, read from the files tensor by tensor."""
    index = index or ()
    ranges = [range(n)[part] for n, part in zip(spec.shape, index, strict=True)]
    target = layout.aligned_empty(tuple(len(r) for r in ranges), dtype)
    columns = ranges[-1]

    def fill(piece: Piece) -> None:
        start = max(columns.start, piece.columns.start)
        stop = min(columns.stop, piece.columns.stop)
        within = slice(start - piece.columns.start, stop - piece.columns.start)
        within = (*index[len(piece.at) : -1], within)
        at = tuple(i - r.start for i, r in zip(piece.at, ranges))
        region = target[(*at, ..., slice(start - columns.start, stop - columns.start))]
        source = sources[piece.name]
        values = source.view()[within[::-1] if spec.transposed else within]
        layout.require_finite(values, str(source))
        layout.copy(values, region, transposed=spec.transposed)
        if dtype == np.float16 and not layout.is_finite(region):
            raise InputError(
                f"model.dtype: {piece.name!r} holds values beyond float16's range; "
                "use bfloat16 or float32"
            )
        del values
        source.release()

    # To the end, for the errors; numpy lets the threads run beside each other.
    list(pool.map(fill, _within(spec, ranges)))
    return target


def _within(spec: ParamSpec, ranges: list[range]) -> list[Piece]:
    """The pieces of a weight that a part of it is made of."""
    columns = ranges[-1]
    return [
        piece
        for piece in spec.pieces()
        if all(i in wanted for i, wanted in zip(piece.at, ranges))
        and piece.columns.start < columns.stop
        and columns.start < piece.columns.stop
    ]


def _check(
    specs: list[ParamSpec], sources: Sources, names: TensorNames, cfg: ModelConfig
) -> None:
    """Raises InputError with every disagreement between the config and the files."""
    wanted = {name: spec for spec in specs for name in spec.hf_names()}
    surplus = [name for name in sources if name not in wanted and not INERT.match(name)]
    shared = _embedding(specs) if names.head in sources else names.head
    missing = [
        _missing(name, name in (names.head, shared), surplus)
        for name in wanted
        if name not in sources
    ]
    mismatched = []
    for name, spec in wanted.items():
        if name not in sources:
            continue
        entry = sources[name].tensor
        if entry.shape != spec.hf_shape():
            mismatched.append(f"{sources[name]} has " + _mismatch(entry.shape, spec))
        if entry.dtype not in FLOATS:
            mismatched.append(
                f"{sources[name]} has dtype {entry.dtype}; handled are "
                f"{', '.join(FLOATS)}. Use the model's unquantized weights"
            )
    if cfg.num_labels is not None and names.head in surplus:
        surplus.remove(names.head)  # its place is taken by the head of scores
    if cfg.tie_word_embeddings and names.head in surplus and not mismatched + missing:
        surplus.remove(names.head)
        mismatched += _untied_head(sources, names.head, _embedding(specs))
    problems = [*_first(missing), *_first(mismatched)]
    if surplus:
        folder = sources[surplus[0]].file.path.parent
        problems.append(
            f"{folder}: {len(surplus)} tensors have no place in the model that "
            f"config.json describes: {', '.join(surplus[:5])}"
            f"{' ...' if len(surplus) > 5 else ''}. Restore config.json, or use the "
            "weights that belong to it"
        )
    if problems:
        raise InputError(*problems)


def _missing(name: str, shared: bool, surplus: list[str]) -> str:
    """A tensor that is not there.

    shared: with it the head may be one table. surplus: the tensors without a place.
    """
    if shared:
        return (
            f"model.path: the tensor {name!r} is missing, and config.json has "
            "tie_word_embeddings false; set it to true if the model shares its "
            "embedding with the head, else download the weights again"
        )
    remedy = "download the weights again"
    if surplus:
        remedy = "the weights have other names or are another model's, see below"
    return f"model.path: the tensor {name!r} is missing; {remedy}"


def _mismatch(found: tuple[int, ...], spec: ParamSpec) -> str:
    """What a shape is, what it should be, and the remedy."""
    expected = spec.hf_shape()
    if "vocab" in spec.axes and found[1:] == expected[1:]:
        return (
            f"{found[0]} rows, one a token; config.json has vocab_size {expected[0]}. "
            "If tokens were added to the model after config.json was written, set "
            f"vocab_size to {found[0]}; else restore both from the same source"
        )
    return (
        f"shape {found}; config.json implies {expected}. Weights and config.json "
        "belong to different models: restore both from the same source"
    )


def _embedding(specs: list[ParamSpec]) -> str:
    """The embedding's name on the disk."""
    return next(spec.hf for spec in specs if spec.axes == ("vocab", "embed"))


def _untied_head(sources: Sources, name: str, embedding: str) -> list[str]:
    """A problem where a head is stored that is not the embedding it is tied to."""
    head, tied = sources[name], sources[embedding]
    mine, other = (stored.view().view(np.uint8) for stored in (head, tied))
    if head.tensor.dtype == tied.tensor.dtype and np.array_equal(mine, other):
        return []
    return [
        f"{head} differs from {embedding!r}, though "
        "config.json has tie_word_embeddings true; set it to false to use that head"
    ]


def _first(problems: list[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
