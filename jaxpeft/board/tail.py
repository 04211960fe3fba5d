"""`metrics.jsonl` as it grows: only what is new is read.

A line without its end is being written, and waits for its end. A line that is no object
with a step is passed over, and counted. A file that is replaced, as a continued run
replaces it, is read anew.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from jaxpeft.board import inside
from jaxpeft.rundir.files import METRICS

LAST = 2**16  # bytes at the end of a file in which its last lines are looked for
PIECE = 2**20  # bytes that are read at once; a line that is longer is none
Line = dict[str, Any]


class Tail:
    """The lines of a file, each handed out once.

    Args:
        folder: the run's directory.
        whole: whether the first reading gives all lines; else it gives the last two of
            training and the last evaluation, as far as they stand near the end, and all
            that come after.

    Attributes:
        bad: how many lines could not be read.
        fresh: whether the last `more` began anew: what it gave before does not count.
    """

    def __init__(self, folder: Path, *, whole: bool):
        self._folder, self._whole = folder, whole
        self._stamp: tuple[int, int] | None = None
        self._offset = 0
        self._skips = False  # whether it stands within a line that is too long
        self.bad = 0
        self.fresh = True

    def more(self) -> list[Line]:
        """The lines that have come since the last call.

        Raises:
            OSError: the file cannot be read; one that is not there has no lines.
        """
        return [line for piece in self.pieces() for line in piece]

    def pieces(self) -> Iterator[list[Line]]:
        """The same in pieces, so that not all of a long file is held at once.

        Yields:
            At least one; with the first `fresh` says whether this begins anew.

        Raises:
            OSError: as for `more`.
        """
        self.fresh = False
        try:
            file = inside.opened(self._folder, METRICS)
        except FileNotFoundError:
            self.fresh, self._stamp, self._offset = self._stamp is not None, None, 0
            yield []
            return
        with file:
            found = os.fstat(file.fileno())
            stamp = (found.st_dev, found.st_ino)
            if stamp != self._stamp or found.st_size < self._offset:
                self._stamp, self.bad, self.fresh = stamp, 0, True
                self._skips = False
                self._offset = 0 if self._whole else max(0, found.st_size - LAST)
                file.seek(self._offset)
                if self._offset:
                    self._offset += len(file.readline())
            few = self.fresh and not self._whole
            yield []
            piece = b"?" * PIECE
            while len(piece) == PIECE:
                file.seek(self._offset)
                piece = file.read(PIECE)
                text = self._taken(piece)
                yield self._read(_last(text) if few else text.split(b"\n"))

    def _taken(self, piece: bytes) -> bytes:
        """The whole lines at the beginning of what is read next, which count as read.

        A line of which a whole piece shows no end is too long: it is counted, and
        passed over until its end comes.
        """
        begin = 0
        if self._skips:
            begin = piece.find(b"\n") + 1
            self._skips = not begin
        end = piece.rfind(b"\n") + 1
        if not end and not self._skips and len(piece) == PIECE:
            self._skips = True
            self.bad += 1
        self._offset += len(piece) if self._skips else end
        return piece[begin:end]

    def _read(self, lines: Iterable[bytes]) -> list[Line]:
        found = []
        for line in lines:
            if not line.strip():
                continue
            entry = read(line)
            if entry is None:
                self.bad += 1
            else:
                found.append(entry)
        return found


def _last(text: bytes) -> list[bytes]:
    """The last two lines of training and the last evaluation, and what is after them.

    The table wants no more of hundreds of files at once.
    """
    left = {b'"loss"': 2, b'"eval_loss"': 1}
    found: list[bytes] = []
    for line in reversed(text.split(b"\n")):
        kind = next((name for name in left if name in line), None)
        if kind is None or left[kind] > 0:
            found.append(line)
        if kind is not None:
            left[kind] -= 1
        if max(left.values()) <= 0:
            break
    return found[::-1]


def read(text: bytes) -> Line | None:
    """The numbers in a line, null read as NaN; None where it is no object with a step.

    Args:
        text: the line.
    """
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not is_number(entry.get("step")):
        return None
    if not 0 <= entry["step"] < 2**53:
        return None
    numbers = {
        key: math.nan if value is None else float(value)
        for key, value in entry.items()
        if value is None or is_number(value)
    }
    return {**numbers, "step": int(entry["step"])}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < inside.LARGEST
