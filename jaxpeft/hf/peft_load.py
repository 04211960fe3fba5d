"""A PEFT adapter's folder as LoRA nodes in a params mapping."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError
from jaxpeft.hf import layout, peft_config
from jaxpeft.hf.peft_config import AdapterConfig
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import param_specs

PREFIX = "base_model.model."
HEAD = "lm_head"
MOST_PROBLEMS = 10


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear module of the base: its weight's place in the params, and its size."""

    path: str  # dotted name of the kernel in the params mapping
    layer: int | None  # None: not stacked
    d_in: int
    d_out: int


def linear_modules(cfg: ModelConfig) -> dict[str, Module]:
    """{Hugging Face's module name: module} for every linear module of a model."""
    found = {}
    for path, spec in tree.walk(param_specs(cfg)):
        if path.endswith(".kernel"):
            for layer, name in enumerate(spec.hf_names()):
                found[name.removesuffix(".weight")] = Module(
                    path, layer if spec.stacked else None, *spec.shape[-2:]
                )
    return found


def keys(module: str) -> tuple[str, str]:
    """The names of a module's A (r, in) and B (out, r) in the safetensors file."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def load_adapter(
    params: Mapping[str, Any], directory: str | Path, cfg: ModelConfig
) -> dict[str, Any]:
    """The params with the PEFT adapter of a folder in its places, float32.

    Plain params get LoRA nodes as the adapter's own config says. Params that hold LoRA
    nodes already keep them, dropout included, and take the adapter's values; modules,
    ranks and scales must then agree. Layers of one stack may differ in rank: the
    smaller ones are padded with zeros, which stay zero in training.

    Raises InputError where the adapter is damaged, contradicts its config, was made
    for another base, or is of a kind that is not handled.
    """
    directory = Path(directory)
    config, file = peft_config.read(directory), _open(directory)
    modules = linear_modules(cfg)
    targeted = _targeted(config, file, modules, _repeated(params, cfg, file))
    stacks: dict[str, list[str]] = {}
    for name in targeted:
        stacks.setdefault(modules[name].path, []).append(name)
    kernels = dict(tree.walk(params))
    nodes = {
        path: _node(kernels[path], names, modules, config, file)
        for path, names in stacks.items()
    }
    present = {n: k for n, k in kernels.items() if isinstance(k, LoRA)}
    if present:
        _check_agreement(directory, nodes, present, config)
        nodes = {
            path: dataclasses.replace(present[path], a=node.a, b=node.b)
            for path, node in nodes.items()
        }
    elif any(hasattr(k, "TRAINABLE") for k in kernel.nodes(params).values()):
        raise InputError(
            f"{directory}: holds a LoRA, but the params hold adapters of another kind; "
            "load it into plain params, or set adapter.method to lora"
        )
    return tree.replace(params, nodes)


def _open(directory: Path) -> SafetensorsFile:
    path = directory / peft_config.WEIGHTS
    if path.is_file():
        return SafetensorsFile(path)
    if (directory / "adapter_model.bin").exists():
        raise InputError(
            f"{directory}: holds 'adapter_model.bin' and no safetensors; files of that "
            "kind can run code and are never opened. Convert the adapter once with "
            "peft: PeftModel.from_pretrained(model, path)"
            ".save_pretrained(new_path, safe_serialization=True)"
        )
    raise InputError(f"{path}: missing; download or export the adapter again")


def _repeated(
    params: Mapping[str, Any], cfg: ModelConfig, file: SafetensorsFile
) -> set[str]:
    """The keys of base weights beside the adapter that equal the base's own.

    PEFT saves those of the head and the embedding with an adapter that touches them.
    """
    kernels = dict(tree.walk(params))
    repeated = set()
    for path, spec in tree.walk(param_specs(cfg)):
        if spec.stacked:
            continue
        for key in (spec.hf, spec.hf.replace(".weight", ".base_layer.weight")):
            tensor = file.tensors.get(PREFIX + key)
            if (
                not tensor
                or tensor.shape != spec.hf_shape()
                or tensor.dtype not in FLOATS
            ):
                continue
            base = (
                kernels[path].base if isinstance(kernels[path], LoRA) else kernels[path]
            )
            if not kernel.is_node(base):
                stored = np.empty(spec.shape, base.dtype)
                values = file.view(PREFIX + key)
                layout.copy(values, stored, transposed=spec.transposed)
                if not np.array_equal(stored, np.asarray(base)):
                    continue
            repeated.add(PREFIX + key)
    return repeated


def _targeted(
    config: AdapterConfig,
    file: SafetensorsFile,
    modules: Mapping[str, Module],
    repeated: set[str],
) -> list[str]:
    """The adapted modules; config, file and base must agree about each of them."""
    found = set(file.tensors) - repeated
    if config.target_modules is None:
        # PEFT has a table for each architecture; the keys themselves say it better.
        targeted = [name for name in modules if found & set(keys(name))]
    else:
        targeted = [name for name in modules if config.targets(name)]
    wanted = {key for name in targeted for key in keys(name)}
    problems = [_surplus(key, modules) for key in sorted(found - wanted)]
    problems += [
        f"{key!r} is missing, though the config targets its module; restore both files"
        for name in targeted
        for key in keys(name)
        if key not in found
    ]
    for name in targeted:
        if found >= set(keys(name)):
            problems += _mismatches(name, modules[name], config, file)
    if not targeted and not problems:
        problems = ["it adapts no module of this base; use the base it was made for"]
    more = len(problems) - MOST_PROBLEMS
    if problems:
        listed = [f"{file.path}: {problem}" for problem in problems[:MOST_PROBLEMS]]
        raise InputError(*listed, *([f"... and {more} more"] if more > 0 else []))
    return targeted


def _surplus(key: str, modules: Mapping[str, Module]) -> str:
    """What is wrong with a tensor that no targeted module claims."""
    name, _, kind = key.removeprefix(PREFIX).partition(".lora_")
    if kind.startswith("magnitude"):
        return f"{key!r} belongs to a DoRA, which is not handled; merge it with peft"
    if not kind and key.endswith(".weight"):
        return (
            f"{key!r} changes a weight of the base, which is not handled; merge the "
            "adapter into its model with peft"
        )
    if kind.startswith("embedding") or not kind:
        return (
            f"{key!r} is no LoRA weight of a linear module and is not handled; merge "
            "the adapter into its model with peft"
        )
    if name == HEAD and HEAD not in modules:
        return f"{key!r} adapts a head that this base shares with its embedding"
    if key in keys(name) and name in modules:
        return f"{key!r} is present, though the config does not target its module"
    return (
        f"{key!r} names no linear module of this base: the adapter was made for "
        "another one; set model.path to the base it was trained on"
    )


def _mismatches(
    name: str, module: Module, config: AdapterConfig, file: SafetensorsFile
) -> list[str]:
    problems = []
    rank = config.rank(name)
    key_a, key_b = keys(name)
    for key, expected, axis in (
        (key_a, (rank, module.d_in), 1),
        (key_b, (module.d_out, rank), 0),
    ):
        tensor = file.tensors[key]
        if tensor.dtype not in FLOATS:
            problems.append(
                f"{key!r} has dtype {tensor.dtype}; handled are {', '.join(FLOATS)}"
            )
        if tensor.shape == expected:
            continue
        problem = f"{key!r} has shape {tensor.shape}, expected {expected}: "
        if len(tensor.shape) != 2 or tensor.shape[axis] != expected[axis]:
            problem += "the adapter was made for another base; set model.path to that"
        else:
            problem += f"the config says r = {rank} for this module; restore both files"
        problems.append(problem)
    return problems


def _node(
    base: Any,
    names: list[str],
    modules: Mapping[str, Module],
    config: AdapterConfig,
    file: SafetensorsFile,
) -> LoRA:
    """The LoRA over one kernel (or stack of them) of the modules `names`."""
    base = base.base if isinstance(base, LoRA) else base
    first, layers = modules[names[0]], base.shape[:-2]
    rank = max(config.rank(name) for name in names)
    a = np.zeros((*layers, first.d_in, rank), np.float32)
    b = np.zeros((*layers, rank, first.d_out), np.float32)
    scale = np.zeros(layers, np.float32)
    for name in names:
        at = () if modules[name].layer is None else modules[name].layer
        key_a, key_b = keys(name)
        for key in (key_a, key_b):
            layout.require_finite(file.view(key), f"{file.path}: {key!r}")
        used = config.rank(name)
        a[at][:, :used] = file.view(key_a).T
        b[at][:used] = file.view(key_b).T
        scale[at] = config.scale(name)
    return LoRA(
        base=base,
        a=jnp.asarray(a),
        b=jnp.asarray(b),
        scale=jnp.asarray(scale),
        dropout=float(config.lora_dropout),
        lora_alpha=float(config.lora_alpha),
        use_rslora=config.use_rslora,
    )


def _check_agreement(
    directory: Path,
    nodes: Mapping[str, LoRA],
    present: Mapping[str, LoRA],
    config: AdapterConfig,
) -> None:
    """Raises InputError with every way in which two sets of adapters differ."""
    remedy = "make adapter.target_modules the same"
    problems = [
        f"it adapts {path}, which the configuration leaves out; {remedy}"
        for path in nodes
        if path not in present
    ]
    problems += [
        f"it leaves out {path}, which the configuration adapts; {remedy}"
        for path in present
        if path not in nodes
    ]
    for path in sorted(set(nodes) & set(present)):
        ranks = nodes[path].rank, present[path].rank
        scales = np.asarray(nodes[path].scale), np.asarray(present[path].scale)
        if ranks[0] != ranks[1]:
            problems.append(
                f"{path}: rank {ranks[0]} in the adapter, {ranks[1]} in the "
                f"configuration; set adapter.r to {ranks[0]}"
            )
        elif not np.array_equal(scales[0] != 0, scales[1] != 0):
            problems.append(
                f"{path}: it adapts other layers than the configuration; {remedy}"
            )
        elif not np.allclose(*scales, rtol=1e-6):
            problems.append(
                f"{path}: scale {scales[0].max():g} in the adapter, "
                f"{scales[1].max():g} in the configuration; set adapter.lora_alpha to "
                f"{config.lora_alpha:g} and adapter.use_rslora to "
                f"{str(config.use_rslora).lower()}"
            )
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise InputError(
            *(f"adapter.init_from: {directory}: {p}" for p in problems[:MOST_PROBLEMS]),
            *([f"... and {more} more"] if more > 0 else []),
        )
