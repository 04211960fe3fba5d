"""Weights of the base that an adapter's folder holds: modules_to_save, biases.

BitFit has nothing else. Its folder is laid out as PEFT's are, under a `peft_type` that
PEFT does not know: BITFIT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.saved import Saved
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft import adapter_config
from jaxpeft.hf.peft.adapter_config import AdapterConfig
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.peft.modules import PREFIX, last
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig, ParamSpec
from jaxpeft.models.weights import param_specs

WRAPPED = ".base_layer."  # PEFT's name for what an adapter stands around
BIAS = ".bias"
BITFIT = "BITFIT"


def saved(params: Mapping[str, Any]) -> dict[str, Saved]:
    """The weights that train themselves, {dotted name: node}."""
    return {n: k for n, k in kernel.nodes(params).items() if isinstance(k, Saved)}


def tensors(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """The weights that train themselves, laid out as torch has them, by their keys.

    Args:
        params: The params mapping.
        cfg: The model's configuration.

    Returns:
        {key in PEFT's file: values}.
    """
    nodes, adapted = saved(params), _adapted(params)
    by_key = {}
    for path, spec in tree.walk(param_specs(cfg)):
        if path not in nodes:
            continue
        weight = np.asarray(nodes[path].weight)
        wrapped = path.endswith(BIAS) and path.rpartition(".")[0] in adapted
        for layer, name in enumerate(spec.hf_names()):
            values = weight[layer] if spec.stacked else weight
            values = np.ascontiguousarray(values.T if spec.transposed else values)
            by_key[PREFIX + (_wrapped(name) if wrapped else name)] = values
    return by_key


def settings(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """`modules_to_save` and `bias` as the config of the folder says them.

    Args:
        params: The params mapping.
        cfg: The model's configuration.
    """
    nodes, specs = saved(params), dict(tree.walk(param_specs(cfg)))
    modules: dict[str, ParamSpec] = {}
    for path in nodes:
        module = path.rpartition(".")[0]
        if not path.endswith(BIAS) or f"{module}.kernel" in nodes:
            modules[module] = specs[path]
    names = []
    for spec in modules.values():
        module = spec.hf_names()[0].rpartition(".")[0]
        # PEFT matches by the end of a name alone: "norm" would be every norm.
        names.append(last(module) if spec.stacked else module)
    biases = {p for p in nodes if p.endswith(BIAS) and p[: -len(BIAS)] not in modules}
    every = {p for p in specs if p.endswith(BIAS) and p[: -len(BIAS)] not in modules}
    return {
        "modules_to_save": sorted(set(names)) or None,
        "bias": "none" if not biases else "all" if biases == every else "lora_only",
    }


def save_biases(
    params: Mapping[str, Any], directory: Path, cfg: ModelConfig, base: str | None
) -> None:
    """Writes the biases that BitFit trained, and reads them back to compare.

    Args:
        params: The params mapping, in which biases train.
        directory: The folder to write.
        cfg: The model's configuration.
        base: The model's folder or hub id, noted in the config.

    Raises:
        InputError: Where the folder is unwritable.
        NumericsError: Where a bias is not finite.
    """
    content = {
        "peft_type": BITFIT,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        **settings(params, cfg),
    }
    with writing(directory, tensors(params, cfg), content) as partial:
        same(params, load_biases(params, partial, cfg), directory)


def load_biases(
    params: Mapping[str, Any], directory: Path, cfg: ModelConfig
) -> dict[str, Any]:
    """The params with the biases of a folder that BitFit made.

    Args:
        params: The params mapping of the base.
        directory: The adapter's folder.
        cfg: The model's configuration.

    Raises:
        InputError: Where the biases are not those of this base.
    """
    file = SafetensorsFile(directory / adapter_config.WEIGHTS)
    nodes, used = read(params, file, AdapterConfig(bias="all"), cfg)
    strange = sorted(set(file.tensors) - used)
    if strange or not nodes:
        raise InputError(
            f"{file.path}: {(strange or ['nothing'])[0]!r} is no bias of this base; "
            "set model.path to the base that it was made for"
        )
    return tree.replace(params, nodes)


def read(
    params: Mapping[str, Any],
    file: SafetensorsFile,
    config: AdapterConfig,
    cfg: ModelConfig,
) -> tuple[dict[str, Saved], set[str]]:
    """The base weights that an adapter's file holds as a whole.

    Args:
        params: The params mapping of the base.
        file: The adapter's safetensors file.
        config: Which weights the file holds: its `modules_to_save` and `bias`.
        cfg: The model's configuration.

    Returns:
        ({dotted name: node}, the keys of the file that they were read from).

    Raises:
        InputError: Where layers are missing, or a shape is not the base's.
    """
    leaves = dict(tree.walk(params))
    nodes: dict[str, Saved] = {}
    used: set[str] = set()
    problems = []
    for path, spec in tree.walk(param_specs(cfg)):
        keys = _keys(path, spec, config, file)
        if keys is None:
            continue
        missing = [key for key in keys if key not in file.tensors]
        if missing:
            problems.append(
                f"{file.path}: {missing[0]!r} is missing, though the config says that "
                "the adapter holds it (modules_to_save or bias); restore both files"
            )
            continue
        problems += _mismatches(keys, spec, file)
        if not problems:
            nodes[path] = _node(keys, spec, file, leaves[path])
            used |= set(keys)
    if nodes and cfg.tie_word_embeddings and "model.embed_tokens.embedding" in nodes:
        problems.append(
            f"{file.path}: it holds an embedding of its own, which this base's head "
            "shares; use a base with tie_word_embeddings false"
        )
    if problems:
        raise InputError(*problems[:10])
    return nodes, used


def _keys(
    path: str, spec: ParamSpec, config: AdapterConfig, file: SafetensorsFile
) -> list[str] | None:
    """The keys of a weight that the adapter holds as a whole; None if it does not."""
    names = spec.hf_names()
    if config.saves(names[0].rpartition(".")[0]):
        return [PREFIX + name for name in names]
    if config.bias == "none" or not path.endswith(BIAS):
        return None
    for rename in (_wrapped, str):
        keys = [PREFIX + rename(name) for name in names]
        if any(key in file.tensors for key in keys):
            return keys
    return None


def _mismatches(keys: list[str], spec: ParamSpec, file: SafetensorsFile) -> list[str]:
    return [
        f"{file.path}: {key!r} has shape {entry.shape} and dtype {entry.dtype}; the "
        f"base's is {spec.hf_shape()}: the adapter was made for another base"
        for key in keys
        for entry in [file.tensors[key]]
        if entry.shape != spec.hf_shape() or entry.dtype not in FLOATS
    ]


def _node(keys: list[str], spec: ParamSpec, file: SafetensorsFile, base: Any) -> Saved:
    weight = np.zeros(spec.shape, np.float32)
    for layer, key in enumerate(keys):
        values = file.view(key)
        layout.require_finite(values, f"{file.path}: {key!r}")
        target = weight[layer] if spec.stacked else weight
        target[...] = np.asarray(values, np.float32).T if spec.transposed else values
    return Saved(jnp.asarray(weight), str(base.dtype))


def _wrapped(name: str) -> str:
    module, _, kind = name.rpartition(".")
    return f"{module}{WRAPPED}{kind}"


def _adapted(params: Mapping[str, Any]) -> set[str]:
    """The paths of the modules whose kernels carry an adapter."""
    return {
        name.rpartition(".")[0]
        for name, node in kernel.nodes(params).items()
        if kernel.is_adapter(node) and not isinstance(node, Saved)
    }


def same(params: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    """Checks that the weights read back are those that were to be kept.

    Args:
        params: The params mapping that was written.
        other: What was read back.
        folder: Where it was written, for the message.

    Raises:
        RuntimeError: Where a weight differs.
    """
    read = saved(other)
    for name, node in saved(params).items():
        if not np.array_equal(np.asarray(node.weight), np.asarray(read[name].weight)):
            raise RuntimeError(f"{folder}: {name} was not written as it should be")
