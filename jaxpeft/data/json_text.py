"""JSON text -> values, with the file and line of whatever is wrong."""

import json
import re
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_OF_ITS_OWN = re.compile(r"\{[^\n]*\}[ \t\r]*\n")
# The key that holds the records of a file that is one object; Hugging Face's datasets
# and SQuAD have them there.
_HOLDER = "data"


class _Repeated(ValueError):
    """A key that stands twice in one object."""


def parse_json(text: str, path: Path) -> list[tuple[str, Any]]:
    """The records of a file that holds JSON, and where each stands.

    That is a list of records; one record; an object whose `data` is the list; or
    record after record, each on a line of its own or over several.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Returns:
        (place, value) of each record; none if the text is blank. The value is an
            InputError where each record has a line and this one is no JSON.

    Raises:
        InputError: the text is no JSON, holds something else, repeats a key, or
            escapes half a surrogate pair.
    """
    refuse_lone_surrogates(text, path)
    if not text.strip():
        return []
    if text[_after_blank(text, 0)] != "{":
        value = _loads(text, path)
        if not isinstance(value, list):
            raise InputError(
                f"{path}: holds {type(value).__name__}, expected a list of records "
                "([{...}, {...}]), or one record a line in a .jsonl file"
            )
        return [(_nth(path, n), one) for n, one in enumerate(value, 1)]
    start = _after_blank(text, 0)
    if _LINE_OF_ITS_OWN.match(text, start):
        return _lines(text, path)
    first, end = _decode(text, start, path)
    if _after_blank(text, end) < len(text):
        return _objects(text, path)
    held = first.get(_HOLDER)
    if isinstance(held, list) and held and all(isinstance(one, dict) for one in held):
        return [(f"{path} ({_HOLDER}, row {n})", one) for n, one in enumerate(held, 1)]
    return [(_nth(path, 1), first)]


def _nth(path: Path, number: int) -> str:
    return f"{path} (row {number})"


def parse_json_lines(text: str, path: Path) -> list[tuple[str, Any]]:
    """The records of a file that holds one JSON value a line, and where each stands.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Returns:
        (place, value) for every line that is not blank; the value is an InputError
            where the line is no JSON or repeats a key.

    Raises:
        InputError: an escape is half a surrogate pair, or the file is JSON of another
            layout.
    """
    refuse_lone_surrogates(text, path)
    return _lines(text, path)


def _lines(text: str, path: Path) -> list[tuple[str, Any]]:
    records: list[tuple[str, Any]] = []
    # Not splitlines(): U+2028 and its like stand inside strings.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = _loads(content, path, first_line=line)
        except InputError as error:
            if not records and "\n" in text.strip() and _is_json(text):
                raise InputError(
                    f"{path}:{line}: a record has to stand on one line here; write "
                    "each on a line of its own, or name the file .json"
                ) from error
            value = error
        records.append((f"{path}:{line} (row {len(records) + 1})", value))
    return records


def _is_json(text: str) -> bool:
    """Whether a text begins with an object or a list over several lines."""
    try:
        json.JSONDecoder().raw_decode(text, _after_blank(text, 0))
    except (ValueError, RecursionError):
        return False
    return True


def _objects(text: str, path: Path) -> list[tuple[str, Any]]:
    """Objects one after another, each over as many lines as it likes."""
    records, at, line = [], 0, 1
    while (start := _after_blank(text, at)) < len(text):
        line += text.count("\n", at, start)
        value, at = _decode(text, start, path)
        records.append((f"{path}:{line} (row {len(records) + 1})", value))
        line += text.count("\n", start, at)
    return records


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


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
    except _Repeated as error:
        raise InputError(f"the key {str(error)!r} stands twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        raise _Repeated(next(k for k, _ in pairs if k in seen or seen.add(k)))
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _loads(text: str, path: Path, first_line: int = 1) -> Any:
    value, end = _decode(text, _after_blank(text, 0), path, first_line)
    if (rest := _after_blank(text, end)) < len(text):
        line = first_line + text.count("\n", 0, rest)
        raise InputError(
            f"{path}:{line}: not valid JSON (after the first value comes "
            f"{text[rest : rest + 20]!r}); correct or delete that line"
        )
    return value


def _decode(text: str, at: int, path: Path, first_line: int = 1) -> tuple[Any, int]:
    """The JSON value that begins at a character of a text, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno}); "
            "correct or delete that line"
        ) from error
    except _Repeated as error:
        line, row = _place_of_repeated(text, at)
        raise InputError(
            f"{path}:{first_line + line - 1}{row}: the key {str(error)!r} stands "
            "twice in one object; keep one of the two"
        ) from None
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"{path}:{first_line}: this JSON is nested too deeply or holds too long "
            f"a number ({error})"
        ) from error


def _place_of_repeated(text: str, at: int) -> tuple[int, str]:
    """The line that an object with a repeated key begins on, and its row in a list."""
    row = 0
    if text[at] == "[":
        at += 1
        while True:
            row += 1
            at = _after_blank(text, at)
            at = _after_blank(text, at + (text[at] == ","))
            try:
                _, at = _DECODER.raw_decode(text, at)
            except _Repeated:
                break
    return text.count("\n", 0, at) + 1, f" (row {row})" if row else ""


def refuse_lone_surrogates(text: str, path: Path) -> None:
    r"""Refuse JSON text with an escape such as `\ud83d` without its other half.

    Python's json turns it into a string that no tokenizer can encode.

    Args:
        text: what the file holds.
        path: the file, for messages.

    Raises:
        InputError: the text has such an escape; the message names the first one.
    """
    if (at := _lone_at(text)) is not None:
        line = text.count("\n", 0, at) + 1
        raise InputError(
            f"{path}:{line}: {text[at : at + 6]} is half of a surrogate pair and no "
            "character; write the character itself or both halves"
        )


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
