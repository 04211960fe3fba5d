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
from jaxpeft.adapters.tokens import Tokens
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft import adapter_config, vocabulary
from jaxpeft.hf.peft.adapter_config import AdapterConfig
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.peft.modules import PREFIX, last
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig, ParamSpec
from jaxpeft.models.weights import specs_with_head

WRAPPED = ".base_layer."  # PEFT's name for what an adapter stands around
BIAS = ".bias"
BITFIT = "BITFIT"


def saved(params: Mapping[str, Any]) -> dict[str, Saved]:
    """The weights that train themselves, {dotted name: node}."""
    nodes = kernel.nodes(params).items()
    return {n: k for n, k in nodes if isinstance(k, Saved) and k.trains}


def tensors(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """The base's weights in a folder, laid out as torch has them, by their keys.

    They are those that train themselves, and what came with an adapter.

    Args:
        params: The params mapping.
        cfg: The model's configuration.

    Returns:
        {key in PEFT's file: values}.
    """
    nodes, adapted = saved(params), _adapted(params)
    by_key = vocabulary.tensors(params, cfg)
    for path, spec in tree.walk(specs_with_head(cfg)):
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
    nodes, specs = saved(params), dict(tree.walk(specs_with_head(cfg)))
    modules, names = set(), []
    for path in nodes:
        module = path.rpartition(".")[0]
        if not path.endswith(BIAS) or f"{module}.kernel" in nodes:
            modules.add(module)
            name = specs[path].hf_names()[0].rpartition(".")[0]
            # PEFT matches by the end of a name alone: "norm" would be every norm.
            names.append(last(name) if specs[path].stacked else name)
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
    params, nodes, used = read(params, file, AdapterConfig(bias="all"), cfg)
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
) -> vocabulary.Ends:
    """The base weights that an adapter's file holds as a whole.

    Args:
        params: The params mapping of the base.
        file: The adapter's safetensors file.
        config: Which weights the file holds: its `modules_to_save` and `bias`.
        cfg: The model's configuration.

    Returns:
        The base with what the file brings along, {dotted name: node}, and the keys of
        the file that were read.

    Raises:
        InputError: Where layers are missing, or a shape is not the base's.
    """
    ends = vocabulary.read(params, file, config, cfg)
    leaves, nodes, used = dict(tree.walk(ends.params)), ends.nodes, ends.used
    problems = []
    for path, spec in tree.walk(specs_with_head(cfg)):
        keys = _keys(path, spec, config, file)
        if keys is None or path in vocabulary.ENDS:
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
    if problems:
        raise InputError(*problems[:10])
    return vocabulary.Ends(ends.params, nodes, used)


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
        if kernel.is_adapter(node) and not isinstance(node, Saved | Tokens)
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
    vocabulary.same(params, other, folder)
    read = saved(other)
    for name, node in saved(params).items():
        if not np.array_equal(np.asarray(node.weight), np.asarray(read[name].weight)):
            raise RuntimeError(f"{folder}: {name} was not written as it should be")
