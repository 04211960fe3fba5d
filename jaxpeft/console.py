"""Where commands write: results to standard output, remarks to standard error."""

import sys


def say(text: str = "") -> None:
    """Write a line to standard output at once, so that pipes and logs keep pace."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Write a line to standard error that the run survives but a person should read."""
    _complain("warning", text)


def error(text: str) -> None:
    """Write a line to standard error that says why the command ends."""
    _complain("error", text)


def _complain(kind: str, text: str) -> None:
    # Standard output first: in a shared log the remark then follows what led to it.
    sys.stdout.flush()
    sys.stderr.write(f"{kind}: {text}\n")
    sys.stderr.flush()
