"""SIGTERM ends a command with exit code 75 in good time, wherever it meets it.

Where nothing is lost, which is everywhere but in `holding`, the request is an exception
in the main thread, so that half-written files are removed on the way out. In `holding`
it is a flag, which `check` and `in_background` make an exception of where the state is
whole and can be saved.

Python runs handlers between two of its instructions, and a compilation is one of them.
So a thread that the lower half of the handler wakes (`signal.set_wakeup_fd`) ends the
process once its time is over. What it cuts short is as after `kill -9`: a file or a
checkpoint counts under its final name alone, which it gets when it is whole.

Among several processes JAX's own handler stands, and one of Python displaces it in
silence. There the thread looks for JAX's notice, and `check` is JAX's sync point.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from types import FrameType
from typing import Any, Protocol, TypeVar

from jaxpeft import console
from jaxpeft.errors import EXIT_PREEMPTED

LEAVE = 5.0  # seconds for the way out, where nothing has to be saved
MARGIN = 2.0  # seconds by which the end comes before a grace is over
LOOK = 0.2  # seconds between two looks at what can change
AGAIN = 0.05  # seconds until a request is made again that came to nothing
LISTEN = 1.0  # seconds between two questions for the notice of another process
MEET = 25.0  # seconds that processes wait for each other before they end

Result = TypeVar("Result")


class Asked(BaseException):
    """The process was asked to end, and stands where it can. Ends a command with 75.

    No Exception: nothing that goes on after failures may go on after this.
    """

    def __init__(self, name: str):
        super().__init__(
            f"{name} received: nothing was left to save; repeat the command to continue"
        )
        self.name = name


class Peers(Protocol):
    """The other processes of a run: `devices.cluster`."""

    def noticed(self) -> bool:
        """Whether any process has been asked to end, asked from any thread."""
        ...

    def preempted(self) -> bool:
        """Whether all are to save now; all call it as often as each other."""
        ...

    def meet(self, seconds: float) -> None:
        """Returns once all are here, or after so many seconds."""
        ...


class Listener:
    """What is known of a request to end; there is one while a command runs.

    Attributes:
        signal: the signal that asked first, or None.
        held: the seconds from the request to the end in `holding`; None outside.
    """

    def __init__(self, peers: Peers | None):
        self.signal: signal.Signals | None = None
        self.held: float | None = None
        self._peers = peers
        self._since = 0.0  # when the last `holding` was left
        self._asked_at: float | None = None
        self._presses = 0  # of Ctrl-C
        self._closed = threading.Event()
        self._previous: dict[int, Any] = {}
        self._ends: tuple[int, int] | None = None  # of the pipe that wakes the thread
        if peers is not None:
            self._start(self._follow_peers)
        elif threading.current_thread() is threading.main_thread():
            self._ends = os.pipe()
            os.set_blocking(self._ends[1], False)
            self._woken_before = signal.set_wakeup_fd(
                self._ends[1], warn_on_full_buffer=False
            )
            self.take_over(signal.SIGTERM)
            self._unraisable = sys.unraisablehook
            sys.unraisablehook = self._swallowed
            self._start(self._follow_signals)

    def join(self, peers: Peers) -> None:
        """Makes this process one of several, once JAX's own handler stands."""
        if self._peers is None:
            self._peers = peers
            self._start(self._follow_peers)

    def close(self) -> None:
        """Ends the listening; the handlers that stood before come back."""
        self._closed.set()
        for number in list(self._previous):
            self.give_back(number)
        if self._ends is not None:
            sys.unraisablehook = self._unraisable
            signal.set_wakeup_fd(self._woken_before)
            os.write(self._ends[1], b"\0")  # no signal's number: wakes the thread
            self._thread.join()
            for end in self._ends:
                os.close(end)
            self._ends = None

    def take_over(self, number: signal.Signals) -> None:
        """Handles a signal here from now on; only in the main thread, and alone."""
        if self._peers is None and self._ends is not None:
            self._previous[number] = signal.signal(number, self._handle)

    def give_back(self, number: int) -> None:
        """Lets the handler that stood before handle a signal again."""
        before = self._previous.pop(number, None)
        if self._peers is None and before is not None:  # else JAX's stands
            signal.signal(number, before)

    def check(self) -> None:
        """Raises Asked where all processes are to end now."""
        if self.signal is None and self._peers is not None and self._peers.preempted():
            self.signal = signal.SIGTERM
        if self.signal is not None:
            raise Asked(self.signal.name)

    def is_asked(self) -> bool:
        """Whether any process has been asked, though not all may know of it yet."""
        return self.signal is not None or self._asked_at is not None

    def hold(self, seconds: float | None) -> None:
        """Begins or ends (None) to keep requests for `check`."""
        self.held, self._since = seconds, time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            self._presses += 1
            if self._presses > 1:
                raise KeyboardInterrupt
        if self.held is None and first:
            raise Asked(self.signal.name)

    def _swallowed(self, told: Any) -> None:
        """Asks again where Asked met a finalizer, from which Python raises nothing."""
        if not isinstance(told.exc_value, Asked) or self.signal is None:
            self._unraisable(told)
            return
        asked, self.signal = self.signal, None
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), asked))
        again.daemon = True
        again.start()

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="termination", daemon=True)
        self._thread.start()

    def _follow_signals(self) -> None:
        """Waits for SIGTERM, then until the time is over."""
        assert self._ends is not None
        while signal.SIGTERM not in os.read(self._ends[0], 64):
            if self._closed.is_set():
                return
        self._await_end()

    def _follow_peers(self) -> None:
        """Waits for a notice, then until all can end together or the time is over."""
        assert self._peers is not None
        while not self._peers.noticed():
            if self._closed.wait(LISTEN):
                return
        self._await_end()

    def _await_end(self) -> None:
        """Ends the process unless it comes to its own end in time."""
        self._asked_at = time.monotonic()
        while self._left(self._asked_at) > 0:
            if self._closed.wait(LOOK):
                return
        self._end(self.held)

    def _left(self, asked_at: float) -> float:
        """The seconds that the main thread has left to end the process itself."""
        now = time.monotonic()
        if self.held is not None:
            # JAX takes a second for its notice, and the other processes one more.
            own = MARGIN if self._peers is None else 2 * MARGIN
            return asked_at + self.held - own - now
        if self._peers is not None and self.signal is None:
            return 0.0  # nothing else makes it end
        return max(asked_at, self._since) + LEAVE - now

    def _end(self, held: float | None) -> None:
        if self._peers is not None:
            self._peers.meet(MEET if held is None else MARGIN)
        line = "SIGTERM received: nothing was left to save"
        if held is not None:
            line = (
                f"SIGTERM received: what is under way takes longer than the {held:g} s "
                "of training.termination_grace_seconds, and the run goes on from its "
                "last checkpoint"
            )
        # Straight to the descriptor: the main thread may hold the lock of sys.stderr.
        os.write(2, f"warning: {line}; repeat the command to continue\n".encode())
        os._exit(EXIT_PREEMPTED)


