"""A record's columns by name and type, under the user's own names for them."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.errors import InputError, suggest

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
    if missing or (required and record.get(column) is None):
        state = "is null" if column in record else "is missing"
        near = suggest(column, record).split("; choose from")[0]
        raise InputError(
            f"column {column!r} {state}; the record has {', '.join(map(str, record))}"
            f"{near} (name your own with fields: {{{name}: your_column}})"
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
        raise _mistyped(column_of(fields, name), "text", value)
    return value


def list_of(record: Record, fields: Fields, name: str, *, required=True) -> list[Any]:
    """The list that a record has in one column.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.
        name: the format's name for the column.
        required: whether the record must have it; otherwise an absent list is empty.

    Raises:
        InputError: the value is no list, or is required and absent.
    """
    value = value_of(record, fields, name, required=required)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _mistyped(column_of(fields, name), "a list", value)
    return value


def _mistyped(column: str, expected: str, value: Any) -> InputError:
    return InputError(
        f"column {column!r} has to be {expected}; it is {type(value).__name__} "
        f"{str(value)[:40]!r}"
    )
