"""From YAML and command-line overrides to a checked configuration, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxpeft import console
from jaxpeft.config import conflicts, evaluation, paths, strict_yaml
from jaxpeft.config.base import ComponentSection
from jaxpeft.config.components import Table, check_call
from jaxpeft.config.data import SourceSection
from jaxpeft.config.sections import SECTIONS, RunConfig, chosen, component_class
from jaxpeft.config.wording import meant, shown, wanted
from jaxpeft.errors import InputError

# Two ways to say one thing: one on the command line outranks the other in the file.
PAIRS = (
    ("training.max_steps", "training.num_epochs"),
    ("schedule.warmup_steps", "schedule.warmup_ratio"),
    ("data.eval", "data.eval_split"),
)
EXCLUSIVE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}

OWN = "x-"  # keys at the top that begin so are the user's
Given = tuple[str, Any]  # a dotted key and its value
Keys = dict[str, list[str]]  # section ("" is the top) -> the keys it knows


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    tables: Mapping[str, Table] | None = None,
    values: Mapping[str, Any] | None = None,
    metrics: Table | None = None,
) -> RunConfig:
    """The configuration in a YAML file, with `section.key=value` overrides applied.

    Args:
        path: the file, or `jaxpeft:` and the name of one that ships.
        overrides: each replaces one key; the last one of a key counts. One of
            training.max_steps and num_epochs, or of another of the `PAIRS`, takes the
            place of the other, too.
        tables: section -> what it chooses from. The keys of a component are checked
            only against a table.
        values: {section.key: the value itself}, which count after the overrides.
        metrics: what the entries of `evaluation.metrics` choose from.

    Raises:
        InputError: something is wrong; all problems are told at once, but those with
            the YAML itself, which come alone.
    """
    try:
        with open(paths.find(path), "rb") as file:
            text = file.read(strict_yaml.MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name an existing YAML file"
            + paths.remedy(path)
        ) from None
    mapping = strict_yaml.load(text, str(path))
    read, problems = _read(overrides)
    given = [*read, *(values or {}).items()]
    mapping, more = _overridden(mapping, [*_outranked(mapping, given), *given])
    problems += more
    try:
        config = parse(mapping, str(path), tables, metrics)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(*problems)
    return config


def parse(
    mapping: Mapping[str, Any],
    name: str = "configuration",
    tables: Mapping[str, Table] | None = None,
    metrics: Table | None = None,
) -> RunConfig:
    """The configuration that a mapping of sections holds; aliases become real names.

    Args:
        mapping: section, or key at the top -> its keys, or its value. Keys that begin
            with `x-` are the user's own, such as holders of YAML's anchors.
        name: what the mapping is called in messages, such as the file's name.
        tables: section -> what it chooses from. The keys of a component are checked
            only against a table.
        metrics: what the entries of `evaluation.metrics` choose from.

    Raises:
        InputError: something is wrong; all problems are told at once.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{name}: found {shown(mapping)}; must be a mapping")
    tables = tables or {}
    mapping = {
        key: _named(key, value, tables)
        for key, value in mapping.items()
        if not str(key).startswith(OWN)
    }
    keys = _known_keys(mapping, tables)
    try:
        config = RunConfig.model_validate(mapping)
        problems = []
    except ValidationError as error:
        problems = _reported(error, mapping, keys)
    for section, table in tables.items():
        problems += _component_problems(section, mapping.get(section), table, keys)
    if metrics is not None:
        problems += evaluation.problems(
            "evaluation.metrics", mapping.get("evaluation"), metrics
        )
    problems += conflicts.found(mapping, tables)
    if problems:
        raise InputError(*problems)
    return config


def to_yaml(config: RunConfig) -> str:
    """The YAML text that `load` reads back to an equal configuration."""
    keys = config.model_dump()
    chosen = config.adapter.model_fields_set
    if config.adapter.init_from and "target_modules" not in chosen:
        # An adapter to continue from says itself what it adapts.
        del keys["adapter"]["target_modules"]
    return strict_yaml.dump(keys)


def parse_section(section: str, keys: Mapping[str, Any], table: Table) -> Any:
    """The section that a mapping of its keys holds, of those that choose a component.

    Args:
        section: the section's name.
        keys: its keys and their values.
        table: what it chooses from.

    Raises:
        InputError: something is wrong; all problems are told at once.
    """
    mapping = {section: _named(section, keys, {section: table})}
    known = _known_keys(mapping, {section: table})
    problems = _component_problems(section, mapping[section], table, known)
    try:
        parsed = SECTIONS[section].model_validate(mapping[section])
    except ValidationError as error:
        problems = [*_reported(error, mapping, known, section), *problems]
    if problems:
        raise InputError(*problems)
    return parsed


def build(table: Table, choice: ComponentSection, **given: Any) -> Any:
    """The result of calling the component that a section chooses.

    Args:
        table: what the section chooses from.
        choice: the section, whose options become arguments.
        given: the arguments that the code supplies.
    """
    return table[choice.choice].make(**choice.options, **given)


def _named(section: str, keys: Any, tables: Mapping[str, Table]) -> Any:
    """The section's keys with the component's own name in place of an alias.

    What the component has in place of a section's default is added.
    """
    if section not in tables or not isinstance(keys, Mapping):
        return keys
    selector = component_class(section).selector
    name = keys.get(selector)
    if not isinstance(name, str):
        return keys
    row = tables[section].found(name)
    table = tables[section]
    defaults = {**getattr(row, "defaults", {}), **table.implied.get(name, {})}
    return {**defaults, **keys, selector: table.resolve(name)}


