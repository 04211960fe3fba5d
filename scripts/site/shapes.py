"""A griffe extension: shapes in docstrings stay as they are written.

Markdown takes the asterisks of two shapes in a line, `(*layers, d_in)` and
`(*layers, d_out)`, for emphasis and swallows them.
"""

import re
from typing import Any

import griffe

CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)


def escaped(text: str) -> str:
    """The text with a backslash before each asterisk that stands before a name."""
    parts = CODE.split(text)
    # Every second part is code.
    parts[::2] = [re.sub(r"(?<![*\\])\*(?=\w)", r"\\*", part) for part in parts[::2]]
    return "".join(parts)


class Shapes(griffe.Extension):
    """Escapes the shapes in the docstring of every object that is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
