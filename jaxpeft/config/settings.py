"""The settings that make a run the run it is, and a program the program it is."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxpeft.config.components import Table
from jaxpeft.config.sections import SECTIONS, RunConfig

Says = Mapping[str, Any]


def says(section: str, key: str, tables: Mapping[str, Table]) -> Says:
    """What a key says of itself: one of the constants of `keys`.

    Args:
        section: the name of the key's section, "" for the keys at the top.
        key: the key's own name, of the section's model or of a component in its table.
        tables: section -> what it chooses from.

    Raises:
        LookupError: the key's definition says nothing.
    """
    field = (SECTIONS[section] if section else RunConfig).model_fields.get(key)
    if field is None:
        return tables[section].says_of(key)
    if not isinstance(field.json_schema_extra, dict):
        raise LookupError(f"{section}.{key} says nothing of itself: see config.keys")
    return field.json_schema_extra


def identity(
    cfg: RunConfig, tables: Mapping[str, Table], steering: bool
) -> dict[str, Any]:
    """The settings that a resumed run must share with the one that was saved.

    Args:
        cfg: the run's configuration.
        tables: section -> what it chooses from.
        steering: whether evaluations steer the rate.

    Returns:
        {section or key at the top: its settings}; sections without any are left out.
    """

    def counts(section: str, key: str, value: Any) -> bool:
        kind = says(section, key, tables)["identity"]
        if kind == "set":
            return value != SECTIONS[section].model_fields[key].default
        return kind == "always" or (kind == "steering" and steering)

    return _settings(cfg, counts)


def program(
    cfg: RunConfig, tables: Mapping[str, Table], own: Collection[str]
) -> dict[str, Any]:
    """The settings that runs must share for one compiled program to train them.

    Args:
        cfg: a run's configuration.
        tables: section -> what it chooses from.
        own: the kinds of `keys.PROGRAM` of which each run may have its own value.

    Returns:
        {section or key at the top: its settings}; sections without any are left out.
    """

    def shared(section: str, key: str, value: Any) -> bool:
        return says(section, key, tables)["program"] not in own

    return _settings(cfg, shared)


def _settings(cfg: RunConfig, keep: Callable[[str, str, Any], bool]) -> dict[str, Any]:
    """The settings for which `keep(section, key, value)` is true."""
    settings: dict[str, Any] = {}
    for name, value in cfg.model_dump().items():
        if name in SECTIONS:
            kept = {key: own for key, own in value.items() if keep(name, key, own)}
            settings |= {name: kept} if kept else {}
        elif keep("", name, value):
            settings[name] = value
    return settings
