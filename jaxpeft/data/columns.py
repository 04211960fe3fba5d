"""A record's columns by name and type, under the user's own names for them."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.errors import InputError, suggest

Record = Mapping[str, Any]
Fields = Mapping[str, str]


def value_of(record: Record, fields: Fields, name: str, *, required: bool) -> Any:
    """The value of column `fields.get(name, name)`; None where it is absent or null.

    Raises:
        InputError: it is absent and required, or named in `fields`.
    """
    column = fields.get(name, name)
    # A column that the user named himself has to be there.
    if record.get(column) is None and (required or name in fields):
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
    """The text in a column; `default` where it is absent, or required without one.

    Raises:
        InputError: it is no text, or is required and absent.
    """
    value = value_of(record, fields, name, required=default is None)
    if value is None:
        return default or ""
    if not isinstance(value, str):
        raise _mistyped(fields.get(name, name), "text", value)
    return value


def list_of(record: Record, fields: Fields, name: str, *, required=True) -> list[Any]:
    """The list in a column; [] where it is absent and not required.

    Raises:
        InputError: it is no list, or is required and absent.
    """
    value = value_of(record, fields, name, required=required)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _mistyped(fields.get(name, name), "a list", value)
    return value


def _mistyped(column: str, expected: str, value: Any) -> InputError:
    return InputError(
        f"column {column!r} has to be {expected}; it is {type(value).__name__} "
        f"{str(value)[:40]!r}"
    )