def _known_keys(mapping: Mapping[str, Any], tables: Mapping[str, Table]) -> Keys:
    known = {section: list(cls.model_fields) for section, cls in SECTIONS.items()}
    for section, table in tables.items():
        known[section] += table.keys(chosen(section, mapping.get(section)))
    source = list(SourceSection.model_fields)
    return {"": list(RunConfig.model_fields), **known, "data.train": source}


def _component_problems(
    section: str, keys: Any, table: Table, known: Keys
) -> list[str]:
    name = chosen(section, keys)
    keys = {} if keys is None else keys
    if not name or not isinstance(keys, Mapping):
        return []
    declared = component_class(section).model_fields
    options = {key: value for key, value in keys.items() if key not in declared}

    def tail(key: str, _: list[str]) -> str:
        return meant(section, key, known)

    selector = component_class(section).selector
    return check_call(section, name, table, options, tail, selector)


def _reported(
    failure: ValidationError, mapping: Mapping[str, Any], known: Keys, root: str = ""
) -> list[str]:
    """The problems that pydantic found, each naming key, value and remedy."""
    problems = []
    for error in failure.errors(include_url=False):
        location = (root, *error["loc"]) if root else error["loc"]
        where = _dotted(location, mapping)
        opening = f"{where}: found {shown(error['input'])}"
        if error["type"] == "value_error":
            lines = str(error.get("ctx", {}).get("error")).splitlines()
            problems += [f"{where}.{line}" for line in lines]
        elif error["type"] == "missing":
            problems.append(f"{where}: is missing; add it, or give {where}=VALUE")
        elif error["type"] == "extra_forbidden":
            # Both lists of sources have the same keys.
            names = [part for part in location[:-1] if isinstance(part, str)]
            section = ".".join(names).replace("data.eval", "data.train")
            tail = meant(section, str(location[-1]), known)
            problems.append(f"{opening}; there is no such key{tail}")
        else:
            problems.append(f"{opening}; {wanted(error)}")
    return problems


def _dotted(location: Sequence[str | int], mapping: Any) -> str:
    """The key at a location, such as `data.train[1].path`.

    It is without `[0]` where the file has no list in that place.
    """
    text = ""
    for part in location:
        if isinstance(part, str):
            text += f".{part}" if text else part
            mapping = mapping.get(part) if isinstance(mapping, Mapping) else None
        elif isinstance(mapping, Sequence):
            text += f"[{part}]"
            mapping = mapping[part]
    return text


def _read(overrides: Sequence[str]) -> tuple[list[Given], list[str]]:
    """What texts `section.key=value` say, and what prevented one from being read."""
    read: list[Given] = []
    problems: list[str] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            problems.append(f"{override}: is not an override; write section.key=value")
            continue
        try:
            read.append((path, strict_yaml.parse_scalar(text, path)))
        except InputError as error:
            problems += error.problems
    return read, problems


def _outranked(mapping: Mapping[str, Any], given: Sequence[Given]) -> list[Given]:
    """Values that empty what a file says where a given one says it otherwise."""
    if not isinstance(mapping, Mapping):
        return []
    held = {
        f"{section}.{key}"
        for section, keys in mapping.items()
        if isinstance(keys, Mapping)
        for key in keys
    }
    last = dict(given)
    lost = [
        (key, loser)
        for key, loser in EXCLUSIVE.items()
        if last.get(key) is not None and loser not in last and loser in held
    ]
    for key, loser in lost:
        section, name = loser.split(".")
        if section == "data" and mapping[section][name] is not None:
            console.remark(
                f"{key} on the command line takes the place of {loser} in the file, "
                f"which is not read; give {loser}=null as well to say so yourself"
            )
    return [(loser, None) for _, loser in lost]


def _overridden(
    mapping: dict[str, Any], given: Sequence[Given]
) -> tuple[dict[str, Any], list[str]]:
    """The mapping with each given value in place, and what prevented one."""
    problems: list[str] = []
    for path, value in given:
        try:
            mapping = _override(mapping, path, value)
        except InputError as error:
            problems += error.problems
    return mapping, problems


def _override(mapping: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    parts = path.split(".")
    if parts[0].startswith(OWN):
        raise InputError(
            f"{path}: keys that begin with {OWN} are your own and change nothing once "
            "the file is read; override the section that uses it"
        )
    if parts[0] not in RunConfig.model_fields:
        tail = meant("", parts[0], _known_keys(mapping, {}))
        raise InputError(f"{path}: there is no section or key {parts[0]!r}{tail}")
    top = dict(mapping)  # aliases share nodes: copy what is written to
    node = top
    for depth, part in enumerate(parts[:-1], 1):
        inner = node.get(part)
        is_section = depth > 1 or part in SECTIONS
        if not is_section or not isinstance(inner, Mapping | None):
            here = ".".join(parts[:depth])
            kind = "a single value" if inner is None else shown(inner)
            raise InputError(
                f"{path}: {here} is {kind}, which has no key {parts[depth]!r}; "
                f"override all of it: {here}=VALUE"
            )
        node[part] = dict(inner or {})
        node = node[part]
    node[parts[-1]] = value
    return top
