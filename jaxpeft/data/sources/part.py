"""A part of a source: rows that can be read by themselves, and where each stands."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from jaxpeft.data.rejects import Rejects
from jaxpeft.errors import InputError

# About so many bytes or characters are one part: enough that handing it to another
# process costs nothing beside its rendering, so few that all processes have some.
SIZE = 1 << 20
_MOST_ROWS = 4096


class Row(NamedTuple):
    """One record and where it stands.

    Attributes:
        value: the columns by name, or for a txt file one document.
        place: where it stands, for messages, such as `train.jsonl:3 (row 3)`.
    """

    value: dict[str, Any] | str
    place: str


class Part(Protocol):
    """A part of a source, which a process reads that may be another one.

    It holds bytes or records, no open file.

    Attributes:
        count: its records, those that cannot be read among them.
        done: the share of its file that is read when it is, from 0 to 1.
    """

    @property
    def count(self) -> int: ...

    @property
    def done(self) -> float: ...

    def rows(self, rejects: Rejects) -> list[Row]:
        """Its rows in their order; `rejects` is given those that cannot be read.

        Raises:
            InputError: the file is not what its name says.
        """
        ...

    def each(self, rejects: Rejects) -> list[Row | None]:
        """Likewise, with None in the place of those that cannot be read: `count`."""
        ...

    def first(self, count: int) -> "Part":
        """The part that has its first `count` records alone."""
        ...


def row(place: str, value: Any) -> Row | InputError:
    """The row of a record, or what is wrong with it: it has no named columns.

    Args:
        place: where the record stands.
        value: the record.
    """
    if isinstance(value, dict):
        return Row(value, place)
    return InputError(
        f"{place}: a record has to be an object with named columns; this is "
        f"{type(value).__name__} {str(value)[:40]!r}"
    )


def usable(item: Row | InputError, rejects: Rejects) -> Row | None:
    """A row, or None for one that cannot be used.

    Args:
        item: the row, or what is wrong with it.
        rejects: is given what is wrong.
    """
    if isinstance(item, InputError):
        rejects.add(item)
        return None
    return item


@dataclass(frozen=True)
class Records:
    """A part whose rows have been read, since their ends are found by reading only.

    Attributes:
        items: the rows, or what is wrong with each.
        done: the share of its file that is read with it.
    """

    items: tuple[Row | InputError, ...]
    done: float

    @property
    def count(self) -> int:
        """The records of the part."""
        return len(self.items)

    def rows(self, rejects: Rejects) -> list[Row]:
        """The rows; `rejects` is given those that cannot be read."""
        return [item for item in self.each(rejects) if item is not None]

    def each(self, rejects: Rejects) -> list[Row | None]:
        """The rows, None for those that cannot be read."""
        return [usable(item, rejects) for item in self.items]

    def first(self, count: int) -> "Records":
        """The part that has the first `count` records alone."""
        return replace(self, items=self.items[:count])


def batched(
    items: Iterable[tuple[int, Row | InputError]], done: Callable[[], float]
) -> Iterator[Records]:
    """Rows that are read one by one, as parts of about `SIZE` characters.

    Args:
        items: (characters, row or what is wrong with it), in their order.
        done: what share of the file has been read.
    """
    held: list[Row | InputError] = []
    size = 0
    for characters, item in items:
        held.append(item)
        size += characters
        if size >= SIZE or len(held) >= _MOST_ROWS:
            yield Records(tuple(held), done())
            held, size = [], 0
    if held:
        yield Records(tuple(held), 1.0)
