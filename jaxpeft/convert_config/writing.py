"""A draft as the text of a configuration file, its remarks as comments."""

import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

from jaxpeft.config import strict_yaml
from jaxpeft.config.sections import SECTIONS, RunConfig
from jaxpeft.convert_config.draft import Draft

WIDTH = 88


def to_yaml(draft: Draft, source: str, path: str) -> str:
    """The text of the configuration file that a draft stands for.

    What has no equivalent is listed in the head; a remark stands above the key that it
    is about.

    Args:
        draft: the settings, with what is to be said of them.
        source: what it was translated from, for the first lines.
        path: where the file will be, for the command in its head.
    """
    lines = [
        f"# Command:  python -m jaxpeft.train --config {shlex.quote(str(path))}",
        f"# Translated from {source}.",
    ]
    if draft.missing:
        lines += ["#", "# Without equivalent here:"]
        for key, why in draft.missing.items():
            lines += _comment(f"- {key}: {why}", "", hanging="  ")
    top = [name for name in RunConfig.model_fields if name not in SECTIONS]
    for name in top:
        lines += _entry(draft, name, name, "")
    for section in SECTIONS:
        keys = _ordered(draft, section)
        if keys:
            lines.append(f"{section}:")
        for key in keys:
            lines += _entry(draft, key, key.removeprefix(f"{section}."), "  ")
    return "\n".join(lines) + "\n"


def _ordered(draft: Draft, section: str) -> list[str]:
    """The keys of a section in the order of its declaration; a component's own last."""
    declared = [f"{section}.{name}" for name in SECTIONS[section].model_fields]
    given = [key for key in draft.settings if key.startswith(f"{section}.")]
    order = {key: at for at, key in enumerate([*declared, *given][::-1])}
    return sorted(given, key=lambda key: -order[key])


def _entry(draft: Draft, key: str, name: str, indent: str) -> Iterator[str]:
    if key not in draft.settings:
        return
    for remark in draft.remarks.get(key, ()):
        yield from _comment(remark, indent)
    text = strict_yaml.dump({name: _plain(draft.settings[key])})
    yield from textwrap.indent(text, indent).splitlines()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _comment(text: str, indent: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# {hanging}",
        break_long_words=False,
        break_on_hyphens=False,
    )
