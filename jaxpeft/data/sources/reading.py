"""The parts of a source, whatever kinds of files it has."""

from collections.abc import Callable, Iterator

from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import csv_file, json_file, jsonl, parquet_file, txt_file
from jaxpeft.data.sources.files import found, kind
from jaxpeft.data.sources.part import Part, Row
from jaxpeft.errors import InputError

READERS: dict[str, Callable[[str], Iterator[Part]]] = {
    ".json": json_file.read,
    ".jsonl": jsonl.read,
    ".csv": csv_file.read,
    ".txt": txt_file.read,
    ".parquet": parquet_file.read,
}


def parts(path: str, max_rows: int | None = None) -> Iterator[Part]:
    """The parts of a file, or of a directory's files, in their order.

    A directory's files are those directly in it with a known suffix, by name; hidden
    ones are no data (`._train.json` is what macOS keeps beside train.json).

    Args:
        path: the file or directory, or `jaxpeft:` and the name of one that ships.
        max_rows: the first so many records only, those that cannot be read among them;
            no more is read. None: all.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, cannot be decoded, or holds no records.
    """
    left = max_rows
    total = 0
    for file in found(path):
        for part in READERS[kind(file) or ""](file):
            if not part.count:
                continue
            if left is not None and part.count >= left:
                yield part.first(left)
                return
            total += part.count
            left = None if left is None else left - part.count
            yield part
    if not total:
        raise InputError(f"{path}: holds no records; give a file with at least one")


def read(
    path: str, max_rows: int | None = None, rejects: Rejects | None = None
) -> list[Row]:
    """The rows of a file, or of a directory's files, all at once.

    Args:
        path: as of `parts`.
        max_rows: as of `parts`.
        rejects: is given the rows that cannot be read; None: they are an error.

    Raises:
        InputError: as of `parts`, or rows cannot be read.
    """
    collected = rejects or Rejects(path)
    rows = [row for part in parts(path, max_rows) for row in part.rows(collected)]
    if rejects is None:
        collected.settle(len(rows) + collected.count)
    return rows
