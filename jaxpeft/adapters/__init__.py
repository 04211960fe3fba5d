"""Adapters: nodes that stand in the params tree where a weight stood."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import console, kernel, tree
from jaxpeft.adapters import saved, targets
from jaxpeft.adapters.bottleneck import Bottleneck, bottleneck
from jaxpeft.adapters.combine import combine
from jaxpeft.adapters.dora import DoRA, dora
from jaxpeft.adapters.ia3 import IA3, ia3
from jaxpeft.adapters.lora import LoRA, lora, lora_fa
from jaxpeft.adapters.partly import Partly
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.several import BASE, Several, choose, of_row, several
from jaxpeft.adapters.table import COMMON, METHODS, TABLE, Method, of_embedding
from jaxpeft.adapters.vera import VeRA, vera
from jaxpeft.adapters.virtual import Virtual, prefix_tuning, prompt_tuning
from jaxpeft.config import check_call
from jaxpeft.errors import InputError

__all__ = [
    "BASE",
    "COMMON",
    "METHODS",
    "TABLE",
    "Bottleneck",
    "DoRA",
    "IA3",
    "LoRA",
    "Method",
    "Partly",
    "Saved",
    "Several",
    "VeRA",
    "Virtual",
    "bottleneck",
    "choose",
    "of_row",
    "combine",
    "dora",
    "ia3",
    "inject",
    "lora",
    "lora_fa",
    "merge",
    "merged_biases",
    "prefix_tuning",
    "prompt_tuning",
    "several",
    "trainable_mask",
    "vera",
]


def inject(
    params: Mapping[str, Any],
    rules: Mapping[str, Any],
    key: Array,
    names: targets.Names | None = None,
) -> dict[str, Any]:
    """The params with an adapter in place of every targeted kernel.

    The model computes the same function until the adapters train; virtual tokens
    (`virtual`) alone change it at once. What trains is float32 whatever the base's
    dtype. Method "bitfit" trains biases alone; "full" adds nothing: then the base
    itself trains, in the dtype that it has, all of it or what `target_modules`,
    `exclude_modules`, `layers_to_transform`, `trainable_layers` and `modules_to_save`
    name (see `partly`).

    Args:
        params: of a base, plain or quantized.
        rules: `method` (default "lora"), `target_modules` (default "all-linear", or
            what the method is made for, see `Method.targets`), `exclude_modules` and
            `layers_to_transform` (see `targets.select`), `modules_to_save` and `bias`,
            which say what of the base trains besides (see `saved`), and the method's
            own keyword arguments.
        key: of what is drawn at random.
        names: `models.module_names(cfg)`, needed for families whose modules Hugging
            Face calls otherwise than the params do.

    Raises:
        InputError: a method or key is unknown, a pattern matches nothing, or a rank
            does not fit.
    """
    settings = dict(rules)
    name = settings.pop("method", "lora")
    known, names = names, targets.names_of(params, names)
    usual = TABLE[name].targets if name in TABLE.rows else targets.ALL_LINEAR
    pattern = settings.pop("target_modules", targets.present(usual, names))
    within = {
        setting: settings.pop(setting, None)
        for setting in ("exclude_modules", "layers_to_transform")
    }
    to_save = settings.pop("modules_to_save", None) or ()
    bias = settings.pop("bias", "none")
    problems = check_call("adapter", name, TABLE, settings, selector="method")
    if problems:
        raise InputError(*problems)
    if not TABLE[name].wraps:
        wanted = rules.get("target_modules") or targets.ALL_LINEAR
        chosen = {"known": known, "target_modules": wanted, "modules_to_save": to_save}
        takes = "chosen" in TABLE.parameters(name)
        given = {"chosen": {**chosen, **within}} if takes else {}
        return TABLE[name].make(params, key, **settings, **given)
    whole = saved.saved_names(params, to_save, names)
    chosen = targets.select(names, pattern, **within)
    chosen = {path: layers for path, layers in chosen.items() if path not in whole}
    changes = _nodes(params, name, settings, chosen, key, names)
    trained = [leaf for leaves in whole.values() for leaf in leaves]
    trained += saved.biases(params, bias, chosen)
    leaves = dict(tree.walk(params))
    changes.update({leaf: saved.save(leaves[leaf]) for leaf in trained})
    return tree.replace(params, changes)


def _nodes(
    params: Mapping[str, Any],
    method: str,
    settings: Mapping[str, Any],
    chosen: Mapping[str, Sequence[bool]],
    key: Array,
    names: targets.Names,
) -> dict[str, Any]:
    """The adapters of the modules `chosen`: {dotted name of a weight: its node}."""
    leaves, parameters = dict(tree.walk(params)), TABLE.parameters(method)
    everything = [name for path in chosen for name in names[path]]
    for section in ("rank_pattern", "alpha_pattern"):
        targets.require_hits(section, settings.get(section) or {}, everything)
    linear = targets.linear_modules(params)
    shapes = [
        leaves[f"{path}.{targets.KERNEL}"].shape[-2:]
        for path in chosen
        if path in linear
    ]
    widest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    changes = {}
    for index, (path, layers) in enumerate(sorted(chosen.items())):
        node_key = jax.random.fold_in(key, index)
        adapted = [name for name, hit in zip(names[path], layers) if hit]
        given = {"adapted": adapted, "names": names[path], "widest": widest}
        given = {name: value for name, value in given.items() if name in parameters}
        if path in linear:
            leaf, make = f"{path}.{targets.KERNEL}", METHODS[method]
        else:
            leaf, make = f"{path}.{targets.EMBEDDING}", of_embedding(method, path)
        node: Any = make(leaves[leaf], node_key, **settings, **given)
        if not all(layers):
            kept = jnp.asarray(layers, jnp.float32)
            within = (1,) * (node.scale.ndim - 1)  # an axis of experts, perhaps
            node = node.replace(scale=node.scale * kept.reshape(-1, *within))
        changes[leaf] = node
    return changes


def trainable_mask(params: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """A tree of booleans like `params`: true where a leaf trains.

    What trains are the adapters' own weights, and what `also` names. Params without
    any adapter train as a whole, unless `also` names something. Use it with
    `tree.partition`.

    Args:
        params: with or without adapters.
        also: leaves that train besides, by the ends of their dotted names
            ("norm.scale").
    """
    if not also and not kernel.nodes(params):
        return jax.tree.map(lambda _: True, params)

    def ends(name: str) -> bool:
        return any(name == e or name.endswith("." + e) for e in also)

    def mask(name: str, value: Any) -> Any:
        if not kernel.is_node(value):
            return ends(name)
        own = kernel.trainable(value)
        return tree.map_named(
            lambda field, _: field.split(".")[0] in own or ends(f"{name}.{field}"),
            value,
        )

    masks = {name: mask(name, value) for name, value in tree.walk(params)}
    return tree.replace(params, masks)


def merge(params: Mapping[str, Any], dtype: Any = None) -> dict[str, Any]:
    """The params with every adapter folded into a plain matrix.

    The sum is formed in float32, layer by layer, so that no second float32 copy of a
    stack exists.

    Args:
        params: with adapters.
        dtype: of the matrices; None: the dtype that the base had.

    Raises:
        InputError: an adapter is no matrix, or it adapts an embedding that the head
            shares.
    """
    leaves = dict(tree.walk(params))
    for path in targets.embeddings(params):
        table = leaves[f"{path}.{targets.EMBEDDING}"]
        if kernel.base_of(table) is not table and "lm_head.kernel" not in leaves:
            raise InputError(
                f"{path}: carries a LoRA, and the head shares this table without it; "
                "merged they could not be one: keep the adapter beside its base"
            )

    def fold(node: Any) -> Array:
        target = dtype or kernel.dtype_of(node)
        if len(node.shape) <= 2:
            return node.dense().astype(target)
        slices = (kernel.layer(node, i) for i in range(node.shape[0]))
        return jnp.asarray(
            np.stack([np.asarray(kernel.dense(s).astype(target)) for s in slices])
        )

    nodes, changes = kernel.nodes(params), {}
    with console.Work("merging the adapter, in stacks of modules", len(nodes)) as work:
        for name, node in nodes.items():
            changes[name] = fold(node)
            work.advance()
    return tree.replace(params, {**changes, **merged_biases(params, dtype)})


def merged_biases(params: Mapping[str, Any], dtype: Any = None) -> dict[str, Array]:
    """The biases that an adapter of their module changes, with that change folded in.

    Args:
        params: with adapters.
        dtype: of the biases; None: the base's own.

    Returns:
        {dotted name of a bias: the bias}.
    """
    leaves, changed = dict(tree.walk(params)), {}
    for name, node in kernel.nodes(params).items():
        bias = name.removesuffix(targets.KERNEL) + "bias"
        if bias not in leaves:
            continue
        whole = kernel.dense_bias(node, kernel.dense(leaves[bias]))
        if whole is not None:
            changed[bias] = whole.astype(dtype or leaves[bias].dtype)
    return changed
