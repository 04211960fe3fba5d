"""One process writes a run directory: a second one is refused, not interleaved."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from jaxpeft.console import warn
from jaxpeft.errors import InputError

LOCK = ".lock"


class RunLock:
    """Holds the lock file of a run directory for the length of a `with` block.

    The operating system lets go of the lock when the process ends, however it ends, so
    a run that was killed never blocks its own repetition.

    Args:
        directory: the run directory, made if needed as the block begins.

    Attributes:
        path: the lock file.

    Raises:
        InputError: as the block begins, another process holds the lock, which is named,
            or the directory cannot be written.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK
        self._file: int | None = None

    def __enter__(self) -> "RunLock":
        directory = self.path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                self._file = self._acquire()
            os.ftruncate(self._file, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            os.pwrite(self._file, json.dumps(holder).encode(), 0)
        except OSError as error:
            self._release()
            raise InputError(
                f"output_dir {str(directory)!r} cannot be written: {error.strerror}; "
                "make room or permit writing there, or choose another output_dir"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Removed while still held: whoever opened this file meanwhile sees in
        # `_acquire` that it is no longer the directory's lock file.
        # A directory that can no longer be written must not hide the block's own error.
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._release()

    def _acquire(self) -> int | None:
        """The locked file's descriptor; None if its holder removed it just now."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(self.path)):
                return file
        except BlockingIOError:
            holder = _describe(os.pread(file, 4096, 0))
            os.close(file)
            raise InputError(
                f"output_dir {str(self.path.parent)!r} is in use by {holder}; "
                "wait until it ends, or choose another output_dir"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                os.close(file)
                raise
            warn(
                f"{self.path.parent}: this file system has no locks; "
                "see to it that no other process writes this run"
            )
            return file
        os.close(file)
        return None

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _describe(content: bytes) -> str:
    """Who wrote the lock file; it may be empty for the moment after its creation."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
