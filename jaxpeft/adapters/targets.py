"""Which modules a `target_modules` setting means, by PEFT's rules."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxpeft import tree
from jaxpeft.errors import InputError, suggest

ALL_LINEAR = "all-linear"
Names = Mapping[str, Sequence[str]]  # of a module's layers, by its path in the params
Wanted = str | Sequence[str]
# The heads, the router of a mixture of experts (fewer outputs than usual ranks), and
# what is no linear module.
LEFT_OUT = ("lm_head", "score", "gate", "embed_tokens")
STACK = "layers"  # the path component under which weights carry a layer axis
KERNEL, EMBEDDING = "kernel", "embedding"  # names of leaves


def linear_modules(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The linear modules in the params tree, and how many layers each of them stacks.

    Args:
        params: with or without adapters.

    Returns:
        {dotted path of a module: the sizes of its leading axes}. The path is Hugging
        Face's without the layer number: "model.layers.mlp.up_proj".
    """
    return _modules(params, KERNEL)


def embeddings(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tables that tokens are looked up in, in the form of `linear_modules`."""
    return _modules(params, EMBEDDING)


def _modules(params: Mapping[str, Any], leaf: str) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(f".{leaf}"): tuple(value.shape[:-2])
        for name, value in tree.walk(params)
        if name.endswith(f".{leaf}")
    }


def module_names(path: str, layers: tuple[int, ...]) -> list[str]:
    """Hugging Face's module names behind a path: one for each layer, in order.

    Args:
        path: of the module in the params.
        layers: the sizes of its leading axes; () for a module outside of the layers.
    """
    if not layers:
        return [path]
    before, after = path.split(f"{STACK}.", 1)
    return [f"{before}{STACK}.{i}.{after}" for i in range(layers[0])]


def names_of(params: Mapping[str, Any], known: Names | None = None) -> Names:
    """The names of the layers of all that can be adapted, by the modules' paths.

    Args:
        params: of a base.
        known: Hugging Face's names, of families that call their modules otherwise than
            the params do.
    """
    modules = {**linear_modules(params), **embeddings(params)}
    return {
        path: (known or {}).get(path) or module_names(path, layers)
        for path, layers in modules.items()
    }


def present(wanted: Wanted, names: Names) -> Wanted:
    """The entries of `wanted` that a model has.

    Args:
        wanted: names or their ends, or a pattern.
        names: of the model's modules.

    Returns:
        These entries; a pattern, or a list of which the model has none, as it is.
    """
    if isinstance(wanted, str):
        return wanted
    everything = [name for hf in names.values() for name in hf]
    had = [w for w in wanted if any(is_hit(name, w) for name in everything)]
    return had or list(wanted)


def in_mixture(name: str) -> bool:
    """Whether a path or a weight's name is of a mixture's router or its experts."""
    return ".experts." in name or ".mlp.gate." in f"{name}."


def is_hit(name: str, entry: str) -> bool:
    """Whether an entry of a list, a name or its end, means the module of this name."""
    return name == entry or name.endswith("." + entry)


def select(
    names: Names,
    target_modules: Wanted,
    *,
    exclude_modules: Wanted | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
) -> dict[str, list[bool]]:
    """The modules that a setting means, and in which of their layers.

    Args:
        names: of the model's modules, as `names_of` gives them.
        target_modules: a list matches whole names or their last components (`q_proj`),
            a string is a regular expression that must match the whole name
            (`model.layers.0.mlp.up_proj`), "all-linear" is every linear module but the
            head and routers.
        exclude_modules: names or an expression of what is left out all the same.
        layers_to_transform: the numbers of the layers that are adapted, of modules
            named by a list or "all-linear".

    Returns:
        {path of a module that matches: for each layer whether it is targeted}.

    Raises:
        InputError: a pattern matches nothing; the message has the names that come near.
    """
    usual = [path for path in names if path.rsplit(".", 1)[-1] not in LEFT_OUT]
    chosen = among(names, target_modules, usual, exclude_modules)
    if layers_to_transform is None or layers_to_transform == []:
        return chosen
    if isinstance(target_modules, str) and target_modules != ALL_LINEAR:
        raise InputError(
            f"adapter.layers_to_transform: found {layers_to_transform!r} beside an "
            "expression, which alone decides; name the layers in it, or give "
            "target_modules as a list"
        )
    chosen = _in_layers(chosen, names, layers_to_transform)
    return _some(chosen, target_modules, exclude_modules, layers_to_transform)


def among(
    names: Names,
    target_modules: Wanted,
    linear: Collection[str],
    exclude_modules: Wanted | None = None,
) -> dict[str, list[bool]]:
    """The same as `select` for modules of any kind, in all layers.

    Args:
        names: {path of a module: the names behind it}.
        target_modules: as for `select`.
        linear: the paths that "all-linear" means, but for the head.
        exclude_modules: as for `select`.

    Returns:
        As `select`.

    Raises:
        InputError: as `select`.
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
                hit and not is_named(n, exclude_modules, "adapter.exclude_modules")
                for n, hit in zip(names[path], hits)
            ]
            for path, hits in chosen.items()
        }
    return _some(chosen, target_modules, exclude_modules)


