"""A PEFT adapter's folder as LoRA nodes in a params mapping."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.dora import DoRA, of_lora
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.targets import is_hit
from jaxpeft.adapters.tokens import Tokens
from jaxpeft.adapters.vocabulary import (
    EMBEDDING_LEAF,
    HEAD,
    HEAD_LEAF,
    closed,
    with_head,
)
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft import (
    adapter_config,
    other_adapters,
    saved_weights,
    score_head,
    virtual_tokens,
    vocabulary,
)
from jaxpeft.hf.peft.adapter_config import AdapterConfig
from jaxpeft.hf.peft.folder import opened
from jaxpeft.hf.peft.modules import PREFIX, Module, beside, lora_modules, places
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig

MOST_PROBLEMS = 10


def keys(place: str, dora: bool = False, embedding: bool = False) -> tuple[str, ...]:
    """The names of a module's tensors in the safetensors file.

    They are A (r, in), B (out, r) and, of a DoRA, the magnitudes (out,). Of n experts
    together A is (n * r, in), expert by expert, and B (out, r * n), the expert counting
    fastest.

    Args:
        place: The name before the tensors, of `places`.
        dora: Whether the adapter is a DoRA.
        embedding: Whether the module is an embedding.
    """
    names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    if embedding:
        names = ("lora_embedding_A", "lora_embedding_B", names[2])
    return tuple(f"{PREFIX}{place}.{name}" for name in names[: 3 if dora else 2])


def load_adapter(
    params: Mapping[str, Any], directory: str | Path, cfg: ModelConfig
) -> dict[str, Any]:
    """The params with the PEFT adapter of a folder in its places, float32.

    The adapter is a LoRA, DoRA, IA3, VeRA or OFT of PEFT's, a prompt or prefix, or a
    bottleneck adapter (`other_adapters`) or BitFit (`saved_weights`) of ours. Plain
    params get LoRA or DoRA nodes as the adapter's own config says. Params that hold
    such nodes already keep them, dropout included, and take the adapter's values;
    modules, ranks and scales must then agree. Layers of one stack may differ in rank:
    the smaller ones are padded with zeros, which stay zero in training.

    Args:
        params: The params mapping of the base, with or without adapters.
        directory: The adapter's folder.
        cfg: The model's configuration.

    Raises:
        InputError: Where the adapter is damaged, contradicts its config, was made for
            another base, or is of a kind that is not handled.
    """
    directory = Path(directory)
    content = adapter_config.content(directory)
    params = score_head.with_score(params, directory, cfg)
    if content.get("peft_type") in other_adapters.TYPES:
        return other_adapters.load(params, directory, cfg, content)
    if content.get("peft_type") in virtual_tokens.TYPES:
        return virtual_tokens.load(params, directory, cfg, content)
    if content.get("peft_type") == saved_weights.BITFIT:
        return saved_weights.load_biases(params, directory, cfg)
    config, file = adapter_config.read(directory), opened(directory)
    modules = lora_modules(cfg)
    _check_parameters(config, modules, directory / adapter_config.CONFIG)
    own = dict(tree.walk(params))
    params, whole, used = saved_weights.read(params, file, config, cfg)
    apart = used | beside(file.tensors, cfg)
    targeted = _targeted(config, file, modules, apart, cfg)
    at_places = places(targeted, modules)
    stacks: dict[str, list[str]] = {}
    for name in targeted:
        stacks.setdefault(modules[name].path, []).append(name)
    if HEAD_LEAF in stacks:
        params = with_head(params)
    kernels = dict(tree.walk(params))
    nodes = {
        path: _node(kernels[path], names, modules, at_places, config, file)
        for path, names in stacks.items()
    }
    kind = DoRA if config.use_dora else LoRA
    present = {n: k for n, k in own.items() if isinstance(k, kind)}
    if present:
        _check_agreement(directory, nodes, present, config)
        nodes = {
            path: dataclasses.replace(
                present[path], base=node.base, **kernel.trainable(node)
            )
            for path, node in nodes.items()
        }
    elif any(
        kernel.is_adapter(node) and not isinstance(node, Saved | Tokens)
        for node in own.values()
    ):
        raise InputError(
            f"{directory}: holds a {kind.__name__}, but the params hold adapters of "
            "another kind; load it into plain params, or set adapter.method to "
            f"{kind.__name__.lower()}"
        )
    return closed(
        params,
        {**whole, **nodes},
        tied=cfg.tie_word_embeddings,
        one=config.ensure_weight_tying,
    )


def _check_parameters(
    config: AdapterConfig, modules: Mapping[str, Module], path: Path
) -> None:
    """Raises InputError for target parameters that the base has not."""
    parameters = {m.parameter for m in modules.values() if m.parameter is not None}
    problems = [
        f"{path}: target_parameters: found {entry!r}, no parameter of this base that "
        "can carry an adapter; merge the adapter into its model with peft"
        for entry in config.target_parameters or ()
        if not any(is_hit(name, entry) for name in parameters)
    ]
    if problems:
        raise InputError(*problems[:MOST_PROBLEMS])


def _targeted(
    config: AdapterConfig,
    file: SafetensorsFile,
    modules: Mapping[str, Module],
    used: set[str],
    cfg: ModelConfig,
) -> list[str]:
    """The adapted modules; config, file and base must agree about each of them."""
    stored, dora = set(file.tensors) - used, config.use_dora
    tied = cfg.tie_word_embeddings and config.ensure_weight_tying
    embedding = vocabulary.names_of(cfg)[EMBEDDING_LEAF]

    def own(name: str, place: str) -> tuple[str, ...]:
        return keys(place, dora, modules[name].embedding)

    def is_targeted(name: str, module: Module) -> bool:
        if module.parameter is not None:
            return config.targets_parameter(module.parameter)
        if config.target_modules is None and not config.target_parameters:
            # PEFT has a table for each architecture; the keys themselves say it better.
            return bool(stored & set(own(name, name)))
        if module.embedding and config.is_all_linear:
            return False
        if tied and name == HEAD:  # its LoRA is the embedding's, saved for both
            return config.targets(embedding)
        return config.targets(name)

    targeted = [name for name, module in modules.items() if is_targeted(name, module)]
    at_places = places(targeted, modules)
    wanted = {key for name in targeted for key in own(name, at_places[name])}
    problems = [_surplus(key, modules) for key in sorted(stored - wanted)]
    problems += [
        f"{key!r} is missing, though the config targets its module; restore both files"
        for name in targeted
        for key in own(name, at_places[name])
        if key not in stored
    ]
    if config.use_dora:
        problems += [
            f"it is a DoRA of the embedding {name!r}, which is not handled; merge the "
            "adapter into its model with peft"
            for name in targeted
            if modules[name].embedding
        ]
    for name in targeted:
        if stored >= set(own(name, at_places[name])):
            problems += _mismatches(at_places[name], name, modules[name], config, file)
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
        return f"{key!r} belongs to a DoRA, but the config has use_dora false"
    if not kind and key.endswith((".weight", ".bias")):
        return (
            f"{key!r} is a weight of the base that neither modules_to_save nor bias "
            "of the config speaks of; restore both files"
        )
    if (kind.startswith("embedding") and name not in modules) or not kind:
        return (
            f"{key!r} is no LoRA weight of a linear module and is not handled; merge "
            "the adapter into its model with peft"
        )
    if re.search(r"\.experts\.\d+\.", name):
        return (
            f"{key!r} adapts one expert alone, as with transformers 4; load it with "
            "peft and transformers 5 and save it again, which joins the experts"
        )
    if name in modules and key in keys(name, embedding=modules[name].embedding):
        return f"{key!r} is present, though the config does not target its module"
    return (
        f"{key!r} names no linear module of this base: the adapter was made for "
        "another one; set model.path to the base it was trained on"
    )


def _mismatches(
    place: str,
    name: str,
    module: Module,
    config: AdapterConfig,
    file: SafetensorsFile,
) -> list[str]:
    problems = []
    if module.parameter is not None and config.use_dora:
        problems.append(f"use_dora: PEFT itself gives {module.parameter!r} no DoRA")
    rank = config.rank(module.parameter or name)
    low, d_in, d_out = rank * (module.experts or 1), module.d_in, module.d_out
    shapes = ((low, d_in), 1), ((d_out, low), 0), ((d_out,), 0)
    names = keys(place, config.use_dora, module.embedding)
    for key, (expected, axis) in zip(names, shapes):
        tensor = file.tensors[key]
        if tensor.dtype not in FLOATS:
            problems.append(
                f"{key!r} has dtype {tensor.dtype}; handled are {', '.join(FLOATS)}"
            )
        if tensor.shape == expected:
            continue
        problem = f"{key!r} has shape {tensor.shape}, expected {expected}: "
        if len(tensor.shape) != len(expected) or tensor.shape[axis] != expected[axis]:
            problem += "the adapter was made for another base; set model.path to that"
        else:
            problem += f"the config says r = {rank} for this module; restore both files"
        problems.append(problem)
    return problems


def matrix_a(stored: np.ndarray, module: Module) -> np.ndarray:
    """A as nodes have it, (*experts, in, r), of the stored (experts * r, in)."""
    return np.swapaxes(stored.reshape(*module.lead, -1, module.d_in), -1, -2)


def matrix_b(stored: np.ndarray, module: Module) -> np.ndarray:
    """B as nodes have it, (*experts, r, out), of the stored (out, r * experts)."""
    return stored.reshape(module.d_out, -1, *module.lead).T


def _node(
    base: Any,
    names: list[str],
    modules: Mapping[str, Module],
    at_places: Mapping[str, str],
    config: AdapterConfig,
    file: SafetensorsFile,
) -> LoRA | DoRA:
    """The adapter over one kernel (or stack of them) of the modules `names`."""
    base = base.base if isinstance(base, LoRA | DoRA) else base
    first, layers = modules[names[0]], base.shape[:-2]
    called = {name: modules[name].parameter or name for name in names}
    rank = max(config.rank(name) for name in called.values())
    ranks = np.full(layers, rank)
    a = np.zeros((*layers, first.d_in, rank), np.float32)
    b = np.zeros((*layers, rank, first.d_out), np.float32)
    scale = np.zeros(layers, np.float32)
    magnitude = np.ones((*layers, first.d_out), np.float32)
    for name in names:
        at = () if modules[name].layer is None else modules[name].layer
        place = at_places[name]
        key_a, key_b, *others = keys(place, config.use_dora, first.embedding)
        for key in (key_a, key_b, *others):
            layout.require_finite(file.view(key), f"{file.path}: {key!r}")
        used = config.rank(called[name])
        ranks[at] = used
        a[at][..., :used] = matrix_a(file.view(key_a), modules[name])
        b[at][..., :used, :] = matrix_b(file.view(key_b), modules[name])
        scale[at] = config.scale(called[name])
        for key in others:
            magnitude[at] = file.view(key)
    node = LoRA(
        base=base,
        a=jnp.asarray(a),
        b=jnp.asarray(b),
        scale=jnp.asarray(scale),
        ranks=None if (ranks == rank).all() else tuple(ranks.ravel().tolist()),
        dropout=0.0 if first.embedding else float(config.lora_dropout),
        lora_alpha=float(config.lora_alpha),
        use_rslora=config.use_rslora,
    )
    if not config.use_dora:
        return node
    return dataclasses.replace(of_lora(node), magnitude=jnp.asarray(magnitude))


def _check_agreement(
    directory: Path,
    nodes: Mapping[str, Any],
    present: Mapping[str, Any],
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
        elif _own_ranks(nodes[path]) != _own_ranks(present[path]):
            problems.append(
                f"{path}: other ranks in some layers than in the configuration; set "
                f"adapter.rank_pattern to {dict(config.rank_pattern)}"
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


def _own_ranks(node: Any) -> list[int]:
    """The rank in each layer that is adapted."""
    scale = np.asarray(node.scale).ravel()
    ranks = node.ranks or (node.rank,) * scale.size
    return [rank for rank, used in zip(ranks, scale != 0, strict=True) if used]
