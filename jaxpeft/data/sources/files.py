"""Which files a source's name means."""

import os
from pathlib import Path

from jaxpeft.config import paths
from jaxpeft.data.sources.opened import PACKED
from jaxpeft.errors import InputError, near

SUFFIXES = (".json", ".jsonl", ".csv", ".txt", ".parquet")
_MAY_BE_PACKED = (".json", ".jsonl", ".csv", ".txt")


def kind(path: str) -> str | None:
    """The suffix that says what is in a file, packed or not; None: it cannot be read.

    Args:
        path: the file.
    """
    stem, suffix = os.path.splitext(path.lower())
    if suffix in PACKED:
        suffix = os.path.splitext(stem)[1]
        return suffix if suffix in _MAY_BE_PACKED else None
    return suffix if suffix in SUFFIXES else None


def found(name: str) -> list[str]:
    """The files that `read` would read; none is opened.

    Args:
        name: the file or directory, or `jaxpeft:` and the name of one that ships.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, or is one without data files.
    """
    path = paths.find(name)
    if path.is_dir():
        return _inside(path)
    if not path.exists():
        raise _missing(path)
    if not kind(path.name):
        raise InputError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'!r}; "
            f"convert it to one of {_suffixes()}"
        )
    return [str(path)]


def _inside(folder: Path) -> list[str]:
    """The data files of a directory, by name."""
    root = folder.resolve()
    files = sorted(
        file
        for file in folder.iterdir()
        if kind(file.name) and not file.name.startswith(".")
    )
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise InputError(
                f"{file}: leads out of {folder} (to {file.resolve()}); name that file "
                "itself as a source"
            )
        if file.suffix.lower() in PACKED and file.with_suffix("") in files:
            raise InputError(
                f"{folder}: holds {file.stem} and, packed, {file.name}, so that its "
                "records would be read twice; delete one of them, or name the other"
            )
    if not files:
        raise InputError(f"{folder}: this directory holds no {_suffixes()} file")
    return [str(file) for file in files]


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
    names = [f.name for f in beside if kind(f.name) or f.is_dir()]
    # All data files end alike: what follows the dot says little of what was meant.
    tail = near(path.stem, names, lambda name: Path(name).stem) + paths.remedy(path)
    return InputError(f"{path}: there is no such data file; {where}{tail}")


def _suffixes() -> str:
    return ", ".join(SUFFIXES)
