"""Writing the files of a folder so that nobody ever sees half of one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpeft.errors import InputError


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `directory` once the block succeeds.

    Files of the same name are replaced, others stay; weights move before the JSON that
    describes them. When the block fails nothing is left behind. Raises InputError where
    the place cannot be written (a full disk, missing rights, a file in the way).
    """
    created = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=directory, prefix=".partial-"))
        try:
            yield partial
            files = sorted(partial.iterdir(), key=lambda p: (p.suffix == ".json", p))
            for file in files:
                _sync(file)
            for file in files:
                os.replace(file, directory / file.name)
            _sync(directory)
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


def _sync(path: Path) -> None:
    """Forces a file or a folder's entries to the disk, so that they survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
