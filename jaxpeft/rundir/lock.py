"""One process writes a run directory: a second one is refused, not interleaved.

While it does, the lock file says which process it is, and its time of change is renewed
every `BEAT` seconds: on a disk that hosts share nothing else tells that it is alive.
What ends it otherwise than well stands in `.ended`.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from jaxpeft import replacing
from jaxpeft.console import warn
from jaxpeft.errors import InputError, Preempted

LOCK, ENDED = ".lock", ".ended"
BEAT = 10.0  # seconds
MOST = 2000  # characters of a reason


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
        self._over = threading.Event()
        self._has_begun = False

    def __enter__(self) -> "RunLock":
        directory = self.path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                self._file = self._acquire()
            os.ftruncate(self._file, 0)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": round(time.time(), 3),
            }
            os.pwrite(self._file, json.dumps(holder).encode(), 0)
        except OSError as error:
            self._release()
            raise InputError(
                f"output_dir {str(directory)!r} cannot be written: {error.strerror}; "
                "make room or permit writing there, or choose another output_dir"
            ) from error
        self._over.clear()
        beat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        beat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        # What is refused before it has begun leaves the run as it was.
        is_refusal = isinstance(error, InputError) and not self._has_begun
        if error is not None and not is_refusal:
            self._say(error)
        # Removed while still held: whoever opened this file meanwhile sees in
        # `_acquire` that it is no longer the directory's lock file.
        # A directory that can no longer be written must not hide the block's own error.
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._release()

    def begin(self) -> None:
        """From here on the run changes: how it ended before no longer counts."""
        self._has_begun = True
        with contextlib.suppress(OSError):  # what is written next says it better
            (self.path.parent / ENDED).unlink(missing_ok=True)

    def _beat(self) -> None:
        """Renews the lock file's time of change until the block ends."""
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path, follow_symlinks=False)

    def _say(self, error: BaseException) -> None:
        """Writes what ended the block, where it has left anything to be asked about."""
        directory = self.path.parent
        asked = isinstance(error, Preempted) or not isinstance(error, Exception)
        now = datetime.datetime.now(datetime.UTC)
        ended = {
            "status": "preempted" if asked else "failed",
            "why": (str(error) or type(error).__name__)[:MOST],
            "when": now.isoformat(timespec="seconds"),
        }
        with contextlib.suppress(OSError):
            if any(entry.name != LOCK for entry in directory.iterdir()):
                replacing.write_text(directory / ENDED, json.dumps(ended) + "\n")

    def _acquire(self) -> int | None:
        """The locked file's descriptor; None if its holder removed it just now."""
        try:
            # A link here could lead to any file, which would then be overwritten.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(self.path, flags, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise InputError(
                f"{self.path}: is a link, and would be overwritten; remove it"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.lstat(self.path)):
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
