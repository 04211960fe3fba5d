"""The keyword parameters of optax's functions as keys that a configuration can hold.

optax says `ArrayLike` where a configuration means a number, and takes functions, dtypes
and other transformations, of which YAML has no literal.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

Dtype = Literal["float32", "bfloat16", "float16"]
# Another transformation: its name, or a section of its own.
Inner = str | Mapping[str, Any]
# Endings of the names of what is for programs: trees, functions, and what prints; and
# `seed`, which optax gives up for `key`.
FOR_PROGRAMS = ("mask", "numbers", "_fn", "seed", "verbose", "linesearch", "_n_steps")


def keys_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The parameters that a configuration can give, with annotations that it can check.

    Args:
        function: one of optax's, with annotations.

    Returns:
        By name. Where optax has a default, what YAML cannot say is left out.

    Raises:
        LookupError: for a parameter without a default that YAML cannot say.
    """
    found = {}
    parameters = inspect.signature(function, eval_str=True).parameters
    for name, parameter in parameters.items():
        if name == "key":  # a whole number will do for one
            parameter = parameter.replace(annotation=int, default=0)
        kind = None if name.endswith(FOR_PROGRAMS) else _kind(parameter)
        if kind is not None:
            keyword = inspect.Parameter.KEYWORD_ONLY
            found[name] = parameter.replace(annotation=kind, kind=keyword)
        elif parameter.default is inspect.Parameter.empty:
            raise LookupError(name)
    return found


def is_dtype(name: str) -> bool:
    """Whether the parameter of this name is a dtype, whose name a key gives."""
    return name.endswith("dtype") or name.startswith("dtype_")


def _kind(parameter: inspect.Parameter) -> Any:
    """The annotation that a key is checked by; None where it can be no key."""
    if is_dtype(parameter.name):
        return Dtype | None
    default = parameter.default
    kind = type(default) if type(default) in (bool, int) else None
    kind = kind or _said(parameter.annotation)
    return kind | None if kind is not None and default is None else kind


def _said(annotation: Any) -> Any:
    """What a configuration says where optax means this; None where it cannot."""
    if annotation in (bool, int, float, str):
        return annotation
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return annotation
    if origin is tuple:
        items = tuple(map(_said, parts))
        return None if None in items else tuple[items]
    if origin not in (typing.Union, types.UnionType):
        return Inner if annotation is optax.GradientTransformation else None
    if optax.GradientTransformation in parts:
        return None if types.NoneType in parts else Inner
    if jax.Array in parts or float in parts:
        return float
    return next(filter(None, map(_said, parts)), None)
