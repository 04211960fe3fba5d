"""Adapters: nodes that stand in the params tree where a weight stood."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import console, kernel, tree
from jaxpeft.adapters import targets, vocabulary
from jaxpeft.adapters.bottleneck import Bottleneck, bottleneck
from jaxpeft.adapters.combine import combine
from jaxpeft.adapters.dora import DoRA, dora
from jaxpeft.adapters.ia3 import IA3, ia3
from jaxpeft.adapters.inject import inject
from jaxpeft.adapters.lora import LoRA, lora, lora_fa
from jaxpeft.adapters.off import off, starts
from jaxpeft.adapters.oft import OFT, oft
from jaxpeft.adapters.partly import Partly
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.several import BASE, Several, choose, of_row, several
from jaxpeft.adapters.table import COMMON, METHODS, TABLE, Method
from jaxpeft.adapters.tokens import Tokens
from jaxpeft.adapters.vera import VeRA, vera
from jaxpeft.adapters.virtual import Virtual, prefix_tuning, prompt_tuning

__all__ = [
    "BASE",
    "COMMON",
    "METHODS",
    "TABLE",
    "Bottleneck",
    "DoRA",
    "IA3",
    "OFT",
    "LoRA",
    "Method",
    "Partly",
    "Saved",
    "Several",
    "Tokens",
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
    "off",
    "oft",
    "parted",
    "prefix_tuning",
    "prompt_tuning",
    "several",
    "starts",
    "trainable_mask",
    "vera",
]


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
    stack exists. A head that shared the embedding is one of its own in the result if
    it computes with another matrix.

    Args:
        params: with adapters.
        dtype: of the matrices; None: the dtype that the base had.

    Raises:
        InputError: an adapter is no matrix.
    """
    params = parted(params)

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


def parted(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params with a head of its own if it computes with another matrix.

    That of an embedding with an adapter that its head has no part in does.

    Args:
        params: with adapters.
    """
    if not vocabulary.is_tied(params):
        return dict(params)
    table = dict(tree.walk(params))[vocabulary.EMBEDDING_LEAF]
    same = kernel.of_head(table) is table
    return dict(params) if same else vocabulary.with_head(params)


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
