"""Write docs/configuration.md from the schema itself."""

import inspect
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import keys, settings
from jaxpeft.config.components import Table, described
from jaxpeft.config.data import SourceSection
from jaxpeft.config.sections import SECTIONS, RunConfig
from jaxpeft.metrics import METRICS

TARGET = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

YAML in sections; any key can be replaced on the command line as `section.key=value`,
whose value is YAML too. `2e-4` is a number. Unknown keys are errors with a suggestion,
and all errors are listed at once.

Relative paths are relative to the current directory, and `~` in front is the home
folder. What begins with `jaxpeft:` comes with the package and is found from anywhere:
`jaxpeft:tiny-llama` is a model, `jaxpeft:weather/train.json` and
`jaxpeft:weather/eval.json` are examples, and `--config jaxpeft:quickstart.yaml` is a
whole run of them.

Keys at the top that begin with `x-` are your own, and nothing reads them. They can hold
what several sections share:

```yaml
x-often: &often {logging_steps: 5, save_steps: 100}
training: {<<: *often, max_steps: 1000}
```

This page is made from the schema by `scripts/make_config_docs.py`.
"""
RESUMING = """A run goes on from a checkpoint only where it is the same run.
With another value of a key it is another one, but for these:
"""
SWEEPING = """The points of a sweep train together in one compiled program where they
share the values of all keys but these:
"""


def rows(model: type) -> list[str]:
    """A Markdown table row for each field of a section."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.default is not PydanticUndefined:
            default = shown(field.default)
        else:
            default = "required" if field.is_required() else ""
        meaning = escaped(field.description or "") + choices(field)
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return lines


def shown(default: object) -> str:
    """A default as YAML has it; a pattern as it is."""
    if default is None or isinstance(default, bool):
        return "null" if default is None else str(default).lower()
    text = str(default)
    return escaped(f"`{text}`" if "\\" in text or "*" in text else text)


def escaped(text: str) -> str:
    """The text inside a cell of a table."""
    return text.replace("|", "\\|")


def choices(field: FieldInfo) -> str:
    """The values that a key can have, where its meaning leaves some of a few out."""
    values = get_args(field.annotation)
    if get_origin(field.annotation) is not Literal:
        return ""
    if all(value in (field.description or "") for value in values):
        return ""
    return f"; one of {', '.join(f'`{value}`' for value in values)}"


def components(section: str, table: Table) -> list[str]:
    """The choices of a section, each with its own keys."""
    lines = []
    for name, entry in table.entries.items():
        summary = (inspect.getdoc(entry) or "").partition("\n")[0]
        others = [alias for alias, real in table.aliases.items() if real == name]
        also = f" (also `{'`, `'.join(others)}`)" if others else ""
        lines += ["", f"**{section}: `{name}`**{also}: {summary}", ""]
        keys = table.keys(name)
        if not keys:
            lines.append("No keys of its own.")
            continue
        lines += ["| key | default | is |", "|---|---|---|"]
        for key in keys:
            parameter = table.parameters(name)[key]
            kind = described(parameter.annotation)
            needed = parameter.default is inspect.Parameter.empty
            default = "required" if needed else shown(parameter.default)
            lines.append(f"| `{key}` | {default} | {escaped(kind)} |")
    return lines


def what_keys_say() -> list[str]:
    """What keys say of a run that resumes, and of the points of a sweep."""
    found: dict[str, dict[str, list[str]]] = {"identity": {}, "program": {}}
    models = {"": RunConfig, **SECTIONS}
    for section, model in models.items():
        names = [name for name in model.model_fields if section or name not in SECTIONS]
        names += TABLES[section].some_say if section in TABLES else []
        for name in names:
            key = f"{section}.{name}".removeprefix(".")
            for question, answer in settings.says(section, name, TABLES).items():
                found[question].setdefault(answer, []).append(f"`{key}`")
    lines = ["## What a key decides", "", RESUMING, *answers(found["identity"])]
    return [*lines, "", SWEEPING, *answers(found["program"])]


def answers(found: dict[str, list[str]]) -> list[str]:
    """A Markdown table row for each answer but the usual one, and the keys' names."""
    usual, meanings = ("always", "same"), {**keys.IDENTITY, **keys.PROGRAM}
    rows = ["| is | keys |", "|---|---|"]
    for answer, names in found.items():
        if answer not in usual:
            rows.append(f"| {meanings[answer]} | {', '.join(names)} |")
    return rows


def text() -> str:
    """The whole page."""
    top = [name for name in RunConfig.model_fields if name not in SECTIONS]
    lines = [INTRODUCTION, "## At the top", "", "| key | default | meaning |"]
    lines.append("|---|---|---|")
    for name in top:
        field = RunConfig.model_fields[name]
        default = "required" if field.is_required() else shown(field.default)
        lines.append(f"| `{name}` | {default} | {field.description} |")
    for section, model in SECTIONS.items():
        summary = (inspect.getdoc(model) or "").replace("\n", " ")
        lines += ["", f"## {section}", "", summary, "", *rows(model)]
        if section == "data":
            lines += ["", "A source:", "", *rows(SourceSection)]
        if section in TABLES:
            lines += components(section, TABLES[section])
        if section == "evaluation":
            lines += components("metrics", METRICS)
    lines += ["", *what_keys_say()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
