"""Data files -> rows: json, jsonl, csv, txt and parquet, read strictly.

Whatever cannot be read exactly is refused with `file:line`; nothing is repaired or
skipped in silence.
"""

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpeft.config import paths
from jaxpeft.data.csv_text import parse_csv
from jaxpeft.data.json_text import parse_json, parse_json_lines
from jaxpeft.data.rejects import Rejects
from jaxpeft.errors import InputError, near


class Row(NamedTuple):
    """One record and where it stands.

    Attributes:
        value: the columns by name, or for a txt file one document.
        place: where it stands, for messages, such as `train.jsonl:3 (row 3)`.
    """

    value: dict[str, Any] | str
    place: str


def read(
    path: str, max_rows: int | None = None, rejects: Rejects | None = None
) -> list[Row]:
    """The rows of a file, or of a directory's files.

    A directory's files are those directly in it with a known suffix, by name; hidden
    ones are no data (`._train.json` is what macOS keeps beside train.json).

    Args:
        path: the file or directory, or `jaxpeft:` and the name of one that ships.
        max_rows: read the first so many rows only; None: all.
        rejects: is given the rows that cannot be read; None: they are an error.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, cannot be decoded, or holds no rows; or rows cannot be read.
    """
    collected = rejects or Rejects(path)
    rows: list[Row] = []
    for file in found(path):
        rows += READERS[file.suffix.lower()](file, collected)
        if max_rows is not None and len(rows) >= max_rows:
            rows = rows[:max_rows]
            break
    if rejects is None:
        collected.settle(len(rows) + collected.count)
    if not rows and not collected.count:
        raise InputError(f"{path}: holds no records; give a file with at least one")
    return rows


def found(name: str) -> list[Path]:
    """The files that `read` would read; none is opened.

    Args:
        name: the file or directory, or `jaxpeft:` and the name of one that ships.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, or is one without data files.
    """
    path = paths.find(name)
    if path.is_dir():
        root = path.resolve()
        files = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in READERS and not file.name.startswith(".")
        )
        for file in files:
            if not file.resolve().is_relative_to(root):
                raise InputError(
                    f"{file}: leads out of {path} (to {file.resolve()}); name that "
                    "file itself as a source"
                )
        if not files:
            raise InputError(f"{path}: this directory holds no {_suffixes()} file")
        return files
    if not path.exists():
        raise _missing(path)
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'!r}; "
            f"convert it to one of {_suffixes()}"
        )
    return [path]


def _missing(path: Path) -> InputError:
    """Says where a path led that is not there, and what is called nearly so."""
    folder = Path(os.path.abspath(path.parent))
    is_there = folder.is_dir()
    where = f"looked in the folder {folder}"
    if not is_there:
        where += ", which is missing"
    if not path.is_absolute():
        where += " (relative paths are relative to the current directory)"
    beside = sorted(folder.iterdir()) if is_there else ()
    names = [f.name for f in beside if f.suffix.lower() in READERS or f.is_dir()]
    # All data files end alike: what follows the dot says little of what was meant.
    tail = near(path.stem, names, lambda name: Path(name).stem) + paths.remedy(path)
    return InputError(f"{path}: there is no such data file; {where}{tail}")


def _suffixes() -> str:
    return ", ".join(READERS)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _text(path: Path) -> str:
    data = _bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not valid UTF-8; save "
            "the file in the encoding UTF-8"
        ) from error


def _read_json(path: Path, rejects: Rejects) -> list[Row]:
    return _rows(parse_json(_text(path), path), rejects)


def _read_jsonl(path: Path, rejects: Rejects) -> list[Row]:
    return _rows(parse_json_lines(_text(path), path), rejects)


def _read_csv(path: Path, rejects: Rejects) -> list[Row]:
    return _rows(parse_csv(_text(path), path), rejects)


def _rows(records: Sequence[tuple[str, Any]], rejects: Rejects) -> list[Row]:
    rows = []
    for place, value in records:
        if isinstance(value, dict):
            rows.append(Row(value, place))
        elif isinstance(value, InputError):
            rejects.add(value)
        else:
            rejects.add(
                InputError(
                    f"{place}: a record has to be an object with named columns; this "
                    f"is {type(value).__name__} {str(value)[:40]!r}"
                )
            )
    return rows


def _read_txt(path: Path, rejects: Rejects) -> list[Row]:
    """Documents: blocks between blank lines, or every line where no line is blank."""
    text = _text(path).replace("\r\n", "\n").strip("\n")
    separator = r"\n(?:[ \t]*\n)+" if re.search(r"\n[ \t]*\n", text) else r"\n"
    documents = (d for d in re.split(separator, text) if d.strip())
    return [Row(d, f"{path} (document {n})") for n, d in enumerate(documents, 1)]


def _read_parquet(path: Path, rejects: Rejects) -> list[Row]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{path}: reading parquet needs pyarrow; pip install 'jaxpeft[datasets]'"
        ) from error
    try:
        values = pyarrow.parquet.read_table(io.BytesIO(_bytes(path))).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a valid parquet file ({error})") from error
    return [Row(value, f"{path} (row {n})") for n, value in enumerate(values, 1)]


READERS: dict[str, Callable[[Path, Rejects], list[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
