"""Some rows of a table that Arrow reads, as a part of a source."""

from dataclasses import dataclass, replace
from typing import Any

from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources.part import Row
from jaxpeft.errors import InputError


@dataclass(frozen=True)
class Table:
    """Some rows of a file, as Arrow's bytes: they become objects where they are used.

    Attributes:
        place: the file or data set, for messages.
        stream: the rows in Arrow's form for sending.
        number: the number of the first row.
        count: how many rows there are.
        done: the share of the source that is read with them.
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
                f"{self.place} (rows {self.number} to {last}): not a valid "
                f"table ({error})"
            ) from error
        return [
            Row(value, f"{self.place} (row {number})")
            for number, value in enumerate(values, self.number)
        ]

    def each(self, rejects: Rejects) -> list[Row | None]:
        """Likewise, since all can be read."""
        return [*self.rows(rejects)]

    def first(self, count: int) -> "Table":
        """The part that has the first `count` rows alone."""
        return replace(self, count=count)


def table(place: str, batch: Any, number: int, done: float) -> Table:
    """A part of some rows that Arrow holds.

    Args:
        place: the file or data set, for messages.
        batch: a table or record batch.
        number: the number of its first row.
        done: the share of the source that is read with it.
    """
    import pyarrow  # pyright: ignore[reportMissingImports]

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return Table(place, sink.getvalue().to_pybytes(), number, batch.num_rows, done)


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
