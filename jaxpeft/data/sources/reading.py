"""The parts of a source, whatever kinds of files it has."""

import hashlib
import json
from collections.abc import Callable, Iterator

from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import (
    csv_file,
    dataset,
    json_file,
    jsonl,
    parquet_file,
    remote,
    txt_file,
)
from jaxpeft.data.sources.files import found, kind
from jaxpeft.data.sources.opened import opened
from jaxpeft.data.sources.part import SIZE, Part, Row
from jaxpeft.data.sources.source import Source
from jaxpeft.errors import InputError

READERS: dict[str, Callable[[str], Iterator[Part]]] = {
    ".json": json_file.read,
    ".jsonl": jsonl.read,
    ".csv": csv_file.read,
    ".txt": txt_file.read,
    ".parquet": parquet_file.read,
}


def parts(source: str | Source, max_rows: int | None = None) -> Iterator[Part]:
    """The parts of a file, of a directory's files, or of a data set, in their order.

    A directory's files are those directly in it with a known suffix, by name; hidden
    ones are no data (`._train.json` is what macOS keeps beside train.json).

    Args:
        source: the file, directory or data set, or its path alone.
        max_rows: the first so many records only, those that cannot be read among them;
            no more is read. None: all.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, cannot be decoded, or holds no records.
    """
    source = source if isinstance(source, Source) else Source(source)
    left = max_rows
    total = 0
    for part in _all_parts(source):
        if not part.count:
            continue
        if left is not None and part.count >= left:
            yield part.first(left)
            return
        total += part.count
        left = None if left is None else left - part.count
        yield part
    if not total:
        raise InputError(f"{source}: holds no records; give a file with at least one")


def _all_parts(source: Source) -> Iterator[Part]:
    where = found(source)
    if where.is_dataset:
        yield from dataset.read(source, where.folder)
    for file in where.files:
        yield from READERS[kind(file) or ""](file)


def read(
    source: str | Source, max_rows: int | None = None, rejects: Rejects | None = None
) -> list[Row]:
    """The rows of a source, all at once.

    Args:
        source: as of `parts`.
        max_rows: as of `parts`.
        rejects: is given the rows that cannot be read; None: they are an error.

    Raises:
        InputError: as of `parts`, or rows cannot be read.
    """
    collected = rejects or Rejects(str(source))
    rows = [row for part in parts(source, max_rows) for row in part.rows(collected)]
    if rejects is None:
        collected.settle(len(rows) + collected.count)
    return rows


def identity(source: str | Source) -> str:
    """What changes where a source's records may: a hash.

    Of files it is one of their bytes, whatever they are called, or elsewhere of what
    the server calls their version; of a data set of the hub, of its commit where one is
    known.

    Args:
        source: as of `parts`.

    Raises:
        InputError: it is not there.
    """
    source = source if isinstance(source, Source) else Source(source)
    where = found(source)
    digest = hashlib.blake2b(digest_size=16)
    for file in where.files:
        content = remote.version(file) if remote.is_remote(file) else None
        digest.update(f"{kind(file)} {content or _hash(file)}\n".encode())
    if where.is_dataset:
        version = where.folder is None and dataset.commit(source)
        known = [version] if version else dataset.files(source, where.folder)
        about = [source.path, source.name, source.split or "train", known]
        about += [source.data_dir] if source.data_dir else []
        digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def _hash(file: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with opened(file, packed=True) as source:
        while block := source.file.read(SIZE):
            digest.update(block)
    return digest.hexdigest()
