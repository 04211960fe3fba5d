"""A record's columns by name and type, under the user's own names for them."""

import math
from collections.abc import Mapping
from typing import Any

from jaxpeft.data.json_text import parse_value
from jaxpeft.errors import InputError, near

Record = Mapping[str, Any]
# The format's name for a column: the file's own, or None for one that is not read.
Fields = Mapping[str, str | None]


def column_of(fields: Fields, name: str) -> str:
    """The file's own name for a column of the format.

    Args:
        fields: the format's name for a column -> the file's.
        name: the format's name for the column, which is one that is read.
    """
    return fields.get(name) or name


def value_of(record: Record, fields: Fields, name: str, *, required: bool) -> Any:
    """The value that a record has in one column; None where it is absent or null.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's, or None for one that is
            not read.
        name: the format's name for the column.
        required: whether the record must have a value there.

    Raises:
        InputError: the value is required and absent or null, or the column is absent
            though `fields` names it.
    """
    if name in fields and fields[name] is None:
        if required:
            raise InputError(f"fields: {name} is null, but the format needs it")
        return None
    column = column_of(fields, name)
    # A column that the user named himself has to be there; a row may leave it empty.
    missing = name in fields and column not in record
    if required and column in record and record[column] is None:
        raise InputError(
            f"column {column!r} is null in this row; fill it or delete the row"
        )
    if missing or (required and column not in record):
        names = ", ".join(map(str, record))
        raise InputError(
            f"column {column!r} is missing; the record has {names or 'no columns'}"
            f"{near(column, record)} "
            f"(name your own with fields: {{{name}: your_column}})"
        )
    return record.get(column)


def string(
    record: Record, fields: Fields, name: str, default: str | None = None
) -> str:
    """The text that a record has in one column.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.
        name: the format's name for the column.
        default: the text where there is none; None: the text is required.

    Raises:
        InputError: the value is no text, or is required and absent.
    """
    value = value_of(record, fields, name, required=default is None)
    if value is None:
        return default or ""
    if not isinstance(value, str):
        optional = default is not None
        raise _mistyped(fields, name, "text", value, optional)
    return value


def list_of(record: Record, fields: Fields, name: str, *, required=True) -> list[Any]:
    """The list that a record has in one column, as such or as its JSON text.

    Text is what a CSV file can hold; an empty cell there is no list.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.
        name: the format's name for the column.
        required: whether the record must have it; otherwise an absent list is empty.

    Raises:
        InputError: the value is no list, or is required and absent.
    """
    value = found = value_of(record, fields, name, required=required)
    if isinstance(value, str) and not value.strip() and not required:
        value = None
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_value(value)
        except InputError as error:
            raise InputError(
                f"column {column_of(fields, name)!r} has to be a list; its text "
                f"{found[:40]!r} is {error}: write the list with json.dumps"
            ) from error
    if not isinstance(value, list):
        expected = "a list, or the JSON text of one"
        raise _mistyped(fields, name, expected, found, not required)
    return value


def weight(record: Record, fields: Fields) -> float:
    """What a record counts in the loss, its column `weight`; 1 where it has none.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: the value is no number from 0.
    """
    value = value_of(record, fields, "weight", required=False)
    if value is None or value == "":
        return 1.0
    return factor(value, f"column {column_of(fields, 'weight')!r}", _UNREAD)


_UNREAD = "; to leave it unread, fields: {weight: null}"


def factor(value: Any, place: str, remedy: str = "") -> float:
    """A number that something counts in the loss by.

    Args:
        value: as the file has it, in csv as text.
        place: where it stands, for the message.
        remedy: how the message ends.

    Raises:
        InputError: the value is no number from 0.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(
            f"{place} says what this counts in the loss, and has to be a number from "
            f"0; it is {type(value).__name__} {str(value)[:40]!r}{remedy}"
        )
    return number


def _mistyped(
    fields: Fields, name: str, expected: str, value: Any, optional: bool
) -> InputError:
    remedy = f"; to leave it unread, fields: {{{name}: null}}" if optional else ""
    return InputError(
        f"column {column_of(fields, name)!r} has to be {expected}; it is "
        f"{type(value).__name__} {str(value)[:40]!r}{remedy}"
    )
