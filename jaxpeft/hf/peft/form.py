"""How the adapters of one kind stand in a folder, and the form of those without one.

PEFT knows the kinds that have a `Form` of their own in `other_adapters`. A method whose
line in `adapters.TABLE` names its class of nodes has the plain form besides: each field
under its own name, so that a new method trains, resumes, is saved and loaded here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxpeft import adapters, kernel
from jaxpeft.errors import InputError
from jaxpeft.hf.peft import adapter_config

SCALE = "scale"


@dataclass(frozen=True)
class Form:
    """How the nodes of one kind are laid out.

    Attributes:
        peft_type: what the config calls the kind.
        suffixes: {field: the tensor's name after the module's}.
        settings: ({module: node}, the names of all modules) -> what the config says of
            the kind alone.
        build: (base, {field: stack}, scale, module, config, {key: tensor of no module})
            -> node. scale: (*layers,) float32, 1 where the file has the module.
        shared: {module: node} -> the tensors of no module, by their keys.
        shared_keys: those keys.
    """

    peft_type: str
    suffixes: Mapping[str, str]
    settings: Callable[[Mapping[str, Any], Set[str]], dict[str, Any]]
    build: Callable[..., Any]
    shared: Callable[[Mapping[str, Any]], dict[str, np.ndarray]] = lambda nodes: {}
    shared_keys: tuple[str, ...] = ()


def plain_forms(known: Set[type]) -> dict[type, Form]:
    """The plain form of each class of nodes that a method names and `known` lacks."""
    rows = adapters.TABLE.rows.items()
    return {
        row.node: plain(name, row.node)
        for name, row in rows
        if row.node is not None and row.node not in known
    }


def plain(method: str, kind: type) -> Form:
    """The form of a class of nodes, made of its fields.

    Args:
        method: its name in `adapters.TABLE`.
        kind: a `flax.struct.dataclass` with the fields `base` and `scale`. All other
            fields with arrays are stacked over the layers; the rest is the same in all
            modules, and JSON can hold it.
    """
    fields = [field for field in dataclasses.fields(kind) if field.name != "base"]
    stacked = [f.name for f in fields if f.metadata.get("pytree_node", True)]
    constant = [field.name for field in fields if field.name not in stacked]

    def settings(nodes: Mapping[str, Any], modules: Set[str]) -> dict[str, Any]:
        values = {name: _one_value(nodes, name) for name in constant}
        return {"jaxpeft_method": method, **values}

    def build(
        base: Any,
        stacks: Mapping[str, Any],
        scale: Any,
        module: str,
        config: Mapping[str, Any],
        shared: Any,
    ) -> Any:
        arrays = {**stacks, SCALE: stacks[SCALE][..., 0] * scale}
        missing = [name for name in constant if name not in config]
        if missing:
            raise InputError(
                f"{adapter_config.CONFIG}: {missing[0]}: is missing, which adapter "
                f"method {method} needs; save the adapter again"
            )
        node = kind(base, **arrays, **{name: config[name] for name in constant})
        try:
            jax.eval_shape(kernel.dense, node)
        except InputError:
            pass  # a kind without a matrix, which says so: its product alone counts
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{adapter_config.WEIGHTS}: the tensors of {module!r} do not fit its "
                f"weight of {tuple(base.shape[-2:])}: the adapter was made for another "
                "base; set model.path to that"
            ) from error
        return node

    suffixes = {name: f"{method}_{name}" for name in stacked}
    return Form(f"JAXPEFT_{method.upper()}", suffixes, settings, build)


def _one_value(nodes: Mapping[str, Any], name: str) -> Any:
    values = {getattr(node, name) for node in nodes.values()}  # a field of the class
    if len(values) > 1:
        raise InputError(
            f"adapter: {name} is {' and '.join(map(repr, values))} in different "
            "modules, and an adapter's folder has one value for all; give the method "
            "one, or the kind a Form in jaxpeft.hf.peft.other_adapters"
        )
    return values.pop()
