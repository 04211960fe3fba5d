"""Whether a run lives, and how it ended: from its lock, its heartbeat and its files.

A process that is killed leaves its lock file. On its own host the operating system has
let go of the lock then; elsewhere the file's time of change, which the process renews,
stops moving. So a run that was killed never looks alive, whatever a clock says.
"""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from jaxpeft.board import inside, motion
from jaxpeft.board.motion import Motion
from jaxpeft.board.tail import is_number
from jaxpeft.rundir.lock import BEAT, LOCK
from jaxpeft.rundir.sweep_files import DROPPED

RUNNING, STALLED, WAITING = "running", "stalled", "waiting"
FINISHED, STOPPED_EARLY = "finished", "stopped early"
PREEMPTED, FAILED = "preempted", "failed"
STATES = (RUNNING, STALLED, WAITING, FINISHED, STOPPED_EARLY, PREEMPTED, FAILED)
LIVE = (RUNNING, STALLED)

SILENT = 4 * BEAT  # seconds without a heartbeat after which a process counts as dead
SLOW = 10  # times the usual time of a line after which a run counts as stalled
LEAST = 300.0  # seconds that a run may take for any line: it evaluates, saves, compiles
FIRST = 1200.0  # seconds that it may take to its first one: it loads and compiles


class Holder(NamedTuple):
    """The process that a lock file names.

    Attributes:
        pid: its number on its host; None where the file does not say.
        host: the name of that.
        beat: how its renewals of the file were watched.
        quiet: the seconds since the last of them.
        alive: whether it lives.
        why: what says that it does not; "" where it does.
        since: when it began, in seconds since the epoch; None: the file does not say.
        is_sure: whether that it does not live is more than a guess by another's clock.
    """

    pid: int | None
    host: str
    beat: Motion
    quiet: float
    alive: bool
    why: str = ""
    since: float | None = None
    is_sure: bool = True

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, whose number is known."""
        return self.pid is not None and self.host == socket.gethostname()


def holder(
    folder: Path, now: float, tick: float = 0.0, before: Holder | None = None
) -> Holder | None:
    """The process that writes a directory, or was killed while it did; None: neither.

    Args:
        folder: of a run or a sweep.
        now: seconds since the epoch.
        tick: by the monotonic clock.
        before: what it was when it was last asked for.

    Raises:
        OSError: the lock file cannot be read.
    """
    try:
        file = inside.opened(folder, LOCK)
    except FileNotFoundError:
        return None
    with file:
        renewed = os.fstat(file.fileno()).st_mtime
        content = file.read(4096)
        pid, host = named(content)
        since = _since(content)
        same = before is not None and before[:2] == (pid, host)
        same = same and before is not None and before.since == since
        beat = motion.seen(renewed, tick, before.beat if same and before else None)
        quiet = beat.age(now, tick)
        if pid is None or host != socket.gethostname():
            alive, watched = quiet < SILENT, tick - beat.at
            why = "" if alive else _silent(watched)
            sure = watched >= SILENT
            return Holder(pid, host, beat, quiet, alive, why, since, sure)
        alive = _exists(pid) and _is_locked(file.fileno())
        why = "" if alive else f"process {pid} ended without a word: it was killed"
        return Holder(pid, host, beat, quiet, alive, why, since)


def _silent(watched: float) -> str:
    why = f"nothing was heard of it for {SILENT:.0f} s"
    if watched >= SILENT:
        return why
    return f"{why} by this machine's clock; the board watches whether that changes"


def named(content: bytes) -> tuple[int | None, str]:
    """(pid, host) of the process that a lock file names; None and "" where it does not.

    Args:
        content: what the file says.
    """
    try:
        found = json.loads(content)
        pid, host = found["pid"], str(found["host"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, ""
    is_one = isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 2**31
    return (pid if is_one else None), host


def _since(content: bytes) -> float | None:
    try:
        found = json.loads(content)["since"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(found) if is_number(found) else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _is_locked(file: int) -> bool:
    """Whether anybody holds the lock. Asked only where the process it names exists.

    So the lock is never held here, even for a moment, where a run could want it, but
    for one whose number another process has got since.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the process exists, see above
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def of_run(
    held: Holder | None,
    *,
    summary: dict[str, Any],
    ended: dict[str, Any],
    begun: bool,
    last: Motion | None,
    every: float | None,
    now: float,
    tick: float,
) -> tuple[str, str]:
    """The state of a run that has a lock of its own, and what there is to say of it.

    Args:
        held: see `holder`.
        summary: its `summary.json`, empty where there is none.
        ended: its `.ended`, likewise.
        begun: whether it has logged anything.
        last: how the changes of its metrics were watched; None: it has none.
        every: the seconds that a line of its log takes; None: not known.
        now: seconds since the epoch.
        tick: by the monotonic clock.
    """
    if held is not None and held.alive:
        return _alive(held, begun, last, every, now, tick)
    if held is not None:
        return FAILED, held.why
    if ended:
        status = PREEMPTED if ended.get("status") == PREEMPTED else FAILED
        return status, str(ended.get("why", ""))
    if summary:
        return STOPPED_EARLY if summary.get("stopped_early") else FINISHED, ""
    if not begun:
        return WAITING, "has logged nothing, and no process writes it"
    return FAILED, "no process writes it, and it has no result"


def _alive(
    held: Holder,
    begun: bool,
    last: Motion | None,
    every: float | None,
    now: float,
    tick: float,
) -> tuple[str, str]:
    if held.quiet > SILENT + BEAT:
        return STALLED, f"the process has done nothing for {_minutes(held.quiet)}"
    # Lines from before it began are of the process that it continues.
    since = held.since or 0.0
    trains = begun and last is not None and (last.moved or last.value > since)
    allowed = max(LEAST, SLOW * (every or 0.0)) if trains else FIRST
    ages = [] if held.since is None else [now - held.since]
    ages += [] if last is None else [last.age(now, tick)]
    silence = min(ages, default=0.0)
    if silence > allowed:
        return STALLED, f"logged nothing for {_minutes(silence)}"
    return RUNNING, "" if trains else "loads and compiles"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60)):,} min"


def of_point(
    row: dict[str, Any],
    held: Holder | None,
    ended: dict[str, Any],
    *,
    begun: bool,
    last: Motion | None,
    every: float | None,
    now: float,
    tick: float,
) -> tuple[str, str]:
    """The state of a sweep's point, whose lock is the sweep's.

    Args:
        row: its entry in `sweep.json`.
        held: the process that writes the sweep, see `holder`.
        ended: the sweep's `.ended`, empty where there is none.
        begun: as for `of_run`.
        last: likewise.
        every: likewise.
        now: seconds since the epoch.
        tick: by the monotonic clock.
    """
    status = row.get("status")
    if status == "done":
        return FINISHED, ""
    if status == "diverged":
        return FAILED, "diverged: its steps were not finite"
    if status in (STOPPED_EARLY, DROPPED):
        return STOPPED_EARLY, str(row.get("why") or "")
    if status != RUNNING:
        return WAITING, "its turn has not come"
    if held is not None and held.alive:
        if not begun:  # the sweep began long before its turn came
            held = held._replace(since=None)
        return _alive(held, begun, last, every, now, tick)
    if held is not None:
        return FAILED, held.why
    if ended.get("status") == PREEMPTED:
        return PREEMPTED, str(ended.get("why", ""))
    return FAILED, str(ended.get("why", "no process trains the sweep"))
