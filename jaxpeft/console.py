"""Where commands write: results to standard output, remarks to standard error."""

import sys

_process: int | None = None  # among several that train together


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
    if not _process:
        sys.stdout.write(text)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Writes a line to standard error that the run survives but one should read."""
    _complain("warning", text)


def error(text: str) -> None:
    """Writes a line to standard error that says why the command ends."""
    _complain("error", text)


def _complain(kind: str, text: str) -> None:
    # Standard output first: in a shared log the remark then follows what led to it.
    sys.stdout.flush()
    speaker = f"process {_process}: " if _process else ""
    sys.stderr.write(f"{speaker}{kind}: {text}\n")
    sys.stderr.flush()
