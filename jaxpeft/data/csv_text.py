"""CSV text -> records by column, with the line of whatever is wrong."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError

# csv refuses fields over 128 KiB unless told otherwise; documents are often longer.
_FIELD_LIMIT = 2**31 - 1
# What else separates columns: spreadsheets write the first where the comma is the
# decimal sign.
_SEPARATORS = (";", "\t")
# What pandas calls a column without a name: the index that its to_csv writes first.
_INDEX = "Unnamed: 0"


def parse_csv(text: str, path: Path) -> list[tuple[str, Any]]:
    """The records of a CSV file, and where each stands.

    Columns are separated by commas, or where the first line has none, by semicolons or
    tabs.

    Args:
        text: what the file holds, its first line being the names of the columns.
        path: the file, for messages.

    Returns:
        (place, {column: text}) of each record that is not blank; an InputError in place
            of the columns where there are more or fewer than names.

    Raises:
        InputError: the text is no CSV, or its first line does not name the columns.
    """
    limit = csv.field_size_limit(_FIELD_LIMIT)
    separator = _separator(text)
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, strict=True, delimiter=separator)
    try:
        return list(_records(reader, separator, path))
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); quote fields with "
            '"..." and double the quotes inside them'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _separator(text: str) -> str:
    first = text.split("\n", 1)[0]
    found = [mark for mark in _SEPARATORS if mark in first]
    return found[0] if found and "," not in first else ","


def _records(reader: Any, separator: str, path: Path) -> Iterator[tuple[str, Any]]:
    header = next(reader, None)
    if header is None:
        return
    if header[:1] == [""] and len(header) > 1 and _INDEX not in header:
        header[0] = _INDEX
    if len(set(header)) < len(header) or "" in header:
        raise InputError(
            f"{path}:1: the header line needs distinct, non-empty column names; "
            f"it has {header}; give each column a name of its own"
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
                f"columns; quote fields that hold {separator!r}"
            ),
        )
