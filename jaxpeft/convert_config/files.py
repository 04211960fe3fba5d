"""Files that a configuration names, read where they are on this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_object(path: str) -> Mapping[str, Any] | None:
    """The object in a JSON file; None where there is none to be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, Mapping) else None


def model_config(path: Any) -> Mapping[str, Any]:
    """A model's config.json, its text part on top; {} where there is none."""
    content = (json_object(f"{path}/config.json") if path else None) or {}
    return {**content, **inner(content, "text_config")}


def inner(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; {} where there is none."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}
