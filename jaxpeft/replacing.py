"""Writing beside and replacing, so that nobody ever reads half of what is written.

A reader, and whoever comes after a kill or a power cut, finds the old content or the
new one. On a full disk, or where a right is missing, writing fails with the operating
system's OSError while the old content still stands, and what was written beside it is
deleted; a folder's error (`files_of`) is an InputError that says what to do.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxpeft.errors import InputError

PARTIAL = ".partial"  # after the name of a file that is being written
BEGUN = f"{PARTIAL}-"  # before that of a folder of such files


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """The path to write a file at, which takes the place of `path` in the end.

    It lies in the same folder, as `path` with `.partial` after its name: what a killed
    process left there, or whoever made the folder, a link above all, is removed first.
    When the block fails it is deleted, and `path` stays as it was.

    Args:
        path: the file that is to be written; it need not exist, its folder must.
        durable: whether the new content is on the disk, and after it its name, when
            this returns. Without it a power cut may cost the file, a kill may not.

    Raises:
        OSError: where the place cannot be written or the disk is full.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        if durable:
            flush(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # what went wrong before is what to tell of
            partial.unlink()
        raise
    if durable:
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8 by `replacing`.

    Args:
        path: the file, which need not exist; its folder must.
        text: all that is to be in it.

    Raises:
        OSError: where the place cannot be written or the disk is full.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with (
        replacing(path) as partial,
        open(os.open(partial, flags, 0o666), "w", encoding="utf-8") as file,
    ):
        file.write(text)


def rename(path: Path, target: Path) -> None:
    """Gives a finished file or folder its name, which is on the disk on return.

    What is in it must be on the disk already (`flush`): a name that survives a power
    cut then stands for a content that did.

    Args:
        path: the finished file or folder.
        target: its name.

    Raises:
        OSError: where that is not permitted, or a folder of that name is not empty.
    """
    os.replace(path, target)
    flush(target.parent)


@contextmanager
def files_of(directory: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `directory` once the block succeeds.

    Files of the same name are replaced, others stay. All of them are on the disk before
    the first one moves, and weights move before the JSON that describes them. When the
    block fails nothing is left behind, `directory` itself included if it is new. What
    a killed process left there is removed.

    Args:
        directory: the folder to write into; it is made where it is missing.

    Raises:
        InputError: where the place cannot be written (a full disk, missing rights, a
            file in the way).
    """
    created = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in filter(is_leftover, list(directory.iterdir())):
            shutil.rmtree(path)
        partial = Path(tempfile.mkdtemp(dir=directory, prefix=BEGUN))
        try:
            yield partial
            files = sorted(partial.iterdir(), key=lambda p: (p.suffix == ".json", p))
            for file in files:
                flush(file)
            for file in files:
                os.replace(file, directory / file.name)
            flush(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be written ({error.strerror or error}); choose "
            "another folder, or free space and check its rights"
        ) from error
    finally:
        if created and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def is_leftover(path: Path) -> bool:
    """Whether this is a folder of files that were never moved to where they belong."""
    return path.name.startswith(BEGUN) and path.is_dir()


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: where it cannot be written there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
