"""Which modules a `target_modules` setting means, by PEFT's rules."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxpeft import tree
from jaxpeft.errors import InputError, suggest

ALL_LINEAR = "all-linear"
STACK = "layers"  # the path component under which weights carry a layer axis
KERNEL, EMBEDDING = "kernel", "embedding"  # names of leaves

Names = str | Sequence[str]


def linear_modules(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{dotted path of a linear module: its leading (layer) axes} in the params tree.

    The path is Hugging Face's without the layer number: "model.layers.mlp.up_proj".
    """
    return _modules(params, KERNEL)


def embeddings(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Likewise of the tables that tokens are looked up in."""
    return _modules(params, EMBEDDING)


def _modules(params: Mapping[str, Any], leaf: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(f".{leaf}"): tuple(value.shape[:-2])
        for name, value in tree.walk(params)
        if name.endswith(f".{leaf}")
    }


def module_names(path: str, layers: tuple[int, ...]) -> list[str]:
    """Hugging Face's module names behind a path: one for each layer, in order."""
    if not layers:
        return [path]
    before, after = path.split(f"{STACK}.", 1)
    return [f"{before}{STACK}.{i}.{after}" for i in range(layers[0])]


def select(
    params: Mapping[str, Any],
    target_modules: Names,
    *,
    exclude_modules: Names | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
) -> dict[str, list[bool]]:
    """{path: for each layer whether it is targeted} for the modules that match.

    A list matches whole names or their last components (`q_proj`), a string is a
    regular expression that must match the whole name (`model.layers.0.mlp.up_proj`),
    "all-linear" is every linear module but the head. exclude_modules: names or an
    expression of what is left out all the same. layers_to_transform: the numbers of the
    layers that are adapted, of modules named by a list or "all-linear". Raises
    InputError for a pattern that matches nothing, with the names that come near.
    """
    modules = {**linear_modules(params), **embeddings(params)}
    names = {path: module_names(path, layers) for path, layers in modules.items()}
    chosen = among(names, target_modules, linear_modules(params), exclude_modules)
    if layers_to_transform is None or layers_to_transform == []:
        return chosen
    if isinstance(target_modules, str) and target_modules != ALL_LINEAR:
        raise InputError(
            f"adapter.layers_to_transform: found {layers_to_transform!r} beside an "
            "expression, which alone decides; name the layers in it, or give "
            "target_modules as a list"
        )
    chosen = _in_layers(chosen, modules, layers_to_transform)
    return _some(chosen, target_modules, exclude_modules, layers_to_transform)


def among(
    names: dict[str, list[str]],
    target_modules: Names,
    linear: Collection[str],
    exclude_modules: Names | None = None,
) -> dict[str, list[bool]]:
    """`select` for modules of any kind, given as {path: the names behind it}.

    linear: the paths that "all-linear" means, but for the head.
    """
    if target_modules == ALL_LINEAR:
        usual = {path: hf for path, hf in names.items() if path in linear}
        usual.pop("lm_head", None)
        chosen = {path: [True] * len(hf) for path, hf in usual.items()}
    elif isinstance(target_modules, str):
        chosen = _select_pattern(target_modules, names)
    else:
        chosen = _select_names(list(target_modules), names)
    if exclude_modules:
        chosen = {
            path: [
                hit and not _is_named(n, exclude_modules)
                for n, hit in zip(names[path], hits)
            ]
            for path, hits in chosen.items()
        }
    return _some(chosen, target_modules, exclude_modules)


def _some(
    chosen: Mapping[str, list[bool]],
    target_modules: Names,
    exclude_modules: Names | None,
    layers_to_transform: int | Sequence[int] | None = None,
) -> dict[str, list[bool]]:
    """What is targeted at all. Raises InputError where that is nothing."""
    left = {path: hits for path, hits in chosen.items() if any(hits)}
    if not left:
        raise InputError(
            f"adapter.exclude_modules: {exclude_modules!r} and layers_to_transform "
            f"{layers_to_transform!r} leave nothing of target_modules "
            f"{target_modules!r}; take some out"
        )
    return left


def _in_layers(
    chosen: Mapping[str, list[bool]],
    modules: Mapping[str, tuple[int, ...]],
    wanted: int | Sequence[int],
) -> dict[str, list[bool]]:
    """What is left where only layers of these numbers count."""
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    count = max((layers[0] for layers in modules.values() if layers), default=0)
    beyond = [number for number in numbers if not 0 <= number < count]
    if beyond:
        raise InputError(
            f"adapter.layers_to_transform: found {beyond[0]}; the model's layers are "
            f"0 to {count - 1}"
        )

    def inside(path: str, index: int, hits: Sequence[bool]) -> bool:
        layers = modules[path]
        return bool(layers) and index * layers[0] // len(hits) in numbers

    return {
        path: [hit and inside(path, i, hits) for i, hit in enumerate(hits)]
        for path, hits in chosen.items()
    }


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as in PEFT."""
    for pattern, value in patterns.items():
        try:
            hit = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(
                f"adapter: the pattern {pattern!r} is no regular expression: {error}"
            ) from None
        if hit:
            return value
    return default


def require_hits(
    section: str, patterns: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Raises InputError for a pattern that none of the adapted modules' names has."""
    idle = [
        pattern
        for pattern in patterns
        if not any(by_pattern({pattern: True}, name, False) for name in names)
    ]
    if idle:
        short = dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)
        raise InputError(
            *(
                f"adapter.{section}: {pattern!r} matches no adapted module"
                + suggest(pattern, short)
                for pattern in idle
            )
        )


def _is_named(name: str, wanted: Names) -> bool:
    """Whether names, or an expression, mean the module of this whole name."""
    if isinstance(wanted, str):
        return bool(re.fullmatch(wanted, name))
    return any(name == entry or name.endswith(f".{entry}") for entry in wanted)


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
    missing = [
        entry
        for entry in wanted
        if not any(_is_named(name, [entry]) for hf in names.values() for name in hf)
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
    chosen = {p: [_is_named(n, wanted) for n in hf] for p, hf in names.items()}
    return {path: hits for path, hits in chosen.items() if any(hits)}


def _unmatched(pattern: str, names: dict[str, list[str]], rule: str) -> str:
    short = dict.fromkeys(path.rsplit(".", 1)[-1] for path in names)
    example = next(iter(names.values()))[0]
    return (
        f"adapter.target_modules: {pattern!r} matches no linear module "
        f"({rule} module name such as {example!r})" + suggest(pattern, short)
    )
