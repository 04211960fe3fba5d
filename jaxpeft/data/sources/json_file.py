"""Files that hold JSON: a list of records, one record, or record after record.

Only the value at hand is in memory, with the text around it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from jaxpeft.data.json_text import (
    after_blank,
    goes_on,
    raw_value,
    refuse_lone_surrogates,
    wrong,
)
from jaxpeft.data.sources import jsonl
from jaxpeft.data.sources.opened import opened, opened_text
from jaxpeft.data.sources.part import SIZE, Part, Row, batched, row
from jaxpeft.errors import InputError

# One value may not be longer, in characters: a list below `data` is one.
_LONGEST = 1 << 28
_LINE_OF_ITS_OWN = re.compile(rb"\s*\{[^\n]*\}[ \t\r]*\n")
# The key that holds the records of a file that is one object; Hugging Face's datasets
# and SQuAD have them there.
_HOLDER = "data"
# An escape or a literal that breaks off is an error so far before the end, at most.
_NEAR = 16

Item = tuple[int, Row | InputError]


def read(path: str) -> Iterator[Part]:
    """The parts of a file that holds JSON.

    That is a list of records; one record; an object whose `data` is the list; or
    record after record, each on a line of its own or over several.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, is no JSON, holds something else, or repeats a
            key.
    """
    if _has_lines(path):
        yield from jsonl.read(path)
        return
    with opened_text(path) as (text, source):
        window = _Window(text, path)
        first = window.next_character()
        if first == "[":
            yield from batched(_listed(window), source.done)
        elif first == "{":
            yield from batched(_objects(window), source.done)
        elif first:
            value, _ = window.value()
            window.end()
            raise InputError(_no_list(path, value))


def _has_lines(path: str) -> bool:
    """Whether the first line that is not blank is an object."""
    with opened(path) as source:
        while line := source.file.readline(_LONGEST):
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                return bool(_LINE_OF_ITS_OWN.match(line))
    return False


def _no_list(path: str, value: Any) -> str:
    return (
        f"{path}: holds {type(value).__name__}, expected a list of records ([{{...}}, "
        "{...}]), or one record a line in a .jsonl file"
    )


def _listed(window: "_Window") -> Iterator[Item]:
    """The values of a list."""
    window.skip()
    number, character = 0, window.next_character()
    while character != "]" or number:
        number += 1
        yield window.item(f"{window.path} (row {number})", number)
        if (character := window.next_character()) == "]":
            break
        window.expect(",", character)
        window.next_character()
    window.skip()
    window.end()


def _objects(window: "_Window") -> Iterator[Item]:
    """Objects one after another, each over as many lines as it likes."""
    place = f"{window.path}:{window.line_number()}"
    size, item = window.item(place + " (row 1)")
    if not window.next_character():
        yield from _alone(window.path, size, item)
        return
    yield size, item
    number = 1
    while window.next_character():
        number += 1
        place = f"{window.path}:{window.line_number()} (row {number})"
        yield window.item(place)


def _alone(path: str, size: int, item: Row | InputError) -> Iterator[Item]:
    """The records of a file that is one object."""
    value = {} if isinstance(item, InputError) else item.value
    held = value.get(_HOLDER) if isinstance(value, dict) else None
    if isinstance(held, list) and held and all(isinstance(one, dict) for one in held):
        each = size // len(held)
        for number, one in enumerate(held, 1):
            yield each, Row(one, f"{path} ({_HOLDER}, row {number})")
    elif isinstance(item, InputError):
        yield size, item
    else:
        yield size, item._replace(place=f"{path} (row 1)")


class _Window:
    """The part of a text that is being read.

    Args:
        stream: the text.
        path: the file, for messages.
    """

    def __init__(self, stream: TextIO, path: str):
        self.path = path
        self._stream, self._text, self._at = stream, "", 0
        self._line, self._column = 1, 1  # of the first character that is held
        self._counted = (0, 1)  # up to which character lines are counted, and the line
        self._is_whole = False

    def line_number(self) -> int:
        """The number of the line that is being read."""
        return self._line_at(self._at)

    def _line_at(self, at: int) -> int:
        """The number of the line of a character, not before the last one asked for."""
        before, line = self._counted
        self._counted = (at, line + self._text.count("\n", before, at))
        return self._counted[1]

    def next_character(self) -> str:
        """The next character that is not blank, which is not passed; "" at the end."""
        while True:
            self._at = after_blank(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_whole:
                return ""
            self._more()

    def skip(self) -> None:
        """Passes one character."""
        self._at += 1

    def expect(self, wanted: str, found: str) -> None:
        """Passes a character that has to be there.

        Raises:
            InputError: another one is found.
        """
        if found != wanted:
            error = json.JSONDecodeError(
                f"Expecting {wanted!r} delimiter", self._text, self._at
            )
            raise InputError(self._wrong(error))
        self._at += 1

    def end(self) -> None:
        """Checks that nothing follows.

        Raises:
            InputError: something does.
        """
        if self.next_character():
            raise InputError(goes_on(self._text, self._at, self.path, self._line))

    def item(self, place: str, number: int | None = None) -> Item:
        """The next value as a row, and its length in characters.

        Args:
            place: where it stands.
            number: its number in its list, if it is in one.

        Raises:
            InputError: it is no JSON.
        """
        value, text = self.value(number)
        line = self._line_at(self._at - len(text))
        try:
            refuse_lone_surrogates(value, text, self.path, line)
        except InputError as error:
            return len(text), error
        return len(text), row(place, value)

    def value(self, number: int | None = None) -> tuple[Any, str]:
        """The next value, which is passed, and its text.

        Args:
            number: its number in its list, if it is in one.

        Raises:
            InputError: it is no JSON, or longer than can be held.
        """
        while True:
            try:
                value, end = raw_value(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._is_whole or not self._breaks_off(error):
                    raise InputError(self._wrong(error, number)) from None
            else:
                if end < len(self._text) or self._is_whole:
                    begin, self._at = self._at, end
                    return value, self._text[begin:end]
            self._more()

    def _breaks_off(self, error: Exception) -> bool:
        """Whether a value may be one when more of the text has been read."""
        return isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(self._text) - _NEAR
            or error.msg.startswith("Unterminated string")
        )

    def _wrong(self, error: Exception, number: int | None = None) -> str:
        place = (self.path, self._line, self._column, number)
        return wrong(error, self._text, self._at, *place)

    def _more(self) -> None:
        """Reads on, twice as much as is held, and forgets what has been passed."""
        passed = self._text[: self._at]
        self._line += passed.count("\n")
        line_end = passed.rfind("\n")
        self._column = (
            self._column + len(passed) if line_end < 0 else len(passed) - line_end
        )
        held = self._text[self._at :]
        if len(held) > _LONGEST:
            raise InputError(
                f"{self.path}:{self._line}: the value that begins here is longer than "
                f"{_LONGEST >> 20} million characters; write one record a line, in a "
                ".jsonl file"
            )
        more = self._stream.read(max(SIZE, len(held)))
        self._text, self._at, self._is_whole = held + more, 0, not more
        self._counted = (0, self._line)
