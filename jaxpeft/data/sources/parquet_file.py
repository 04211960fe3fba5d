"""Parquet files, some rows of a row group at a time."""

from collections.abc import Iterator
from typing import Any

from jaxpeft.data.sources.opened import opened
from jaxpeft.data.sources.part import SIZE
from jaxpeft.data.sources.table import Table, table, texts
from jaxpeft.errors import InputError

_MOST_ROWS = 4096


def read(path: str) -> Iterator[Table]:
    """The parts of a parquet file.

    Args:
        path: the file.

    Raises:
        InputError: pyarrow is missing, or the file cannot be read.
    """
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{path}: reading parquet needs pyarrow; pip install 'jaxpeft[datasets]'"
        ) from error
    faults = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    place, number = "", 1
    with opened(path) as source:
        if not source.file.seekable():
            raise InputError(
                f"{path}: the server sends this file only from its beginning on, and "
                "parquet is read from its end; fetch the file"
            )
        try:
            file = pyarrow.parquet.ParquetFile(source.file)
            columns = texts(file.schema_arrow)
            for group in range(file.num_row_groups):
                place = f", row group {group + 1}"
                for batch in _batches(file, group, columns):
                    done = (number + batch.num_rows) / (file.metadata.num_rows + 1)
                    yield table(path, batch, number, done)
                    number += batch.num_rows
        except faults as error:
            raise InputError(
                f"{path}{place}: not a valid parquet file ({error})"
            ) from error


def _batches(file: Any, group: int, columns: list[str]) -> Iterator[Any]:
    about = file.metadata.row_group(group)
    size = max(1, about.total_byte_size // max(1, about.num_rows))
    many = min(_MOST_ROWS, max(1, SIZE // size))
    return file.iter_batches(many, row_groups=[group], columns=columns)
