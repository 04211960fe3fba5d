"""Adapters switched off: the model that they were put on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import kernel
from jaxpeft.adapters.virtual import Virtual

Starts = dict[str, dict[str, Any]]


def starts(params: Mapping[str, Any]) -> Starts:
    """Copies of the weights of the base that train themselves, for `off`.

    They have no adapter that could be switched off: what `modules_to_save` and `bias`
    name, and the layers that train alone.

    Args:
        params: before the first step, adapters in.

    Returns:
        {dotted name: {field: a copy}}.
    """
    return {
        name: jax.tree.map(jnp.copy, own)
        for name, node in kernel.nodes(params).items()
        if not isinstance(node, Virtual) and (own := kernel.trainable(_beneath(node)))
    }


def off(params: Mapping[str, Any], starts: Starts) -> dict[str, Any]:
    """The params without their adapters, sharing the arrays of the base.

    As PEFT's `disable_adapter`, but that weights which train themselves are as they
    were before the first step, also where an earlier adapter brought them along; PEFT
    leaves trained biases on.

    Args:
        params: adapters in.
        starts: of `starts`.
    """

    def visit(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                inner = visit(value, f"{name}.")
                kept |= {key: inner} if inner else {}
            elif not isinstance(value, Virtual):
                beneath, own = _beneath(value), starts.get(name)
                kept[key] = dataclasses.replace(beneath, **own) if own else beneath
        return kept

    return visit(params, "")


def _beneath(node: Any) -> Any:
    """The kernel under all adapters that stand around it."""
    while kernel.is_adapter(node) and (base := kernel.base_of(node)) is not node:
        node = base
    return node
