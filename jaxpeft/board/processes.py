"""The process of a job, which starts its command and writes down how it ends.

It has a session of its own, so that neither the end of the board nor that of its
terminal is one of the command's.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft import replacing
from jaxpeft.board import confine, inside
from jaxpeft.devices import termination
from jaxpeft.errors import EXIT_INPUT, InputError

# Those that the board starts, each a module of the package.
COMMANDS = ("train", "sweep", "lr_find", "plan", "report", "export")
TOKEN = "JAXPEFT_BOARD_TOKEN"  # the variable of who wants to choose the board's
LOOK = 0.2  # seconds between two looks at a command that runs
FOREVER = 1e9  # seconds
PATIENCE = 2.0  # seconds that a job waits for its own lock


def python(module: str) -> list[str]:
    """The command of a module of the package, as a list.

    Python would look for modules in the folder where it starts first, and there lies
    whatever somebody put there. It does not, unless the package itself was found so.

    Args:
        module: its dotted name.
    """
    home = Path(__file__).parents[2]
    places = [Path(place or ".").absolute() for place in sys.path]
    is_here = not sys.flags.safe_path and places[0] == home and home not in places[1:]
    return [sys.executable, *([] if is_here else ["-P"]), "-m", module]


def write_end(path: Path, code: int) -> None:
    """Writes down how a job ended.

    Args:
        path: its `.ended`.
        code: the exit code.
    """
    content = {"code": code, "when": time.time()}
    replacing.write_text(path, json.dumps(content) + "\n")


def work(path: Path) -> int:
    """Runs a job to its end, as the process that the queue has started for it.

    Args:
        path: its `.json`.

    Returns:
        The exit code of the command.

    Raises:
        InputError: there is no such job, another process works on it, or the run that
            it is about leads out of the folders that were named.
    """
    about = inside.json_object(path.parent, path.name)
    argv = about.get("argv")
    if not isinstance(argv, list) or not argv or argv[0] not in COMMANDS:
        raise InputError(f"{path}: is no job of the board")
    with path.with_suffix(".started").open("r+") as mine:
        if not _locked(mine.fileno()):
            raise InputError(f"{path}: another process works on it")
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, mine)
        mine.flush()
        try:
            _check(about)  # what has come into the run's folder while the job waited
        except InputError:
            write_end(path.with_suffix(".ended"), EXIT_INPUT)
            raise
        with termination.holding(FOREVER):
            # The command holds the lock, too: the place is taken while either lives.
            child = subprocess.Popen(
                [*python(f"jaxpeft.{argv[0]}"), *map(str, argv[1:])],
                stdin=subprocess.DEVNULL,
                pass_fds=(mine.fileno(),),
            )
            code = _awaited(child)
            write_end(path.with_suffix(".ended"), code)
    return code


def _check(about: Mapping[str, Any]) -> None:
    run, tops = about.get("run"), about.get("tops")
    if isinstance(run, str) and run and isinstance(tops, list):
        confine.check(Path(run), [Path(str(top)) for top in tops])


def _locked(file: int) -> bool:
    """Whether the lock is this process's now; a board may look at it for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def _awaited(child: subprocess.Popen) -> int:
    """The exit code of a command, which is asked to end when this process is."""
    asked = False
    while True:
        try:
            return child.wait(LOOK)
        except subprocess.TimeoutExpired:
            pass
        if not asked:
            try:
                termination.check()
            except termination.Asked:
                asked = True
                child.terminate()


def terminate(pid: int, lock: Path) -> None:
    """Asks a process to save and end, if it holds a file open and so is who it says.

    Args:
        pid: the process, of this host.
        lock: the file that it has locked.

    Raises:
        InputError: it is another process, or may not be asked.
    """
    gone = InputError(f"process {pid} has ended, or is another one by now")
    try:
        # From here on the number cannot come to mean another process.
        handle = os.pidfd_open(pid)
    except OSError:
        raise gone from None
    try:
        if not _holds(pid, lock):
            raise gone
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except OSError as error:
        raise InputError(
            f"process {pid} cannot be asked to end ({error.strerror})"
        ) from None
    finally:
        os.close(handle)


def _holds(pid: int, lock: Path) -> bool:
    """Whether a process has a file open."""
    wanted = os.stat(lock, follow_symlinks=False)
    folder = Path(f"/proc/{pid}/fd")
    for number in os.listdir(folder):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(folder / number), wanted):
                return True
    return False
