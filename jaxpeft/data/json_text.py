"""JSON text -> values, with the file and line of whatever is wrong."""

import json
import re
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n]*")


class RepeatedKey(ValueError):
    """A key that stands twice in one object."""


def after_blank(text: str, at: int = 0) -> int:
    """Where the first character stands that is not blank, from a character on.

    Args:
        text: the JSON.
        at: the number of the character to begin with.
    """
    found = _BLANK.match(text, at)
    return found.end() if found else at


def raw_value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a character of a text, and where it ends.

    Args:
        text: the JSON.
        at: where the value begins.

    Raises:
        json.JSONDecodeError: it is no JSON.
        RepeatedKey: a key stands twice in one object.
        RecursionError: it is nested too deeply.
        ValueError: it holds too long a number.
    """
    return _DECODER.raw_decode(text, at)


def line_value(text: str, path: str | Path, line: int) -> Any:
    """The value of one line, or of a whole text.

    Args:
        text: the JSON, which is not blank.
        path: the file, for messages.
        line: the number of the text's first line.

    Raises:
        InputError: it is no JSON, goes on after the first value, repeats a key, or
            escapes half a surrogate pair.
    """
    begin = after_blank(text)
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
        raise InputError(wrong(error, text, begin, path, line)) from None
    if (rest := after_blank(text, end)) < len(text):
        raise InputError(goes_on(text, rest, path, line))
    refuse_lone_surrogates(value, text, path, line)
    return value


def wrong(
    error: Exception,
    text: str,
    begin: int,
    path: str | Path,
    line: int = 1,
    column: int = 1,
    row: int | None = None,
) -> str:
    """What is wrong with a value that `raw_value` could not read, and where.

    Args:
        error: what it raised.
        text: the JSON.
        begin: where the value begins.
        path: the file, for messages.
        line: the number of the text's first line.
        column: the number of the first column in that line.
        row: the number of the value in its list, if it is in one.
    """
    own = line + text.count("\n", 0, begin)
    if isinstance(error, json.JSONDecodeError):
        at = error.colno + (column - 1 if error.lineno == 1 else 0)
        return (
            f"{path}:{line + error.lineno - 1}: not valid JSON ({error.msg}, "
            f"column {at}); correct or delete that line"
        )
    if isinstance(error, RepeatedKey):
        place = f"{path}:{own}" + (f" (row {row})" if row else "")
        return (
            f"{place}: the key {str(error)!r} stands twice in one object; keep one of "
            "the two"
        )
    return (
        f"{path}:{own}: this JSON is nested too deeply or holds too long a number "
        f"({error})"
    )


def goes_on(text: str, rest: int, path: str | Path, line: int) -> str:
    """What to say of a text that goes on where its value has ended.

    Args:
        text: the JSON.
        rest: where it goes on.
        path: the file, for messages.
        line: the number of the text's first line.
    """
    return (
        f"{path}:{line + text.count(chr(10), 0, rest)}: not valid JSON (after the "
        f"first value comes {text[rest : rest + 20]!r}); correct or delete that line"
    )


def parse_value(text: str) -> Any:
    """The value of JSON text that stands inside a record.

    Args:
        text: the JSON.

    Raises:
        InputError: it is no JSON, repeats a key, or escapes half a surrogate pair.
    """
    if (at := _lone_at(text)) is not None:
        raise InputError(f"{text[at : at + 6]} is half of a surrogate pair")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RepeatedKey as error:
        raise InputError(f"the key {str(error)!r} stands twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        raise RepeatedKey(next(k for k, _ in pairs if k in seen or seen.add(k)))
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def refuse_lone_surrogates(
    value: Any, text: str, path: str | Path, line: int = 1
) -> None:
    r"""Refuse JSON with an escape such as `\ud83d` without its other half.

    Python's json turns it into a string that no tokenizer can encode.

    Args:
        value: what the text holds.
        text: the JSON.
        path: the file, for messages.
        line: the number of the text's first line.

    Raises:
        InputError: the text has such an escape; the message names the first one.
    """
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:  # a hundred times faster than to look at every escape
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        at = _lone_at(text) or 0
        raise InputError(
            f"{path}:{line + text.count(chr(10), 0, at)}: {text[at : at + 6]} is half "
            "of a surrogate pair and no character; write the character itself or both "
            "halves"
        ) from None


def _lone_at(text: str) -> int | None:
    """Where the first escape without its other half stands; None: nowhere."""
    if "\\ud" not in text and "\\uD" not in text:
        return None
    high_ends_at = -1  # where the low half of an open pair has to begin
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        is_high, is_low = 0xD800 <= code < 0xDC00, 0xDC00 <= code < 0xE000
        pairs = is_low and high_ends_at == escape.start()
        if high_ends_at >= 0 and not pairs:
            return high_ends_at - 6
        if is_low and not pairs:
            return escape.start()
        high_ends_at = escape.end() if is_high else -1
    return high_ends_at - 6 if high_ends_at >= 0 else None
