"""Putting adapters into the params of a base, as a configuration's section says."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import tree
from jaxpeft.adapters import saved, targets, vocabulary
from jaxpeft.adapters.table import COMMON, METHODS, TABLE, of_embedding
from jaxpeft.config import check_call
from jaxpeft.errors import InputError


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
            which say what of the base trains besides (see `saved`),
            `trainable_token_indices` and `ensure_weight_tying` (see `vocabulary`), and
            the method's own keyword arguments.
        key: of what is drawn at random.
        names: `models.module_names(cfg)`, needed for families whose modules Hugging
            Face calls otherwise than the params do.

    Raises:
        InputError: a method or key is unknown, a pattern matches nothing, or a rank
            does not fit.
    """
    settings = dict(rules)
    name = settings.pop("method", "lora")
    common = {key: settings.pop(key) for key in COMMON if key in settings}
    problems = check_call("adapter", name, TABLE, settings, selector="method")
    if problems:
        raise InputError(*problems)
    if not TABLE[name].wraps:
        takes = "chosen" in TABLE.parameters(name)
        given = {"chosen": _chosen(common, names)} if takes else {}
        return TABLE[name].make(params, key, **settings, **given)
    return _wrapped(params, name, settings, common, key, names)


def _chosen(common: Mapping[str, Any], known: targets.Names | None) -> dict[str, Any]:
    """The keywords of a method that puts adapters around no kernels."""
    return {
        "known": known,
        "target_modules": common.get("target_modules") or targets.ALL_LINEAR,
        "modules_to_save": common.get("modules_to_save") or (),
        "exclude_modules": common.get("exclude_modules"),
        "layers_to_transform": common.get("layers_to_transform"),
    }


def _wrapped(
    params: Mapping[str, Any],
    method: str,
    settings: Mapping[str, Any],
    common: Mapping[str, Any],
    key: Array,
    known: targets.Names | None,
) -> dict[str, Any]:
    """The params with nodes of a method, and what of the base trains beside them."""
    tied, to_save = vocabulary.is_tied(params), common.get("modules_to_save") or ()
    tokens = common.get("trainable_token_indices")
    entries = list(tokens) if isinstance(tokens, Mapping) else []
    wanted = (common.get("target_modules"), to_save, entries)
    params = vocabulary.opened(params, wanted)
    names = targets.names_of(params, known)
    usual = targets.present(TABLE[method].targets, names)
    whole = saved.saved_names(params, to_save, {**(known or {}), **names})
    whole = vocabulary.as_one(whole, common, tied=tied)
    chosen = targets.select(
        names,
        common.get("target_modules", usual),
        exclude_modules=common.get("exclude_modules"),
        layers_to_transform=common.get("layers_to_transform"),
    )
    chosen = {path: layers for path, layers in chosen.items() if path not in whole}
    vocabulary.refuse_tied_loras(chosen, common)
    changes = _nodes(params, method, settings, chosen, key, names)
    trained = [leaf for leaves in whole.values() for leaf in leaves]
    trained += saved.biases(params, common.get("bias", "none"), chosen)
    leaves = dict(tree.walk(params))
    changes.update({leaf: saved.save(leaves[leaf]) for leaf in trained})
    taken = {*whole, *chosen}
    changes |= vocabulary.token_nodes(params, common, names, taken, tied=tied)
    one = bool(common.get("ensure_weight_tying"))
    return vocabulary.closed(params, changes, tied=tied, one=one)


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
