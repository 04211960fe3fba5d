"""Which modules of a Flax model get an adapter, and the adapter of each."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import adapters
from jaxpeft.adapters import lora_init, targets
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.table import of_embedding
from jaxpeft.config import Table, check_call
from jaxpeft.errors import InputError
from jaxpeft.flax.forms import Contraction, Form, Lookup

TABLE = Table(
    {name: row for name, row in adapters.TABLE.rows.items() if row.flax},
    given=adapters.TABLE.given,
)


def make(
    forms: Mapping[str, Form],
    weights: Mapping[str, Any],
    rules: Mapping[str, Any],
    key: Array,
    problems: Mapping[str, str] | None = None,
) -> dict[str, LoRA]:
    """The adapters of the modules that the rules target, {path: adapter}.

    Their `base` is None. "all-linear" are the modules that sum over axes, neither
    convolutions nor embeddings, and no module named `lm_head`.

    Args:
        forms: {dotted path: how the module's weight is a matrix} of every module that
            can be adapted.
        weights: {path: weight} of the same modules.
        rules: The settings that `adapters.inject` takes, methods lora and lora_fa.
        key: The key that the adapters are drawn with.
        problems: {path: what keeps a module from being adapted}, raised if it is
            targeted.

    Raises:
        InputError: For an unknown method or key, a pattern that matches nothing, a
            module or rank that does not fit.
    """
    settings = dict(rules)
    name = settings.pop("method", "lora")
    pattern = settings.pop("target_modules", targets.ALL_LINEAR)
    excluded = settings.pop("exclude_modules", None)
    faults = check_call("adapter", name, TABLE, settings, selector="method")
    if faults:
        raise InputError(*faults)
    if not forms:
        raise InputError(
            "adapter.target_modules: the model holds no module that can be adapted; "
            "handled are Flax's own Linear, LinearGeneral, Einsum, Conv and Embed "
            "(in Linen: Dense, DenseGeneral, Einsum, Conv, Embed)"
        )
    linear = [path for path, form in forms.items() if isinstance(form, Contraction)]
    names = {path: [path] for path in forms}
    chosen = sorted(targets.among(names, pattern, linear, excluded))
    for section in ("rank_pattern", "alpha_pattern"):
        targets.require_hits(section, settings.get(section) or {}, chosen)
    flaws = {
        path: (problems or {}).get(path) or forms[path].problem() for path in chosen
    }
    if any(flaws.values()):
        raise InputError(
            *(f"adapter.target_modules: {path}: {p}" for path, p in flaws.items() if p)
        )
    nodes = {}
    for index, path in enumerate(chosen):
        node_key = jax.random.fold_in(key, index)
        try:
            weight = weights[path]
            nodes[path] = _node(path, forms[path], weight, name, settings, node_key)
        except InputError as error:
            faults = (f"{problem} (module {path!r})" for problem in error.problems)
            raise InputError(*faults) from None
    return nodes


def _node(
    path: str, form: Form, weight: Any, method: str, settings: dict, key: Array
) -> LoRA:
    layers = weight.shape[: len(weight.shape) - len(form.shape)]
    shape = (*layers, *form.matrix_shape())
    base: Any = jax.ShapeDtypeStruct(shape, weight.dtype)
    if settings.get("init_lora_weights", True) not in lora_init.RANDOM:
        base = form.matrix(jnp.asarray(weight[...]))  # PiSSA and the like read it
    make = adapters.METHODS[method]
    if isinstance(form, Lookup):
        make = of_embedding(method, path)
    names = (path,) * math.prod(shape[:-2])
    return dataclasses.replace(make(base, key, names=names, **settings), base=None)