def _some(
    chosen: Mapping[str, list[bool]],
    target_modules: Wanted,
    exclude_modules: Wanted | None,
    layers_to_transform: int | Sequence[int] | None = None,
) -> dict[str, list[bool]]:
    """The modules of which any layer is targeted.

    Raises:
        InputError: there are none.
    """
    left = {path: hits for path, hits in chosen.items() if any(hits)}
    if not left:
        raise InputError(
            f"adapter.exclude_modules: {exclude_modules!r} and layers_to_transform "
            f"{layers_to_transform!r} leave nothing of target_modules "
            f"{target_modules!r}; take some out"
        )
    return left


def _in_layers(
    chosen: Mapping[str, list[bool]], names: Names, wanted: int | Sequence[int]
) -> dict[str, list[bool]]:
    """What is left where only layers of these numbers count."""
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    stacked = {path for path in names if f".{STACK}." in path}
    count = max((len(names[path]) for path in stacked), default=0)
    beyond = [number for number in numbers if not 0 <= number < count]
    if beyond:
        raise InputError(
            f"adapter.layers_to_transform: found {beyond[0]}; the model's layers are "
            f"0 to {count - 1}"
        )
    return {
        path: [hit and path in stacked and i in numbers for i, hit in enumerate(hits)]
        for path, hits in chosen.items()
    }


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as in PEFT.

    Args:
        patterns: {regular expression: the value}.
        module: the module's name.
        default: the value where none matches.

    Raises:
        InputError: a pattern is no regular expression.
    """
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
    """Checks that every pattern matches an adapted module.

    Args:
        section: the setting that holds the patterns, for the message.
        patterns: {regular expression: a value}.
        names: of the adapted modules.

    Raises:
        InputError: a pattern matches none of them.
    """
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


def is_named(name: str, wanted: Wanted, key: str) -> bool:
    """Whether names, or an expression, mean the module of this whole name.

    Args:
        name: the module's, in full.
        wanted: a list means what ends with one of its names; a text is a regular
            expression that must match the whole name.
        key: where `wanted` was given, for the message.

    Raises:
        InputError: the text is no regular expression.
    """
    if not isinstance(wanted, str):
        return any(is_hit(name, entry) for entry in wanted)
    return bool(_expression(wanted, key).fullmatch(name))


def _expression(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{key}: {pattern!r} is not a regular expression: {error}"
        ) from None


def _select_pattern(pattern: str, names: Names) -> dict:
    compiled = _expression(pattern, "adapter.target_modules")
    chosen = {p: [bool(compiled.fullmatch(n)) for n in hf] for p, hf in names.items()}
    chosen = {path: hits for path, hits in chosen.items() if any(hits)}
    if not chosen:
        raise InputError(
            _unmatched(pattern, names, "the expression must match a whole")
        )
    return chosen


def _select_names(wanted: list[str], names: Names) -> dict:
    missing = [
        entry
        for entry in wanted
        if not any(is_hit(name, entry) for hf in names.values() for name in hf)
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
        path: [any(is_hit(n, entry) for entry in wanted) for n in hf]
        for path, hf in names.items()
    }
    return {path: hits for path, hits in chosen.items() if any(hits)}


def _unmatched(pattern: str, names: Names, rule: str) -> str:
    short = dict.fromkeys(hf[0].rsplit(".", 1)[-1] for hf in names.values())
    example = next(iter(names.values()))[0]
    return (
        f"adapter.target_modules: {pattern!r} matches no linear module "
        f"({rule} module name such as {example!r})" + suggest(pattern, short)
    )
