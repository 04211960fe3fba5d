"""What pages follow, looked at once a moment for all of them.

Each open page asks each second. What it sees is the same for all who see it, so that
the files are read, and what is drawn of them is drawn, by whoever comes first.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

SECONDS = 0.2  # for which a look is new
IDLE = 30.0  # seconds after which what nobody follows is let go
MOST = 32  # things that are followed at a time

Look = Callable[[], Any]


@dataclass
class _Followed:
    look: Look
    turn: threading.Lock = field(default_factory=threading.Lock)
    value: Any = None
    version: int = 0
    looked: float = 0.0
    used: float = 0.0


class Shared:
    """Things by keys, and how each looked last."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._followed: dict[Hashable, _Followed] = {}

    def look(self, key: Hashable, begin: Callable[[], Look]) -> tuple[int, Any]:
        """(a number that is another after each change, how it looks); from any thread.

        Args:
            key: of the thing.
            begin: gives a function that looks at it, for as long as it is followed; it
                returns None where nothing is new.
        """
        one = self._one(key, begin)
        # While somebody looks, nobody waits who can be told how it looked before.
        if one.turn.acquire(blocking=not one.version):
            try:
                if time.monotonic() - one.looked >= SECONDS or not one.version:
                    value = one.look()
                    one.looked = time.monotonic()
                    if not one.version or value not in (None, one.value):
                        one.value, one.version = value, one.version + 1
            finally:
                one.turn.release()
        return one.version, one.value

    def _one(self, key: Hashable, begin: Callable[[], Look]) -> _Followed:
        with self._turn:
            now = time.monotonic()
            one = self._followed.pop(key, None) or _Followed(begin())
            one.used = now
            self._followed[key] = one  # the last one is the one asked for last
            for other in list(self._followed):
                idle = now - self._followed[other].used > IDLE
                if other != key and (idle or len(self._followed) > MOST):
                    del self._followed[other]
            return one
