"""Files beneath a folder, opened without leaving it: no link is followed on the way.

What stands in a folder of runs is whatever somebody put there. So nothing here waits
(a pipe), follows (a link), or reads without bound.
"""

import errno
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from jaxpeft.rundir.files import finite

LARGEST = 2**1000  # so that a float can hold it
MOST = 16 * 2**20  # bytes of a file that is read whole


def opened(folder: Path, name: str) -> BinaryIO:
    """A regular file beneath a folder, open for reading.

    Args:
        folder: the folder.
        name: the path of the file from there, with slashes.

    Raises:
        OSError: there is none, it is no regular file, a part of its path is a link or
            leads upward, or it must not be read.
    """
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or any(part in ("..", "/") for part in parts):
        raise FileNotFoundError(errno.ENOENT, "is no path within", name)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(parts[-1], flags, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is no regular file", name)
    return os.fdopen(file, "rb")


def text(folder: Path, name: str, most: int = MOST) -> str:
    """The text of a file; what is no UTF-8 in it is replaced.

    Args:
        folder: the folder.
        name: the path of the file from there.
        most: bytes; what follows is left out.

    Raises:
        OSError: see `opened`.
    """
    with opened(folder, name) as file:
        return file.read(most).decode("utf-8", "replace")


def end_of(folder: Path, name: str, most: int) -> str:
    """The last so many bytes of a file as text, from the beginning of a line on.

    Args:
        folder: the folder.
        name: the path of the file from there.
        most: bytes.

    Raises:
        OSError: see `opened`.
    """
    with opened(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - most))
        found = file.read(most)
    if size > most:
        found = found[found.find(b"\n") + 1 :]
    return found.decode("utf-8", "replace")


def json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read.

    Args:
        folder: the folder.
        name: the path of the file from there.
    """
    found = json_value(folder, name)
    return found if isinstance(found, dict) else {}


def json_value(folder: Path, name: str) -> Any:
    """The value in a JSON file; None where there is none that can be read.

    None also stands in it for each number that no float can hold.

    Args:
        folder: the folder.
        name: the path of the file from there.
    """
    try:
        with opened(folder, name) as file:
            return json.loads(
                file.read(MOST),
                parse_int=_whole,
                parse_float=lambda text: finite(float(text)),
                parse_constant=lambda text: None,
            )
    except (OSError, ValueError, RecursionError):
        return None


def _whole(text: str) -> int | None:
    value = int(text)
    return value if abs(value) < LARGEST else None


def shown(path: str | Path) -> str:
    """A path as text that can be sent: what is no UTF-8 in it is replaced."""
    return str(path).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
