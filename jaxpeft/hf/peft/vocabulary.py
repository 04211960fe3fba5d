"""Embedding and head in an adapter's folder: trained, by tokens, or brought along.

PEFT saves the two beside an adapter where they have other rows than the base's
(`save_embedding_layers`), under the name of whatever it wrapped them in. Loaded, they
take the base's place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.tokens import Tokens
from jaxpeft.adapters.vocabulary import EMBEDDING_LEAF, HEAD, HEAD_LEAF
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft.adapter_config import AdapterConfig
from jaxpeft.hf.peft.modules import PREFIX
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig, ParamSpec
from jaxpeft.models.weights import specs_with_head

ENDS = (EMBEDDING_LEAF, HEAD_LEAF)
DELTA = "token_adapter.trainable_tokens_delta"
# What PEFT calls the base's own weight, by what it has put around its module.
SAVED, LORA, TOKENS = "original_module.", "base_layer.", "token_adapter.base_layer."
COPY = "modules_to_save."  # of what stands under the module's own name as well
REMEDY = (
    "The adapter was trained over a base with another number of rows, as for tokens "
    "that were added to the tokenizer: resize the base likewise, and set model.path to "
    "it (docs/methods.md, Adding tokens)"
)


class Ends(NamedTuple):
    """What an adapter's file says of embedding and head.

    Attributes:
        params: the base's, with the tables that the file brings along in their places.
        nodes: {dotted name of a weight: the node that trains there}.
        used: the keys of the file that were read, or that repeat what was.
    """

    params: Mapping[str, Any]
    nodes: dict[str, Saved | Tokens]
    used: set[str]


def names_of(cfg: ModelConfig) -> dict[str, str]:
    """Hugging Face's names of embedding and head, by the dotted names of the weights.

    A model that gives sequences scores has no head of tokens.

    Args:
        cfg: The model's configuration.
    """
    specs = dict(tree.walk(specs_with_head(cfg)))
    return {
        leaf: specs[leaf].hf.removesuffix(".weight") for leaf in ENDS if leaf in specs
    }


def read(
    params: Mapping[str, Any],
    file: SafetensorsFile,
    config: AdapterConfig,
    cfg: ModelConfig,
) -> Ends:
    """What a file holds of embedding and head, but for their LoRAs.

    Args:
        params: The params mapping of the base, with or without adapters.
        file: The adapter's safetensors file.
        config: What its config says.
        cfg: The model's configuration.

    Raises:
        InputError: Where a tensor is missing, is not finite or does not fit the base.
    """
    specs, names = dict(tree.walk(specs_with_head(cfg))), names_of(cfg)
    tied, leaves = cfg.tie_word_embeddings, dict(tree.walk(params))
    saves: dict[str, bool] = {leaf: config.saves(names[leaf]) for leaf in names}
    one = tied and config.ensure_weight_tying and any(saves.values())
    if one:
        saves[EMBEDDING_LEAF] = saves[HEAD_LEAF] = True
    used = {key for leaf in names for key in _present(names[leaf], file)}
    _check_shapes(used, names, specs, file)
    bare = {leaf: _bare(leaves[leaf]) for leaf in ENDS if leaf in leaves}
    brought = _brought(bare, names, saves, specs, file, tied)
    bare |= brought
    nodes: dict[str, Saved | Tokens] = {}
    for leaf in names:
        key = f"{PREFIX}{names[leaf]}.weight"
        if saves[leaf] and not (one and leaf == HEAD_LEAF and key not in used):
            nodes[leaf] = _saved(key, specs[leaf], file, _dtype(bare, leaf))
    if one:
        _require_same(nodes, names, file)
        nodes.pop(HEAD_LEAF, None)
    deltas, read_keys = _tokens(bare, names, file, config, tied)
    nodes |= deltas
    touched = {EMBEDDING_LEAF} if tied and nodes else set()
    touched |= {leaf for leaf in nodes if leaf in leaves}
    changes = {leaf: bare[leaf] for leaf in touched} | brought
    return Ends(tree.replace(params, changes), nodes, used | read_keys)


def _present(name: str, file: SafetensorsFile) -> list[str]:
    """The keys of whole weights of a module that a file has."""
    kinds = ("", COPY, SAVED, LORA, TOKENS)
    keys = (f"{PREFIX}{name}.{kind}weight" for kind in kinds)
    return [key for key in keys if key in file.tensors]


def _bare(node: Any) -> Any:
    """The weight beneath whatever stands around it."""
    while (base := kernel.base_of(node)) is not node:
        node = base
    if isinstance(node, Saved) and node.trains:
        return node.weight.astype(node.dtype)
    return node


def _dtype(bare: Mapping[str, Any], leaf: str) -> str:
    node = bare.get(leaf, bare[EMBEDDING_LEAF])
    return str(jnp.dtype(kernel.dtype_of(node) if kernel.is_node(node) else node.dtype))


def _check_shapes(
    keys: set[str],
    names: Mapping[str, str],
    specs: Mapping[str, ParamSpec],
    file: SafetensorsFile,
) -> None:
    wanted = specs[EMBEDDING_LEAF].hf_shape()
    problems = []
    for key in sorted(keys):
        entry = file.tensors[key]
        if entry.dtype not in FLOATS:
            problems.append(
                f"{file.path}: {key!r} has dtype {entry.dtype}; handled are "
                + ", ".join(FLOATS)
            )
        elif entry.shape != wanted:
            problems.append(f"{file.path}: {mismatch(key, entry.shape, wanted)}")
    if problems:
        raise InputError(*problems)


def mismatch(key: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do about a table of tokens that is not of the base's shape.

    Args:
        key: The tensor's name.
        shape: Its shape, (tokens, width).
        wanted: That of the base.
    """
    if len(shape) != 2 or shape[1] != wanted[1]:
        return (
            f"{key!r} has shape {shape}, the base's is {wanted}: the adapter was made "
            "for another base; set model.path to that"
        )
    return (
        f"{key!r} is of {shape[0]} tokens, and the base's embedding has {wanted[0]} "
        f"rows (config.json: vocab_size). {REMEDY}"
    )


