"""Which modules a `target_modules` setting means, by PEFT's rules."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft import tree
from jaxpeft.errors import InputError, suggest

ALL_LINEAR = "all-linear"
STACK = "layers"  # the path component under which weights carry a layer axis


def linear_modules(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{dotted path of a linear module: its leading (layer) axes} in the params tree.

    The path is Hugging Face's without the layer number: "model.layers.mlp.up_proj".
    """
    suffix = ".kernel"
    return {
        name.removesuffix(suffix): tuple(value.shape[:-2])
        for name, value in tree.walk(params)
        if name.endswith(suffix)
    }


def module_names(path: str, layers: tuple[int, ...]) -> list[str]:
    """Hugging Face's module names behind a path: one for each layer, in order."""
    if not layers:
        return [path]
    before, after = path.split(f"{STACK}.", 1)
    return [f"{before}{STACK}.{i}.{after}" for i in range(layers[0])]


def select(
    params: Mapping[str, Any], target_modules: str | Sequence[str]
) -> dict[str, list[bool]]:
    """{path: for each layer whether it is targeted} for the modules that match.

    A list matches whole names or their last components (`q_proj`), a string is a
    regular expression that must match the whole name (`model.layers.0.mlp.up_proj`),
    "all-linear" is every linear module but the head. Raises InputError for a pattern
    that matches nothing, with the names that come near.
    """
    modules = linear_modules(params)
    names = {path: module_names(path, layers) for path, layers in modules.items()}
    return among(names, target_modules)


def among(
    names: dict[str, list[str]], target_modules: str | Sequence[str]
) -> dict[str, list[bool]]:
    """`select` for modules of any kind, given as {path: the names behind it}."""
    if target_modules == ALL_LINEAR:
        return {
            path: [True] * len(hf) for path, hf in names.items() if path != "lm_head"
        }
    if isinstance(target_modules, str):
        return _select_pattern(target_modules, names)
    return _select_names(list(target_modules), names)


def _select_pattern(pattern: str, names: dict[str, list[str]]) -> dict:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"adapter.target_modules: {pattern!r} is not a regular expression: {error}"
        ) from None
    chosen = {p: [bool(compiled.fullmatch(n)) for n in hf] for p, hf in names.items()}
    chosen = {path: hits for path, hits in chosen.items() if any(hits)}
    if not chosen:
        raise InputError(
            _unmatched(pattern, names, "the expression must match a whole")
        )
    return chosen


def _select_names(wanted: list[str], names: dict[str, list[str]]) -> dict:
    def hit(name: str, entry: str) -> bool:
        return name == entry or name.endswith("." + entry)

    missing = [
        entry
        for entry in wanted
        if not any(hit(name, entry) for hf in names.values() for name in hf)
    ]
    if missing:
        raise InputError(
            *(_unmatched(e, names, "an entry must end a") for e in missing)
        )
    if not wanted:
        raise InputError(
            "adapter.target_modules: found an empty list; name at least one module, "
            f"or {ALL_LINEAR!r}"
        )
    chosen = {
        p: [any(hit(n, e) for e in wanted) for n in hf] for p, hf in names.items()
    }
    return {path: hits for path, hits in chosen.items() if any(hits)}


def _unmatched(pattern: str, names: dict[str, list[str]], rule: str) -> str:
    short = dict.fromkeys(path.rsplit(".", 1)[-1] for path in names)
    example = next(iter(names.values()))[0]
    return (
        f"adapter.target_modules: {pattern!r} matches no linear module "
        f"({rule} module name such as {example!r})" + suggest(pattern, short)
    )
