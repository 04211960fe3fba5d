"""The keys of a configuration as fields of a form, from the schema itself."""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import PydanticUndefined

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import strict_yaml
from jaxpeft.config.components import Table, described
from jaxpeft.config.sections import SECTIONS, RunConfig, chosen, component_class

OFTEN = ("model", "data", "adapter", "optimizer", "training")
# Sections in the order in which one fills them in; the others follow.
ORDER = ("model", "data", "adapter", "objective", "optimizer", "schedule", "training")


@dataclass(frozen=True)
class Field:
    """A key.

    Attributes:
        key: its dotted name.
        value: what the configuration says, as YAML in one line; "": nothing.
        default: what holds then, as YAML; "": it is required, or says itself.
        about: what it means.
        choices: the values that there are; none: any.
        chooses: whether other keys depend on it.
        errors: what is wrong with its value.
    """

    key: str
    value: str
    default: str
    about: str
    choices: tuple[str, ...] = ()
    chooses: bool = False
    errors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The key's own name."""
        return self.key.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Group:
    """A section.

    Attributes:
        name: its name; "" for the top.
        about: what it is.
        fields: its keys.
        errors: what is wrong with it and belongs to no key.
    """

    name: str
    about: str
    fields: tuple[Field, ...]
    errors: tuple[str, ...] = field(default=())

    @property
    def is_open(self) -> bool:
        """Whether it is worth showing at once."""
        if self.name in ("", *OFTEN) or self.errors:
            return True
        return any(one.errors for one in self.fields)


def groups(mapping: Mapping[str, Any], problems: typing.Sequence[str]) -> list[Group]:
    """The form for a configuration.

    Args:
        mapping: what it says.
        problems: what is wrong with it, each beginning with the key.
    """
    rest = list(problems)
    names = [*ORDER, *(name for name in SECTIONS if name not in ORDER)]
    top = [name for name in RunConfig.model_fields if name not in SECTIONS]
    made = [_group("", "the run", RunConfig, mapping, rest, top)]
    for name in names:
        section = SECTIONS[name]
        keys = mapping.get(name)
        keys = keys if isinstance(keys, Mapping) else {}
        about = (inspect.getdoc(section) or "").partition("\n")[0]
        fields = list(section.model_fields)
        made.append(_group(name, about, section, keys, rest, fields))
    return made


def shape(mapping: Mapping[str, Any]) -> str:
    """What decides which keys there are: the components that are chosen."""
    return " ".join(chosen(name, mapping.get(name)) for name in TABLES)


def unplaced(
    problems: typing.Sequence[str], found: typing.Sequence[Group]
) -> list[str]:
    """The problems that stand beside no key and no section.

    Args:
        problems: all of them.
        found: the form.
    """
    placed = {e for group in found for one in group.fields for e in one.errors}
    placed |= {e for group in found for e in group.errors}
    return [problem for problem in problems if problem not in placed]


def _group(
    section: str,
    about: str,
    cls: Any,
    keys: Mapping[str, Any],
    problems: list[str],
    names: list[str],
) -> Group:
    fields = [_of_field(section, name, cls.model_fields[name], keys) for name in names]
    if section in TABLES:
        fields = _with_components(section, keys, fields)
    known = []
    for one in fields:
        own = [p for p in problems if _is_about(p, one.key)]
        known.append(_replaced(one, errors=tuple(own)))
    placed = {error for one in known for error in one.errors}
    others = [
        p for p in problems if section and _is_about(p, section) and p not in placed
    ]
    return Group(section, about, tuple(known), tuple(others))


def _is_about(problem: str, key: str) -> bool:
    return problem.startswith(key) and problem[len(key) : len(key) + 1] in ":.[ "


def _replaced(one: Field, **changes: Any) -> Field:
    return Field(**{**one.__dict__, **changes})


def _of_field(section: str, name: str, declared: Any, keys: Mapping[str, Any]) -> Field:
    default = declared.default
    return Field(
        key=f"{section}.{name}" if section else name,
        value=_said(keys, name),
        default="" if default is PydanticUndefined else _text(default),
        about=declared.description or "",
        choices=_choices(declared.annotation),
    )


def _with_components(
    section: str, keys: Mapping[str, Any], fields: list[Field]
) -> list[Field]:
    """The fields of a section that chooses a component, and those of the component."""
    table: Table = TABLES[section]
    selector = component_class(section).selector
    name = table.resolve(chosen(section, keys))
    names = tuple(table) if name in table.rows else (name, *table)
    found = []
    for one in fields:
        if one.name == selector:
            found.append(
                _replaced(one, choices=names, chooses=True, value=name or one.value)
            )
            for key in table.keys(name):
                found.append(_of_parameter(section, key, table.parameters(name), keys))
        else:
            found.append(one)
    return found


def _of_parameter(
    section: str,
    key: str,
    parameters: Mapping[str, inspect.Parameter],
    keys: Mapping[str, Any],
) -> Field:
    parameter = parameters[key]
    needed = parameter.default is parameter.empty
    return Field(
        key=f"{section}.{key}",
        value=_said(keys, key),
        default="" if needed else _text(parameter.default),
        about=described(parameter.annotation),
        choices=_choices(parameter.annotation),
    )


def _said(keys: Mapping[str, Any], name: str) -> str:
    if name not in keys:
        return ""
    return _text(keys[name])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    if value is not None and not isinstance(value, str | int | float | list | dict):
        return ""
    return strict_yaml.dump_scalar(value)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values that an annotation allows, as YAML; none where they are no few."""
    if annotation is bool:
        return ("true", "false")
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return tuple(_text(choice) for choice in parts)
    if type(None) in parts and len(parts) == 2:
        [other] = [part for part in parts if part is not type(None)]
        found = _choices(other)
        return (*found, "null") if found else ()
    return ()
