"""Adapters: nodes that stand in the params tree where a weight stood."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import kernel, tree
from jaxpeft.adapters import targets
from jaxpeft.adapters.bottleneck import Bottleneck, bottleneck
from jaxpeft.adapters.combine import combine
from jaxpeft.adapters.dora import DoRA, dora
from jaxpeft.adapters.ia3 import IA3, ia3
from jaxpeft.adapters.lora import LoRA, lora, lora_fa
from jaxpeft.config import Table, check_call
from jaxpeft.errors import InputError

# Each entry wraps one kernel: `method(base, key, **settings)`. Its keyword arguments
# are its keys in the configuration, beside those of `inject`.
METHODS: dict[str, Callable[..., Any]] = {
    "bottleneck": bottleneck,
    "dora": dora,
    "ia3": ia3,
    "lora": lora,
    "lora_fa": lora_fa,
}
# Where `target_modules` says nothing; the others adapt all linear modules.
DEFAULT_TARGETS: dict[str, list[str]] = {
    "bottleneck": ["o_proj", "down_proj"],
    "ia3": ["k_proj", "v_proj", "down_proj"],
}


def full() -> None:
    """No adapter: every weight of the base trains, and the result is a whole model."""


TABLE = Table({**METHODS, "full": full}, given={"base", "key", "module"})

__all__ = [
    "METHODS",
    "TABLE",
    "Bottleneck",
    "DoRA",
    "IA3",
    "LoRA",
    "bottleneck",
    "combine",
    "dora",
    "ia3",
    "inject",
    "lora",
    "lora_fa",
    "merge",
    "trainable_mask",
]


def inject(
    params: Mapping[str, Any], rules: Mapping[str, Any], key: Array
) -> dict[str, Any]:
    """The params with an adapter in place of every targeted kernel.

    rules: `method` (default "lora"), `target_modules` (default "all-linear", or what
    the method is made for, see `DEFAULT_TARGETS`) and the method's own keyword
    arguments. The model computes the same function until the adapters train. Adapter
    weights are float32 whatever the base's dtype. Method "full" adds none: then the
    base itself trains, in the dtype that it has.
    Raises InputError for an unknown method or key, a pattern that matches nothing, a
    rank that does not fit.
    """
    settings = dict(rules)
    name = settings.pop("method", "lora")
    usual = DEFAULT_TARGETS.get(name, targets.ALL_LINEAR)
    pattern = settings.pop("target_modules", usual)
    problems = check_call("adapter", name, TABLE, settings, selector="method")
    if problems:
        raise InputError(*problems)
    if name == "full":
        return dict(params)
    chosen = targets.select(params, pattern)
    kernels = dict(tree.walk(params))
    changes = {}
    for index, (path, layers) in enumerate(sorted(chosen.items())):
        base = kernels[f"{path}.kernel"]
        given = {"module": path} if "module" in TABLE.parameters(name) else {}
        node_key = jax.random.fold_in(key, index)
        node = METHODS[name](base, node_key, **settings, **given)
        if not all(layers):
            node = node.replace(scale=node.scale * jnp.asarray(layers, jnp.float32))
        changes[f"{path}.kernel"] = node
    return tree.replace(params, changes)


def trainable_mask(params: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """A tree of booleans like `params`: true where a leaf trains.

    Those are the adapters' own weights, and the leaves whose dotted name ends with an
    entry of `also` ("norm.scale"). Params without any adapter train as a whole,
    unless `also` names something. Use it with `tree.partition`.
    """
    if not also and not kernel.nodes(params):
        return jax.tree.map(lambda _: True, params)

    def ends(name: str) -> bool:
        return any(name == e or name.endswith("." + e) for e in also)

    def mask(name: str, value: Any) -> Any:
        if not kernel.is_node(value):
            return ends(name)
        own = getattr(value, "TRAINABLE", ())
        return tree.map_named(
            lambda field, _: field.split(".")[0] in own or ends(f"{name}.{field}"),
            value,
        )

    masks = {name: mask(name, value) for name, value in tree.walk(params)}
    return tree.replace(params, masks)


def merge(params: Mapping[str, Any], dtype: Any = None) -> dict[str, Any]:
    """The params with every adapter folded into a plain matrix.

    The sum is formed in float32 and stored in `dtype`, by default the dtype that the
    base had. Works layer by layer, so that no second float32 copy of a stack exists.
    """

    def fold(node: Any) -> Array:
        target = dtype or _base_dtype(node)
        if len(node.shape) == 2:
            return node.dense().astype(target)
        layers = range(node.shape[0])
        slices = [jax.tree.map(lambda x, i=i: x[i], node) for i in layers]
        return jnp.asarray(
            np.stack([np.asarray(s.dense().astype(target)) for s in slices])
        )

    changes = {name: fold(node) for name, node in kernel.nodes(params).items()}
    return tree.replace(params, changes)


def _base_dtype(node: Any) -> Any:
    base = node
    while hasattr(base, "base"):
        base = base.base
    return getattr(base, "dtype", jnp.float32)
