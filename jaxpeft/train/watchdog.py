"""A run that no longer moves is ended, with its threads' tracebacks."""

import faulthandler
import os
import threading
import time
from types import TracebackType

from jaxpeft.errors import EXIT_STALLED


class Watchdog:
    """A thread that ends the process with exit code 124 when nothing moves any more.

    All threads' tracebacks go to standard error first, so that one sees where it hangs.
    The time runs from the construction and anew from each `pet`.
    (`faulthandler.dump_traceback_later` does the same, but exits with 1.)

    Args:
        seconds: how long nothing may move; None: the watchdog is off.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._changed = threading.Condition()
        self._patience = self._deadline = 0.0
        self._stopped = seconds is None
        if not self._stopped:
            self.pet()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def pet(self, grace: float | None = None) -> None:
        """Says that something moved: the time runs anew.

        A grace covers what is known to take long, such as a compilation or a save.

        Args:
            grace: seconds that the watchdog waits this time, if they are more than its
                own.
        """
        if self._seconds is None:
            return
        with self._changed:
            before = self._deadline
            self._patience = max(self._seconds, grace or 0.0)
            self._deadline = time.monotonic() + self._patience
            # A later deadline is found when the watching thread wakes at the old one.
            if self._deadline < before:
                self._changed.notify()

    def stop(self) -> None:
        """Ends the watch; may be called more than once."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        with self._changed:
            while not self._stopped:
                left = self._deadline - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                elif left < -1.0:
                    # This thread slept too: the whole process was suspended.
                    self._deadline = time.monotonic() + self._patience
                else:
                    self._bite()

    def _bite(self) -> None:
        # Straight to the descriptor: whoever hangs may hold the lock of sys.stderr.
        line = f"error: no progress for {self._patience:.0f} s; the threads stand at:\n"
        os.write(2, line.encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(EXIT_STALLED)
