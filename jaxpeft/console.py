"""Where commands write: results to standard output, remarks to standard error."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

LONG = 5.0  # seconds after which work is worth a line
EVERY = 30.0  # seconds from line to line of it
OFTEN = 0.2  # seconds from change to change of a line on a terminal
BAR = 20  # characters

_process: int | None = None  # among several that train together
_remarks: set[str] = set()  # that the command has made
_in_line: TextIO | None = None  # the standard output whose last line is not ended


class Closed(BrokenPipeError):
    """Who read standard output or standard error reads no more."""


def speak_as(process: int) -> None:
    """Makes this one process of several, of which the first alone speaks for all.

    What the others have to warn of or fail with is written under their number.

    Args:
        process: its number, from 0.
    """
    global _process
    _process = process


def say(text: str = "") -> None:
    """Writes a line to standard output at once, so that pipes and logs keep pace."""
    write(f"{text}\n")


def write(text: str) -> None:
    """Writes a part of a line to standard output at once."""
    global _in_line
    if not _process and text:
        _put(sys.stdout, text)
        _in_line = None if text.endswith("\n") else sys.stdout


def aside(text: str) -> None:
    """Writes a line to standard error where a person sees it, and nowhere else."""
    if not _process and sys.stderr.isatty():
        _put(sys.stderr, f"{text}\n")


def warn(text: str) -> None:
    """Writes a line to standard error that the run survives but one should read."""
    _complain("warning", text)


def remark(text: str) -> None:
    """Warns once in a command, and in the first process alone.

    For what is the same at every opening of a model and in every process.

    Args:
        text: the warning.
    """
    if not _process and text not in _remarks:
        _remarks.add(text)
        warn(text)


def forget_remarks() -> None:
    """Begins a command, which makes its remarks anew."""
    _remarks.clear()


def error(text: str) -> None:
    """Writes a line to standard error that says why the command ends."""
    _complain("error", text)


def flush() -> None:
    """Writes what is left, as the process ends; what cannot be written is dropped.

    Python would try again at its very end, and complain.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _complain(kind: str, text: str) -> None:
    # Standard output first: in a shared log the remark then follows what led to it, on
    # a line of its own. The remark counts also where standard output is full or closed.
    with contextlib.suppress(OSError):
        _put(sys.stdout, "")
        if _in_line is sys.stdout:
            say()
    speaker = f"process {_process}: " if _process else ""
    _put(sys.stderr, f"{speaker}{kind}: {text}\n")


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError as error:
        raise Closed(*error.args) from error


def _put_aside(text: str) -> None:
    """Writes progress to standard error; where nobody reads it, it is not missed."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


class Work:
    """The progress of what may take long: shown once it has taken 5 seconds.

    On a terminal it is a line that changes; elsewhere a line of its own twice a minute.

    Args:
        what: it is, such as "loading weights".
        total: how many parts it has.
        put: takes each line in place of standard error.
        rated: say how many parts are done a second.
    """

    def __init__(
        self,
        what: str,
        total: int,
        put: Callable[[str], None] | None = None,
        *,
        rated: bool = False,
    ):
        self._what, self._total, self._put = what, total, put
        self._rated = rated
        self._changes = put is None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + LONG
        self._done, self._lock = 0, threading.Lock()

    def advance(self, parts: int = 1, total: int | None = None) -> None:
        """Counts parts that are done; any thread may call it.

        Args:
            parts: that are done now.
            total: how many there seem to be by now; None: as many as before.
        """
        with self._lock:
            self._done += parts
            self._total = self._total if total is None else total
            now = time.monotonic()
            if now < self._next or self._done >= self._total:
                return
            self._next = now + (OFTEN if self._changes else EVERY)
            each = (now - self._start) / self._done
            left = each * (self._total - self._done)
            rate = f"{1 / each:,.0f} a second, " if self._rated else ""
            self._show(
                f"{self._what}: {self._done:,} of {self._total:,}, {rate}{clock(left)} "
                "left"
            )

    def close(self) -> None:
        """Removes a line that changes."""
        if self._changes and self._next > self._start + LONG and not _process:
            _put_aside("\r\x1b[K")

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, line: str) -> None:
        if self._put is not None:
            self._put(line)
        elif not _process:
            if self._changes:
                filled = self._done * BAR // self._total
                line = f"\r{line} [{'#' * filled}{'.' * (BAR - filled)}]\x1b[K"
            _put_aside(line + ("" if self._changes else "\n"))


@contextlib.contextmanager
def waiting(text: str, put: Callable[[str], None] | None = None) -> Iterator[None]:
    """Says what its block waits for, once that has taken 5 seconds, and every 30 more.

    Args:
        text: a sentence, such as "compiling the step: once".
        put: takes each line in place of standard error.
    """
    ended = threading.Event()

    def tell() -> None:
        start, pause = time.monotonic(), LONG
        while not ended.wait(pause):
            pause = EVERY
            line = f"{text} ({clock(time.monotonic() - start)} so far)"
            if put is not None:
                put(line)
            elif not _process:
                _put_aside(f"{line}\n")

    teller = threading.Thread(target=tell, name="waiting", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as "0:01:30"."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
