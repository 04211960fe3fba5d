"""Parquet files, some rows of a row group at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources.opened import opened
from jaxpeft.data.sources.part import SIZE, Row
from jaxpeft.errors import InputError

_MOST_ROWS = 4096


@dataclass(frozen=True)
class Table:
    """Some rows of a file, as Arrow's bytes: they become objects where they are used.

    Attributes:
        place: the file, for messages.
        stream: the rows in Arrow's form for sending.
        number: the number of the first row.
        count: how many rows there are.
        done: the share of the file that is read with them.
    """

    place: str
    stream: bytes
    number: int
    count: int
    done: float

    def rows(self, rejects: Rejects) -> list[Row]:
        """The rows, all of which can be read.

        Raises:
            InputError: a text is not UTF-8.
        """
        import pyarrow  # pyright: ignore[reportMissingImports]

        table = pyarrow.ipc.open_stream(self.stream).read_all().slice(0, self.count)
        try:
            values = table.to_pylist()
        except UnicodeDecodeError as error:
            last = self.number + self.count - 1
            raise InputError(
                f"{self.place} (rows {self.number} to {last}): not a valid parquet "
                f"file ({error})"
            ) from error
        return [
            Row(value, f"{self.place} (row {number})")
            for number, value in enumerate(values, self.number)
        ]

    def first(self, count: int) -> "Table":
        """The part that has the first `count` rows alone."""
        return replace(self, count=count)


def table(place: str, batch: Any, number: int, done: float) -> Table:
    """A part of some rows that Arrow holds.

    Args:
        place: the file or data set, for messages.
        batch: a record batch.
        number: the number of its first row.
        done: the share of the source that is read with it.
    """
    import pyarrow  # pyright: ignore[reportMissingImports]

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Table(place, sink.getvalue().to_pybytes(), number, batch.num_rows, done)


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


def texts(schema: Any) -> list[str]:
    """The columns that may be of use: not pictures and sounds, which hold bytes.

    Args:
        schema: Arrow's.
    """
    import pyarrow.types as types  # pyright: ignore[reportMissingImports]

    def holds_bytes(kind: Any) -> bool:
        return types.is_struct(kind) and any(
            types.is_binary(field.type) or types.is_large_binary(field.type)
            for field in kind
        )

    return [field.name for field in schema if not holds_bytes(field.type)]