def _brought(
    bare: Mapping[str, Any],
    names: Mapping[str, str],
    saves: Mapping[str, bool],
    specs: Mapping[str, ParamSpec],
    file: SafetensorsFile,
    tied: bool,
) -> dict[str, Saved]:
    """The base's weights that a file holds and that differ from the base's own."""
    found: dict[str, Saved] = {}
    for leaf in names:
        kinds = (SAVED, LORA, TOKENS) if saves[leaf] else (SAVED, LORA, TOKENS, "")
        keys = [f"{PREFIX}{names[leaf]}.{kind}weight" for kind in kinds]
        present = [key for key in keys if key in file.tensors]
        if not present:
            continue
        dtype, spec = _dtype(bare, leaf), specs[leaf]
        weight = np.empty(spec.shape, jnp.dtype(dtype))
        values = file.view(present[0])
        layout.require_finite(values, f"{file.path}: {present[0]!r}")
        layout.copy(values, weight, transposed=spec.transposed)
        place = leaf if leaf in bare else EMBEDDING_LEAF
        weight = weight if place == leaf else weight.T
        own = bare[place].weight if isinstance(bare[place], Saved) else bare[place]
        if np.array_equal(weight, np.asarray(own)):
            continue
        node = Saved(jnp.asarray(weight), dtype, trains=False)
        if place in found and not np.array_equal(found[place].weight, weight):
            raise InputError(
                f"{file.path}: {present[0]!r} differs from the embedding in the same "
                "file, which this base shares with its head (tie_word_embeddings); "
                "set model.path to the base that the adapter was trained on"
            )
        found[place] = node
    return found


def _saved(key: str, spec: ParamSpec, file: SafetensorsFile, dtype: str) -> Saved:
    if key not in file.tensors:
        raise InputError(
            f"{file.path}: {key!r} is missing, though the config says that the adapter "
            "holds it (modules_to_save); restore both files"
        )
    values = file.view(key)
    layout.require_finite(values, f"{file.path}: {key!r}")
    weight = np.empty(spec.shape, np.float32)
    layout.copy(values, weight, transposed=spec.transposed)
    return Saved(jnp.asarray(weight), dtype)


def _require_same(
    nodes: Mapping[str, Any], names: Mapping[str, str], file: SafetensorsFile
) -> None:
    """Raises InputError where the two ends of a table that stayed one differ."""
    if HEAD_LEAF not in nodes:
        return
    table, head = nodes[EMBEDDING_LEAF].weight, nodes[HEAD_LEAF].weight
    if not np.array_equal(np.asarray(table), np.asarray(head).T):
        raise InputError(
            f"{file.path}: {names[HEAD_LEAF]!r} and {names[EMBEDDING_LEAF]!r} differ, "
            "though the config says ensure_weight_tying; restore both files"
        )


