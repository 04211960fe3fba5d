"""CSV files -> records by column, with the line of whatever is wrong."""

import csv
import re
from collections.abc import Iterator
from typing import Any

from jaxpeft.data.sources.opened import opened_text
from jaxpeft.data.sources.part import Part, Row, batched
from jaxpeft.errors import InputError

# csv refuses fields over 128 KiB unless told otherwise; documents are often longer.
_FIELD_LIMIT = 2**31 - 1
_MOST_HEADER = 1 << 16  # characters of a file in which its header is looked for
# What separates columns: spreadsheets write the second where the comma is the decimal
# sign.
_SEPARATORS = (",", ";", "\t")
# The line above the header by which Excel is told the separator.
_NAMED = re.compile(r'"?sep=([^\w"\r\n])"?[,;\t ]*(?:[\r\n]|$)', re.IGNORECASE)
# The header, which may hold line breaks in quotes.
_HEADER = re.compile(r'(?:[^"\r\n]+|"[^"]*")*')
_QUOTED = re.compile(r'"[^"]*"')
# What pandas calls a column without a name: the index that its to_csv writes first.
_INDEX = "Unnamed: 0"


def read(path: str) -> Iterator[Part]:
    """The parts of a CSV file.

    Columns are separated by what a first line such as `sep=;` names; without one, by
    commas, or by semicolons or tabs where the header has more of them outside quotes.

    Args:
        path: the file, whose header is the names of the columns.

    Raises:
        InputError: it cannot be read, is no CSV, or its header does not name the
            columns.
    """
    with opened_text(path) as (text, _):
        head = text.read(_MOST_HEADER)
    named = _NAMED.match(head)
    separator = named[1] if named else _separator(head)
    with opened_text(path) as (text, source):
        reader = csv.reader(text, strict=True, delimiter=separator)
        try:
            if named:
                next(reader)
            records = _records(reader, separator, path)
            yield from _with_long_fields(batched(records, source.done))
        except csv.Error as error:
            raise InputError(
                f"{path}:{reader.line_num}: not valid CSV ({error}); quote fields with "
                '"..." and double the quotes inside them'
            ) from error


def _with_long_fields(parts: Iterator[Part]) -> Iterator[Part]:
    """The parts, each read without csv's limit for the length of a field."""
    while True:
        limit = csv.field_size_limit(_FIELD_LIMIT)
        try:
            part = next(parts, None)
        finally:
            csv.field_size_limit(limit)
        if part is None:
            return
        yield part


def _separator(text: str) -> str:
    header = _HEADER.match(text)
    bare = _QUOTED.sub("", header[0]) if header else ""
    return max(_SEPARATORS, key=bare.count)  # of equally many, the first


def _records(
    reader: Any, separator: str, path: str
) -> Iterator[tuple[int, Row | InputError]]:
    header = next(reader, None)
    if header is None:
        return
    if header[:1] == [""] and len(header) > 1 and _INDEX not in header:
        header[0] = _INDEX
    if len(set(header)) < len(header) or "" in header:
        raise InputError(
            f"{path}:{reader.line_num}: the header line needs distinct, non-empty "
            f"column names; split at {separator!r} it has {header}; give each column "
            "a name of its own"
        )
    number = 0
    for fields in reader:
        if not fields:
            continue
        number += 1
        place = f"{path}:{reader.line_num} (row {number})"
        if len(fields) == len(header):
            size = sum(map(len, fields))
            yield size, Row(dict(zip(header, fields)), place)
            continue
        yield (
            0,
            InputError(
                f"{place}: {len(fields)} fields, but the header names {len(header)} "
                f"columns, both split at {separator!r}; quote fields that hold "
                f"{separator!r}, or name another separator above the header, in a line "
                f"such as sep={',' if separator == ';' else ';'}"
            ),
        )
