"""Which files a source's name means."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpeft.config import paths
from jaxpeft.data.sources import remote
from jaxpeft.data.sources.opened import PACKED
from jaxpeft.data.sources.source import Source, may_be_hub_id
from jaxpeft.errors import InputError, near

SUFFIXES = (".json", ".jsonl", ".csv", ".txt", ".parquet")
_SAVED = ("state.json", "dataset_dict.json")  # Arrow's files are beside them
_MAY_BE_PACKED = (".json", ".jsonl", ".csv", ".txt")


def kind(path: str) -> str | None:
    """The suffix that says what is in a file, packed or not; None: it cannot be read.

    Args:
        path: the file.
    """
    stem, suffix = os.path.splitext(remote.without_query(path).lower())
    if suffix in PACKED:
        suffix = os.path.splitext(stem)[1]
        return suffix if suffix in _MAY_BE_PACKED else None
    return suffix if suffix in SUFFIXES else None


class Found(NamedTuple):
    """What a source's name leads to.

    Attributes:
        files: the files that are read.
        is_dataset: whether they are the library `datasets`' to find.
        folder: where it is to look for them; None: on the hub.
    """

    files: Sequence[str] = ()
    is_dataset: bool = False
    folder: Path | None = None


def found(source: Source) -> Found:
    """What a source's name leads to; no file is opened, and the hub is not asked.

    Args:
        source: the file or directory, a pattern such as `data/*.jsonl`, the address of
            one elsewhere, `jaxpeft:` and the name of one that ships, or the hub id of a
            data set.

    Raises:
        InputError: the path does not exist, has an unknown suffix, leads out of its
            directory, or is one without data files; or a key does not go with it.
    """
    if remote.is_remote(source.path):
        _check_keys(source)
        return Found(_usable(source.path, *remote.listed(source.path)))
    path = paths.find(source.path)
    if path.is_dir():
        return _in_folder(source, path)
    if path.exists():
        _check_keys(source)
        return Found(_usable(str(path), [str(path)], several=False))
    if glob.has_magic(str(path)):
        _check_keys(source)
        files = sorted(glob.glob(str(path), recursive=True))
        return Found(_usable(source.path, files, several=True))
    if kind(path.name) or not may_be_hub_id(source.path):
        raise _missing(path)
    return Found(is_dataset=True)


def _check_keys(source: Source) -> None:
    """Refuses what goes with data sets alone."""
    for key in ("name", "split", "revision", "data_dir"):
        if value := getattr(source, key):
            raise InputError(
                f"{source.path}: {key} {value!r} goes with a data set of the hub or a "
                f"folder laid out like one, and this is a file; leave {key} out"
            )


def _usable(path: str, files: Sequence[str], several: bool) -> Sequence[str]:
    """Those of some files that can be read, each once."""
    usable = [
        file for file in files if kind(file) and not Path(file).name.startswith(".")
    ]
    for file in usable:
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in PACKED and stem in usable:
            raise InputError(
                f"{path}: holds {Path(stem).name} and, packed, {Path(file).name}, so "
                "that its records would be read twice; delete one of them, or name the "
                "other"
            )
    if usable:
        return usable
    if several:
        raise InputError(
            f"{path}: leads to no {_suffixes()} file, of {len(files)} that are there"
        )
    raise InputError(
        f"{path}: cannot read {Path(path).suffix or 'a file without suffix'!r}; "
        f"convert it to one of {_suffixes()}"
    )


def _in_folder(source: Source, folder: Path) -> Found:
    """The files directly in a folder, unless it is to be read as a data set."""
    if source.revision:
        raise InputError(
            f"{folder}: revision {source.revision!r} goes with a data set of the hub, "
            "and this is a folder; leave revision out"
        )
    for name in _SAVED:
        if (folder / name).is_file():
            raise InputError(
                f"{folder}: was written by save_to_disk of the library datasets; write "
                "its rows with to_parquet or to_json, and name that file"
            )
    files = _inside(folder)
    if files and not (source.name or source.split or source.data_dir):
        return Found(files)
    if files or any(kind(file.name) for file in folder.rglob("*")):
        return Found(is_dataset=True, folder=folder)
    raise InputError(f"{folder}: this directory holds no {_suffixes()} file")


def passed_over(source: Source) -> list[str]:
    """A line about data files further down in a source's folder, which are not read.

    Args:
        source: one that `found` leads to files.
    """
    if remote.is_remote(source.path):
        return []
    folder = paths.find(source.path)
    if not folder.is_dir() or source.name or source.split or source.data_dir:
        return []
    below = [
        file
        for file in folder.glob("*/**/*")
        if kind(file.name)
        and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    ]
    if not below or not _inside(folder):
        return []
    count = "1 data file is" if len(below) == 1 else f"{len(below):,} data files are"
    return [
        f"{source.path}: {count} not read, in folders below it, such as "
        f"{below[0].relative_to(folder)}; name them with a pattern, such as "
        f"{folder.name}/**/*{below[0].suffix}"
    ]


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
    names = [str(file) for file in files]
    return list(_usable(str(folder), names, several=True)) if names else []


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
