"""A model back into Hugging Face's format: safetensors, an index, config.json."""

import functools
import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import console, kernel, replacing, tree
from jaxpeft.adapters.partly import Partly
from jaxpeft.errors import InputError, suggest
from jaxpeft.hf import (
    bitsandbytes,
    checkpoint_index,
    layout,
    safetensors_file,
    stored_tensors,
    tensor_names,
)
from jaxpeft.hf.load import DTYPES
from jaxpeft.models.spec import ModelConfig, ParamSpec, Piece
from jaxpeft.models.weights import param_specs
from jaxpeft.quant import NF4

METADATA = {"format": "pt"}  # without it transformers refuses a file
WEIGHTS = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


class Part(NamedTuple):
    """One tensor of a file that is to be written.

    Attributes:
        dtype: The dtype that it is written in.
        shape: The shape that it has in the file.
        values: Reads its values.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The bytes that the tensor takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def save(
    params: Mapping[str, Any],
    directory: str | Path,
    cfg: ModelConfig,
    *,
    max_shard_bytes: float = 5e9,
    dtype: str | None = None,
    base: str | Path | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors` (or shards and their index).

    A head of its own beside an embedding that `cfg` ties to it is written as such, with
    tie_word_embeddings false. NF4 kernels are written as they are, in bitsandbytes'
    format. Weights of which some layers train (`adapters.Partly`) are written whole. A
    file replaces its predecessor only when all are complete and verified; weights of an
    earlier save are removed. One tensor at a time is copied. The tokenizer's files are
    not touched. Of several processes all call this, and the first writes.

    Args:
        params: The params mapping, its adapters merged.
        directory: The folder to write.
        cfg: The model's configuration.
        max_shard_bytes: The most bytes of tensors in one file, but for a single larger
            one.
        dtype: "float32", "bfloat16" or "float16"; None keeps each weight's own, bit for
            bit.
        base: The folder of the model that this one was made from, needed where that
            sees, too: the tensors of its other parts go along as they are.

    Raises:
        InputError: Where adapters or 8-bit weights are left in `params`, where they are
            not those of `cfg`, where `base` is needed, or the folder is unwritable.
    """
    directory = Path(directory)
    if cfg.tie_word_embeddings and "lm_head" in params:
        cfg = cfg.untied()
    specs, beside = _names(cfg, base)
    parts = {**_parts(params, specs, cfg, dtype), **beside}
    # Widest elements first: within a file none starts off its own boundary.
    parts = dict(sorted(parts.items(), key=lambda item: -item[1].dtype.itemsize))
    shards = _shards(parts, max_shard_bytes)
    if jax.process_index():
        # Another one writes; what this one holds of each tensor is fetched from here.
        for part in parts.values():
            part.values()
        return

    sums: dict[str, int] = {}

    def values(tensor: str) -> np.ndarray:
        work.advance()
        array = np.asarray(parts[tensor].values(), order="C")
        sums[tensor] = zlib.crc32(array.reshape(-1).view(np.uint8).data)
        return array

    with (
        console.Work("writing the model, in tensors", len(parts)) as work,
        replacing.files_of(directory) as partial,
    ):
        for name, shard in shards.items():
            safetensors_file.write(
                partial / name,
                {tensor: (p.dtype, p.shape) for tensor, p in shard.items()},
                values,
                METADATA,
            )
        if len(shards) > 1:
            _write_json(partial / checkpoint_index.INDEX, _index(shards, cfg, beside))
        _write_json(partial / "config.json", _config(cfg, params, dtype, beside))
        _verify(partial, parts, sums)
        for old in directory.iterdir():
            if WEIGHTS.fullmatch(old.name) and not (partial / old.name).exists():
                old.unlink()


def _names(cfg: ModelConfig, base: str | Path | None) -> tuple[Any, dict[str, Part]]:
    """The declarations with the names to write, and what goes along as it is.

    Of a model that sees, too, both are as its own files have them.
    """
    if not cfg.sees:
        return param_specs(cfg), {}
    if base is None:
        raise InputError(
            f"a model of type {cfg.model_type!r} has other weights than its language "
            "model's; give base=, the folder of the model that it was made from"
        )
    tensors = stored_tensors.unwrapped(Path(base))
    names = tensor_names.of(tensors, cfg)
    beside = {}
    for name in names.beside(tensors):
        tensor = tensors[name].tensor
        dtype = safetensors_file.WRITTEN.get(tensor.dtype)
        if dtype is None:
            raise InputError(
                f"{tensors[name]} has dtype {tensor.dtype}, which is not written; use "
                "the model's unquantized weights"
            )
        beside[name] = Part(jnp.dtype(dtype), tensor.shape, tensors[name].view)
    return names.specs(cfg), beside


