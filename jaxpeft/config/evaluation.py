"""The section that says which answers an evaluation asks for, and what scores them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from jaxpeft.config import keys
from jaxpeft.config.base import ComponentSection, Count, Section, Text
from jaxpeft.config.components import Table, check_call


class MetricSection(ComponentSection):
    """A metric. The other keys are its own, such as `extract` of exact_match."""

    name: Text = Field(description="exact_match, ...")


def _named(value: Any) -> Any:
    """The entries of a list, a name alone standing for the mapping with that name."""
    if value is None:
        return ()
    several = value if isinstance(value, list | tuple) else [value]
    return tuple({"name": one} if isinstance(one, str) else one for one in several)


class EvaluationSection(Section):
    """What an evaluation does besides its losses: it asks for answers and scores them.

    The questions and references are those of the evaluation data.
    """

    metrics: Annotated[tuple[MetricSection, ...], BeforeValidator(_named)] = Field(
        default=(),
        description="names, or mappings of a name and that metric's own keys, such as "
        "{name: exact_match, extract: gsm8k}; empty: losses alone",
        json_schema_extra=keys.NEVER,
    )
    max_examples: Count | None = Field(
        default=64,
        description="how many examples are answered, the same each time, spread evenly "
        "over those that are evaluated; null: all",
        json_schema_extra=keys.NEVER,
    )
    max_new_tokens: Count = Field(
        default=128,
        description="the most tokens of an answer",
        json_schema_extra=keys.NEVER,
    )
    batch_size: Count | None = Field(
        default=None,
        description="how many are answered together; null: as many as are evaluated",
        json_schema_extra=keys.NEVER,
    )


def entries(evaluation: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """The entries of `evaluation.metrics` that name a metric, of an unchecked mapping.

    Args:
        evaluation: what stands in the section.

    Returns:
        (number in the list, its keys); what is no such entry is left to the section.
    """
    listed = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    return [
        (number, one)
        for number, one in enumerate(_named(listed))
        if isinstance(one, Mapping) and isinstance(one.get("name"), str)
    ]


def problems(key: str, evaluation: Any, table: Table) -> list[str]:
    """What is wrong with the names and keys of the entries of `evaluation.metrics`.

    Args:
        key: what the entries are called in messages.
        evaluation: what stands in the section, unchecked.
        table: what there is to choose from.
    """
    found, seen = [], set()
    for number, own in entries(evaluation):
        where, name = f"{key}[{number}]", table.resolve(own["name"])
        options = {key: value for key, value in own.items() if key != "name"}
        found += check_call(where, name, table, options)
        if name in seen:
            found.append(f"{where}.name: found {name!r} twice; keep one of them")
        seen.add(name)
    return found
