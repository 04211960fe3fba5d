"""CSV text -> records by column, with the line of whatever is wrong."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError

# csv refuses fields over 128 KiB unless told otherwise; documents are often longer.
_FIELD_LIMIT = 2**31 - 1
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


def parse_csv(text: str, path: Path) -> list[tuple[str, Any]]:
    """The records of a CSV file, and where each stands.

    Columns are separated by what a first line such as `sep=;` names; without one, by
    commas, or by semicolons or tabs where the header has more of them outside quotes.

    Args:
        text: what the file holds, its header being the names of the columns.
        path: the file, for messages.

    Returns:
        (place, {column: text}) of each record that is not blank; an InputError in place
            of the columns where there are more or fewer than names.

    Raises:
        InputError: the text is no CSV, or its header does not name the columns.
    """
    limit = csv.field_size_limit(_FIELD_LIMIT)
    named = _NAMED.match(text)
    separator = named[1] if named else _separator(text)
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, strict=True, delimiter=separator)
    try:
        if named:
            next(reader)
        return list(_records(reader, separator, path))
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); quote fields with "
            '"..." and double the quotes inside them'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _separator(text: str) -> str:
    header = _HEADER.match(text)
    bare = _QUOTED.sub("", header[0]) if header else ""
    return max(_SEPARATORS, key=bare.count)  # of equally many, the first


def _records(reader: Any, separator: str, path: Path) -> Iterator[tuple[str, Any]]:
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
            yield place, dict(zip(header, fields))
            continue
        yield (
            place,
            InputError(
                f"{place}: {len(fields)} fields, but the header names {len(header)} "
                f"columns, both split at {separator!r}; quote fields that hold "
                f"{separator!r}, or name another separator above the header, in a line "
                f"such as sep={',' if separator == ';' else ';'}"
            ),
        )