def _tokens(
    bare: Mapping[str, Any],
    names: Mapping[str, str],
    file: SafetensorsFile,
    config: AdapterConfig,
    tied: bool,
) -> tuple[dict[str, Tokens], set[str]]:
    """(the tokens that train, by place; the keys that were read)."""
    chosen = config.tokens(names)
    if tied and chosen.get(HEAD_LEAF) == chosen.get(EMBEDDING_LEAF):
        chosen.pop(HEAD_LEAF, None)
    shared = tied and HEAD_LEAF not in chosen and EMBEDDING_LEAF in chosen
    nodes, keys = {}, set()
    for leaf, indices in chosen.items():
        key, is_head = f"{PREFIX}{names[leaf]}.{DELTA}", leaf == HEAD_LEAF
        table = bare[EMBEDDING_LEAF]
        _check_tokens(key, indices, tuple(table.shape), file)
        keys.add(key)
        values = file.view(key)
        layout.require_finite(values, f"{file.path}: {key!r}")
        order = np.argsort(indices)
        nodes[leaf] = Tokens(
            bare.get(leaf, table.T if is_head else table),
            jnp.asarray(np.asarray(values, np.float32)[order]),
            jnp.asarray(np.asarray(indices, np.int32)[order]),
            is_head,
            shared,
        )
    if shared:  # which PEFT repeats for the head where it saves the embedding along
        again = f"{PREFIX}{names[HEAD_LEAF]}.{DELTA}"
        keys |= {again} & set(file.tensors)
    return nodes, keys


def _check_tokens(
    key: str, indices: list[int], table: tuple[int, ...], file: SafetensorsFile
) -> None:
    name, entry = "trainable_token_indices", file.tensors.get(key)
    problem = None
    if entry is None:
        problem = f"{key!r} is missing, though the config names its tokens ({name})"
    elif len(set(indices)) < len(indices):
        problem = f"{name}: a token is named twice, so that it has two vectors"
    elif max(indices, default=0) >= table[0]:
        problem = (
            f"{name}: found {max(indices)}, and the base's embedding has {table[0]} "
            f"rows (config.json: vocab_size). {REMEDY}"
        )
    elif entry.shape != (len(indices), table[1]) or entry.dtype not in FLOATS:
        problem = (
            f"{key!r} has shape {entry.shape} and dtype {entry.dtype}; {len(indices)} "
            f"tokens of this base have ({len(indices)}, {table[1]})"
        )
    if problem:
        raise InputError(f"{file.path}: {problem}")


def is_shared(params: Mapping[str, Any], cfg: ModelConfig) -> bool:
    """Whether the embedding trains as a whole and the head goes on sharing it.

    Args:
        params: The params mapping.
        cfg: The model's configuration.
    """
    node = dict(tree.walk(params))[EMBEDDING_LEAF]
    trains = isinstance(node, Saved) and node.trains and node.base is None
    return cfg.tie_word_embeddings and trains and HEAD not in params


def tensors(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """What a folder holds of embedding and head besides their LoRAs and saved weights.

    Args:
        params: The params mapping.
        cfg: The model's configuration.

    Returns:
        {key in PEFT's file: values}.
    """
    leaves, names = dict(tree.walk(params)), names_of(cfg)
    by_key = {}
    for leaf, name in names.items():
        node = leaves.get(leaf)
        if isinstance(node, Tokens):
            by_key[f"{PREFIX}{name}.{DELTA}"] = np.asarray(node.rows, np.float32)
        base = kernel.base_of(node)
        if isinstance(base, Saved) and not base.trains:
            around = {Saved: SAVED, Tokens: TOKENS}.get(type(node), LORA)
            around = "" if base is node else around
            values = np.asarray(base.weight)
            values = values.T if leaf == HEAD_LEAF else values
            by_key[f"{PREFIX}{name}.{around}weight"] = np.ascontiguousarray(values)
    if is_shared(params, cfg):
        whole = np.asarray(leaves[EMBEDDING_LEAF].weight)
        by_key[f"{PREFIX}{names[HEAD_LEAF]}.weight"] = whole
    return by_key


def settings(params: Mapping[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """What a LoRA's config says of them: the tokens that train, and the tying.

    Args:
        params: The params mapping.
        cfg: The model's configuration.
    """
    leaves, names = dict(tree.walk(params)), names_of(cfg)
    chosen = {
        name: np.asarray(leaves[leaf].indices).tolist()
        for leaf, name in names.items()
        if isinstance(leaves.get(leaf), Tokens)
    }
    said: dict[str, Any] = {}
    if chosen:
        alone = list(chosen) == [names[EMBEDDING_LEAF]]
        said["trainable_token_indices"] = [*chosen.values()][0] if alone else chosen
    if is_shared(params, cfg):
        said["ensure_weight_tying"] = True
    return said


def same(params: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    """Checks that the tokens read back are those that were to be kept.

    Args:
        params: The params mapping that was written.
        other: What was read back.
        folder: Where it was written, for the message.

    Raises:
        RuntimeError: Where one differs.
    """
    read = kernel.nodes(other)
    for name, node in kernel.nodes(params).items():
        if isinstance(node, Tokens):
            alike = np.array_equal(node.indices, read[name].indices)
            if not alike or not np.array_equal(node.rows, read[name].rows):
                raise RuntimeError(f"{folder}: {name} was not written as it should be")
