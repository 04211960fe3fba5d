"""Data files -> rows: json, jsonl, csv, txt and parquet, read strictly.

Whatever cannot be read exactly is refused with `file:line`; nothing is repaired or
skipped in silence.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxpeft.data.json_text import parse_json, parse_json_lines
from jaxpeft.errors import InputError, suggest

# csv refuses fields over 128 KiB unless told otherwise; documents are often longer.
_CSV_FIELD_LIMIT = 2**31 - 1


class Row(NamedTuple):
    """One record and where it stands.

    Attributes:
        value: the columns by name, or for a txt file one document.
        place: where it stands, for messages, such as `train.jsonl:3 (row 3)`.
    """

    value: dict[str, Any] | str
    place: str


def read(path: str, max_rows: int | None = None) -> list[Row]:
    """The rows of a file, or of a directory's files.

    A directory's files are those directly in it with a known suffix, by name.

    Args:
        path: the file or directory.
        max_rows: read the first so many rows only; None: all.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, cannot be decoded, or holds no rows.
    """
    rows: list[Row] = []
    for file in _files(Path(path)):
        rows += READERS[file.suffix.lower()](file)
        if max_rows is not None and len(rows) >= max_rows:
            rows = rows[:max_rows]
            break
    if not rows:
        raise InputError(f"{path}: holds no records; give a file with at least one")
    return rows


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        root = path.resolve()
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in READERS)
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
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        names = [f.name for f in beside if f.suffix.lower() in READERS]
        hint = suggest(path.name, names[:20]) or f"; look in {path.parent}"
        raise InputError(f"{path}: there is no such data file{hint}")
    if path.suffix.lower() not in READERS:
        raise InputError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'!r}; "
            f"convert it to one of {_suffixes()}"
        )
    return [path]


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


def _read_json(path: Path) -> list[Row]:
    text = _text(path)
    # Many tools write one object a line under the name .json.
    if text.lstrip()[:1] == "{":
        return _lines_to_rows(path, text)
    return [
        _row(value, path, None, number)
        for number, value in enumerate(parse_json(text, path), 1)
    ]


def _read_jsonl(path: Path) -> list[Row]:
    return _lines_to_rows(path, _text(path))


def _lines_to_rows(path: Path, text: str) -> list[Row]:
    parsed = parse_json_lines(text, path)
    return [_row(value, path, line, n) for n, (line, value) in enumerate(parsed, 1)]


def _row(value: Any, path: Path, line: int | None, number: int) -> Row:
    place = f"{path}:{line} (row {number})" if line else f"{path} (row {number})"
    if not isinstance(value, dict):
        raise InputError(
            f"{place}: a record has to be an object with named columns; this is "
            f"{type(value).__name__} {str(value)[:40]!r}"
        )
    return Row(value, place)


def _read_csv(path: Path) -> list[Row]:
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        return list(_csv_rows(reader, path))
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); quote fields with "
            '"..." and double the quotes inside them'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: Any, path: Path) -> Iterator[Row]:
    header = next(reader, None)
    if header is None:
        return
    if len(set(header)) < len(header) or "" in header:
        raise InputError(
            f"{path}:1: the header line needs distinct, non-empty column names; "
            f"it has {header}"
        )
    number = 0
    for fields in reader:
        if not fields:
            continue
        number += 1
        if len(fields) != len(header):
            raise InputError(
                f"{path}:{reader.line_num} (row {number}): {len(fields)} fields, but "
                f"the header names {len(header)} columns; quote fields that hold commas"
            )
        yield _row(dict(zip(header, fields)), path, reader.line_num, number)


def _read_txt(path: Path) -> list[Row]:
    """Documents: blocks between blank lines, or every line where no line is blank."""
    text = _text(path).replace("\r\n", "\n").strip("\n")
    separator = r"\n(?:[ \t]*\n)+" if re.search(r"\n[ \t]*\n", text) else r"\n"
    documents = (d for d in re.split(separator, text) if d.strip())
    return [Row(d, f"{path} (document {n})") for n, d in enumerate(documents, 1)]


def _read_parquet(path: Path) -> list[Row]:
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
    return [_row(value, path, None, number) for number, value in enumerate(values, 1)]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
