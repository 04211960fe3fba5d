"""Shapes in docstrings as Markdown shows them: as they were written.

Markdown takes the asterisks of two shapes in a line, `(*layers, d_in)` and
`(*layers, d_out)`, for emphasis and swallows them.
"""

import re

CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)


def escaped(text: str) -> str:
    """The text with a backslash before each asterisk that stands before a name."""
    parts = CODE.split(text)
    # Every second part is code.
    parts[::2] = [re.sub(r"(?<![*\\])\*(?=\w)", r"\\*", part) for part in parts[::2]]
    return "".join(parts)