def _parts(
    params: Mapping[str, Any], specs: Any, cfg: ModelConfig, dtype: str | None
) -> dict[str, Part]:
    """{Hugging Face tensor name: its part} of the params."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype: found {dtype!r}" + suggest(str(dtype), DTYPES))
    nodes = kernel.nodes(params).items()
    left = [name for name, k in nodes if not isinstance(k, NF4 | Partly)]
    if left:
        raise InputError(
            f"the params still hold {len(left)} adapters or 8-bit weights "
            f"({left[0]}, ...); fold them in first: "
            "adapters.merge(params)"
        )
    if not cfg.hf:
        raise InputError(
            "the model's config has no content of a config.json to write; make it with "
            "models.config(path or mapping)"
        )
    specs, leaves = dict(tree.walk(specs)), dict(tree.walk(params))
    problems = [
        f"params: {name}: has shape {tuple(getattr(leaves.get(name), 'shape', ()))}, "
        f"but the config implies {spec.shape}; save with the model's own config"
        for name, spec in specs.items()
        if tuple(getattr(leaves.get(name), "shape", ())) != spec.shape
    ]
    problems += [
        f"params: {name}: has no place in the model that the config describes"
        for name in leaves
        if name not in specs
    ]
    if problems:
        raise InputError(*problems)
    parts = {}
    for name, spec in specs.items():
        leaf = leaves[name]
        if isinstance(leaf, NF4):
            bitsandbytes.check(cfg)
            written = bitsandbytes.stored(leaf, spec, dtype or leaf.dtype)
            parts.update({tensor: Part(*part) for tensor, part in written.items()})
            continue
        kind = jnp.dtype(dtype or leaf.dtype)
        for piece in spec.pieces():
            read = functools.partial(_values, leaf, spec, piece, kind)
            parts[piece.name] = Part(kind, spec.hf_shape(), read)
    return parts


def _shards(parts: Mapping[str, Part], limit: float) -> dict[str, dict[str, Part]]:
    """{file name: its parts}: each at most `limit` bytes, or a single tensor."""
    shards: list[dict[str, Part]] = [{}]
    size = 0
    for name, part in parts.items():
        if shards[-1] and size + part.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = part
        size += part.nbytes
    if len(shards) == 1:
        return {checkpoint_index.SINGLE: shards[0]}
    return {
        f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard
        for i, shard in enumerate(shards, 1)
    }


def _values(leaf: Any, spec: ParamSpec, piece: Piece, dtype: np.dtype) -> np.ndarray:
    """A piece of a leaf as Hugging Face lays it out, in `dtype`."""
    one = leaf[piece.at] if piece.at or isinstance(leaf, Partly) else leaf
    values = tree.to_host(one)[..., piece.columns]
    if values.dtype == dtype and not spec.transposed:
        return values
    target = np.empty(spec.hf_shape(), dtype)
    layout.copy(values, target, transposed=spec.transposed)
    return target


def _index(
    shards: Mapping[str, Mapping[str, Part]],
    cfg: ModelConfig,
    beside: Mapping[str, Part],
) -> dict[str, Any]:
    parts = [part for shard in shards.values() for part in shard.values()]
    counted = [spec for _, spec in tree.walk(param_specs(cfg))]
    return {
        "metadata": {
            "total_parameters": sum(
                math.prod(one.shape) for one in (*counted, *beside.values())
            ),
            "total_size": sum(p.nbytes for p in parts),
        },
        "weight_map": {name: file for file, shard in shards.items() for name in shard},
    }


def _config(
    cfg: ModelConfig,
    params: Mapping[str, Any],
    dtype: str | None,
    beside: Collection[str],
) -> dict[str, Any]:
    """config.json as it was read, but for how weights are stored, and what is code."""
    left_out = ("auto_map", "quantization_config")
    hf = {k: v for k, v in cfg.hf.items() if k not in left_out}
    leaves = [x for _, x in tree.walk(params)]
    own = max((jnp.dtype(x.dtype) for x in leaves), key=lambda kind: kind.itemsize)
    stored = dtype or own.name
    if any(isinstance(x, NF4) for x in leaves):
        modules = {f"model.{name.removeprefix('model.')}" for name in beside}
        parts = {".".join(name.split(".")[:2]) for name in modules}
        hf["quantization_config"] = bitsandbytes.config(params, stored, parts)
    # transformers before 4.56 and many other readers know only the older name.
    for key in {"dtype", "torch_dtype"} & set(hf) or {"dtype"}:
        hf[key] = stored
    if isinstance(text := hf.get("text_config"), Mapping):
        named = {key: stored for key in ("dtype", "torch_dtype") if key in text}
        hf["text_config"] = {**text, **named}
    return hf


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _verify(
    directory: Path, parts: Mapping[str, Part], sums: Mapping[str, int]
) -> None:
    """Reopens what was written: every tensor must have its shape, dtype and bytes."""
    written = checkpoint_index.tensors(directory)
    for name, part in parts.items():
        tensor = written[name].tensors[name]
        dtype = safetensors_file.WRITTEN[tensor.dtype]
        same = zlib.crc32(written[name].raw(name).data) == sums[name]
        written[name].release(tensor)
        if (tensor.shape, dtype) != (part.shape, part.dtype) or not same:
            raise RuntimeError(f"{directory}: {name} was not written as it should be")
