"""JSON text -> values, with the file and line of whatever is wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def parse_json(text: str, path: Path) -> list[Any]:
    """The elements of a file that holds one JSON list; none if it is blank.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Raises:
        InputError: the text is no JSON, no list, or escapes half a surrogate pair.
    """
    refuse_lone_surrogates(text, path)
    if not text.strip():
        return []
    value = _loads(text, path, first_line=1)
    if not isinstance(value, list):
        raise InputError(
            f"{path}: holds {type(value).__name__}, expected a list of records "
            "([{...}, {...}]), or one record a line in a .jsonl file"
        )
    return value


def parse_json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file that holds one JSON value a line.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Yields:
        The line's number, from 1, and its value, for every line that is not blank.

    Raises:
        InputError: a line is no JSON, or escapes half a surrogate pair.
    """
    refuse_lone_surrogates(text, path)
    # Not splitlines(): U+2028 and its like stand inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _loads(line, path, first_line=number)


def _loads(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno}); "
            "correct or delete that line"
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"{path}:{first_line}: this JSON is nested too deeply or holds too long "
            f"a number ({error})"
        ) from error


def refuse_lone_surrogates(text: str, path: Path) -> None:
    r"""Refuse JSON text with an escape such as `\ud83d` without its other half.

    Python's json turns it into a string that no tokenizer can encode.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Raises:
        InputError: the text has such an escape; the message names the first one.
    """
    if "\\ud" not in text and "\\uD" not in text:
        return
    high_ends_at = -1  # where the low half of an open pair has to begin
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        is_high, is_low = 0xD800 <= code < 0xDC00, 0xDC00 <= code < 0xE000
        pairs = is_low and high_ends_at == escape.start()
        if high_ends_at >= 0 and not pairs:
            raise _lone(text, high_ends_at - 6, path)
        if is_low and not pairs:
            raise _lone(text, escape.start(), path)
        high_ends_at = escape.end() if is_high else -1
    if high_ends_at >= 0:
        raise _lone(text, high_ends_at - 6, path)


def _lone(text: str, at: int, path: Path) -> InputError:
    line = text.count("\n", 0, at) + 1
    return InputError(
        f"{path}:{line}: {text[at : at + 6]} is half of a surrogate pair and no "
        "character; write the character itself or both halves"
    )
