"""A seal over a directory: the size and hash of every file, checked before it is used.

Storage formats rarely notice damage themselves: a flipped bit in an array file reads
back as a wrong number. `seal` is called once a directory is complete, `verify` before
anything in it is believed.
"""

import hashlib
import json
from pathlib import Path

from jaxpeft.replacing import PARTIAL, flush, replacing

MANIFEST = "manifest.json"
_UNNAMED = MANIFEST + PARTIAL


def seal(directory: Path) -> None:
    """Writes `manifest.json`: `{relative path: [size, blake2b hex]}` of every file.

    All files reach the disk before the manifest does, and the manifest takes its name
    last, so that a power cut leaves either a directory without a manifest or one whose
    manifest tells the truth.

    Args:
        directory: a complete directory.

    Raises:
        OSError: the directory cannot be written.
    """
    entries = {}
    folders = [directory]
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir():
            folders.append(path)
        elif name not in (MANIFEST, _UNNAMED):
            flush(path)
            entries[name] = [path.stat().st_size, _digest(path)]
    for folder in folders:
        flush(folder)

    with replacing(directory / MANIFEST, durable=True) as unnamed:
        unnamed.write_text(json.dumps(entries, indent=1), encoding="utf-8")


def verify(directory: Path) -> list[str]:
    """What is wrong with a sealed directory; nothing if it is intact.

    Noticed are a missing or unreadable manifest and every missing, additional, resized
    or changed file. Only files met in the directory are opened, never a path that the
    manifest names.

    Args:
        directory: a directory that was sealed.

    Returns:
        One sentence a file.
    """
    try:
        entries = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    if not isinstance(entries, dict):
        return [f"{MANIFEST} does not hold a table of files"]

    present = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
    present.pop(MANIFEST, None)
    problems = [
        f"{name} is missing" for name in sorted(entries.keys() - present.keys())
    ]
    for name, path in present.items():
        if name not in entries:
            problems.append(f"{name} does not belong to it")
        elif problem := _compare(path, entries[name]):
            problems.append(f"{name} {problem}")
    return problems


def _compare(path: Path, entry: object) -> str | None:
    """What differs between a file and its entry, or None."""
    try:
        size = path.stat().st_size
        if path.is_symlink() or not path.is_file():
            return "is not a regular file"
        if not isinstance(entry, list) or len(entry) != 2:
            return f"has a malformed entry in {MANIFEST}"
        if size != entry[0]:
            return f"has {size} bytes, not {entry[0]}"
        if _digest(path) != entry[1]:
            return "has changed"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