_listener: Listener | None = None


@contextlib.contextmanager
def listening(peers: Peers | None = None) -> Iterator[Listener]:
    """Listens for requests in its block; inside another such block that one listens.

    Outside the main thread, where Python has no handlers, signals keep their meaning.

    Args:
        peers: the other processes of the run; None: this one is alone, or has not met
            them yet (see `join`).
    """
    global _listener
    if _listener is not None:
        if peers is not None:
            _listener.join(peers)
        yield _listener
        return
    _listener = Listener(peers)
    try:
        yield _listener
    finally:
        _listener.close()
        _listener = None


def join(peers: Peers) -> None:
    """Makes this process one of several: to be called once JAX's handler stands."""
    if _listener is not None:
        _listener.join(peers)


@contextlib.contextmanager
def holding(seconds: float) -> Iterator[None]:
    """Keeps requests for `check` in its block, where something would be lost.

    The first SIGINT is one too; a second one is a KeyboardInterrupt at once. A process
    that has not ended by itself is ended shortly before the seconds are over, all but
    for SIGINT.

    Args:
        seconds: from the request to the end of the process.

    Raises:
        Asked: as the block ends without `check` after a request.
    """
    listener = _listener
    if listener is None:
        yield
        return
    listener.hold(seconds)
    listener.take_over(signal.SIGINT)
    try:
        yield
    finally:
        listener.give_back(signal.SIGINT)
        listener.hold(None)
    if listener.signal is not None:
        raise Asked(listener.signal.name)


def check() -> None:
    """Raises Asked if the process was asked to end, here, where it can.

    Among several processes all must call it in the same places, equally often.
    """
    if _listener is not None:
        _listener.check()


def in_background(call: Callable[[], Result]) -> Result:
    """The result of a call that Python cannot interrupt, such as a compilation.

    In `holding` a thread makes the call, and a request leaves it behind. It counts as
    one `check`.

    Args:
        call: must change nothing that is saved.

    Raises:
        Asked: where the process was asked to end.
    """
    listener = _listener
    if listener is None or listener.held is None:
        return call()
    future: futures.Future[Result] = futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            future.set_exception(error)

    threading.Thread(target=work, name="in the background", daemon=True).start()
    while not futures.wait([future], LOOK).done:
        if listener.is_asked():
            break
    listener.check()
    return future.result()


def leave() -> None:
    """Ends the process with 75 at once: it was asked to, and has done what it can.

    An orderly end of Python would wait for computations that nobody wants any more.
    """
    console.flush()
    os._exit(EXIT_PREEMPTED)
