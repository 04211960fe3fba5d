"""Commands that the board starts: a queue of files, and processes that outlive it.

A job is a few files of one number in a folder of the user's own (see `state`): what it
is (`.json`), who works on it (`.started`, locked as long as they live), what it says
(`.log`) and how it ended (`.ended`). Nothing is known of it otherwise, so that a board
that begins finds what another one has started.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxpeft import replacing
from jaxpeft.board import confine, inside, state
from jaxpeft.board.life import named
from jaxpeft.board.processes import COMMANDS, TOKEN, python, terminate, write_end
from jaxpeft.board.tail import is_number
from jaxpeft.errors import EXIT_INPUT, EXIT_PREEMPTED, InputError

OTHERS = stat.S_IWGRP | stat.S_IWOTH
TURN = "tend"  # the file that a board locks while it starts what waits
MOST = 100  # jobs that may wait
KEPT = 500  # jobs that are remembered
EVERY = 1.0  # seconds between two looks at the queue

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting running done failed stopped".split()


@dataclass(frozen=True)
class Job:
    """A command that was asked for.

    Attributes:
        number: its number.
        argv: the command and its arguments.
        run: the directory that it is about, or "".
        made: when it was asked for, in seconds since the epoch.
        host: the name of the one on which it is to run; "": any.
        work: the folder in which it is; "": that of the board which starts it.
        state: WAITING, RUNNING, DONE, FAILED or STOPPED.
        code: the exit code; None: not ended, or killed.
        pid: the process that works on it; None: nobody does.
    """

    number: int
    argv: tuple[str, ...]
    run: str
    made: float
    host: str
    work: str
    state: str
    code: int | None = None
    pid: int | None = None

    @property
    def name(self) -> str:
        """The first word of the command."""
        return self.argv[0]

    @property
    def is_left(self) -> bool:
        """Whether it has not ended."""
        return self.state in (WAITING, RUNNING)


@dataclass
class Queue:
    """The jobs about a folder of runs, of which some run at a time.

    Attributes:
        top: the folder of runs.
        places: how many run at a time.
        work: where the commands are started.
        tops: the folders that commands may go to; (): `top` alone.
        fault: why nothing is started now; "": it is.
        folder: where the files of the jobs are.
    """

    top: Path
    places: int = 1
    work: Path = field(default_factory=Path.cwd)
    tops: Sequence[Path] = ()
    fault: str = ""

    def __post_init__(self) -> None:
        self.folder = state.folder(self.top)
        self.tops = tuple(self.tops) or (Path(os.path.realpath(self.top)),)
        self._is_apart = not confine.is_within(self.folder, self.tops)
        self._children: list[subprocess.Popen] = []
        self._over: dict[int, Job] = {}  # of which nothing changes any more
        self._turn = threading.Lock()

    def add(self, argv: Sequence[str], run: str = "", work: str = "") -> int:
        """Puts a command at the end of the queue; returns the job's number.

        Args:
            argv: the command and its arguments.
            run: the directory that it is about.
            work: the folder in which it is to run; "": this board's.

        Raises:
            InputError: the command is none that the board starts, the queue is full or
                cannot be written.
        """
        if not argv or argv[0] not in COMMANDS:
            raise InputError(
                f"{' '.join(argv[:1])!r} is no command that is started here"
            )
        if any("\0" in word for word in argv):
            raise InputError("an argument holds a NUL byte, which no command can have")
        waiting = sum(job.state == WAITING for job in self.jobs())
        if waiting >= MOST:
            raise InputError(f"{waiting} jobs wait already; stop some of them first")
        content = {
            "argv": list(argv),
            "run": run,
            "made": time.time(),
            "host": socket.gethostname(),
            "work": work or str(self.work),
            "tops": [str(top) for top in self.tops],
        }
        try:
            self.make()
            self._forget()
            number = 1 + max(self._numbers(), default=0)
            while True:
                try:
                    with self._path(number, "json").open("x") as file:
                        json.dump(content, file)
                    return number
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise self._unwritable(error) from error

    def _forget(self) -> None:
        """Removes the oldest jobs that have ended, beyond those remembered."""
        for number in sorted(self._numbers())[:-KEPT]:
            job = self.job(number)
            if job is None or not job.is_left:
                for kind in ("json", "started", "log", "ended"):
                    self._path(number, kind).unlink(missing_ok=True)

    def make(self) -> None:
        """Makes the folder of the jobs, and sees to it that nobody else writes it.

        What stands in it is started: who could write there could start anything.

        Raises:
            InputError: it is somebody else's, or others may write it, or it lies among
                the runs.
            OSError: it cannot be made.
        """
        if not self._is_apart:
            raise InputError(
                f"{self.folder}: lies below a folder of --runs, where anything may "
                "come from elsewhere, and what stands in it would be started; set "
                f"{state.SETTING} to a folder outside of those"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_ours():
            raise InputError(
                f"{self.folder}: is somebody else's, or others may write it, and what "
                f"stands in it would be started; remove it, or set {state.SETTING} to "
                "a folder of your own"
            )

    def written(self, text: str) -> Path:
        """Where the configuration of a job is written, under a name that says when.

        Args:
            text: the configuration.

        Raises:
            InputError: it cannot be written.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            self.make()
            number = 0
            while (path := self.folder / f"config-{stamp}-{number}.yaml").exists():
                number += 1
            replacing.write_text(path, text)
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder}: cannot be written ({error.strerror}); permit it, or make "
            "room"
        )

    def _is_ours(self) -> bool:
        if not self._is_apart:
            return False
        try:
            found = os.stat(self.folder, follow_symlinks=False)
        except OSError:
            return False
        mine = found.st_uid == os.geteuid() and not found.st_mode & OTHERS
        return stat.S_ISDIR(found.st_mode) and mine

    def jobs(self) -> list[Job]:
        """The jobs that are remembered, the newest first."""
        found = []
        for number in sorted(self._numbers(), reverse=True)[:KEPT]:
            job = self.job(number)
            if job is not None:
                found.append(job)
        return found

    def job(self, number: int) -> Job | None:
        """A job as it stands now; None where there is none of that number."""
        if not self._is_ours():
            return None
        if number in self._over:
            return self._over[number]
        about = inside.json_object(self.folder, f"{number:06}.json")
        argv = about.get("argv")
        if not isinstance(argv, list) or not argv or argv[0] not in COMMANDS:
            return None
        made = about.get("made")
        made = float(made) if is_number(made) else 0.0
        words = tuple(map(str, argv))
        state, code, pid = self._state(number)
        run, host, work = (str(about.get(key, "")) for key in ("run", "host", "work"))
        job = Job(number, words, run, made, host, work, state, code, pid)
        if code is not None:
            self._over[number] = job
        return job

    def _state(self, number: int) -> tuple[str, int | None, int | None]:
        ended = inside.json_object(self.folder, f"{number:06}.ended")
        if ended:
            code = ended.get("code")
            code = code if isinstance(code, int) else None
            stopped = (EXIT_PREEMPTED, -signal.SIGTERM)
            state = DONE if code == 0 else STOPPED if code in stopped else FAILED
            return state, code, None
        try:
            file = inside.opened(self.folder, f"{number:06}.started")
        except OSError:
            return WAITING, None, None
        with file:
            pid, _ = named(file.read(4096))  # None: it begins
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return RUNNING, None, pid
            except OSError:
                return FAILED, None, None
        # Whoever took the job has a moment to begin.
        path = self._path(number, "started")
        with contextlib.suppress(OSError):
            if pid is None and time.time() - path.stat().st_mtime < 30:
                return RUNNING, None, None
        return FAILED, None, None

    def log(self, number: int, most: int) -> str:
        """The end of what a job has said.

        Args:
            number: the job's.
            most: bytes.
        """
        try:
            return inside.end_of(self.folder, f"{number:06}.log", most)
        except OSError:
            return ""

    def stop(self, number: int) -> None:
        """Takes a job out of the queue, or asks its command to end.

        Args:
            number: the job's.

        Raises:
            InputError: it has ended, or is no process of this host.
        """
        job = self.job(number)
        if job is None or job.state not in (WAITING, RUNNING):
            raise InputError("the job has ended already")
        if job.state == WAITING:
            if self._take(number):
                self._end(number, EXIT_PREEMPTED)
                return
            raise InputError("the job begins just now; stop it once it runs")
        if job.pid is None:
            raise InputError("the job begins just now; stop it once it runs")
        about = inside.json_object(self.folder, f"{number:06}.started")
        if about.get("host") != socket.gethostname():
            raise InputError(f"the job runs on host {about.get('host')}; stop it there")
        terminate(job.pid, self._path(number, "started"))

    def tend(self) -> None:
        """Starts what waits here, as far as there are places.

        One board does at a time, so that two of them do not fill a place twice.
        """
        with self._turn:
            self._children = [one for one in self._children if one.poll() is None]
            if not self._is_ours():
                return
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            turn = os.open(self.folder / TURN, flags, 0o600)
            try:
                # A file system without locks is left to one board at a time.
                with contextlib.suppress(OSError):
                    try:
                        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return
                self._tend()
            finally:
                os.close(turn)

    def _tend(self) -> None:
        here = ("", socket.gethostname())
        jobs = [job for job in self.jobs() if job.host in here]
        free = self.places - sum(job.state == RUNNING for job in jobs)
        for job in reversed(jobs):
            if free > 0 and job.state == WAITING and self._take(job.number):
                try:
                    self._start(job.number, Path(job.work or self.work))
                except OSError as error:  # the folder in which it was asked for is gone
                    why = f"it cannot be started: {error}\n"
                    self._path(job.number, "log").write_text(why, errors="replace")
                    self._end(job.number, EXIT_INPUT)
                free -= 1

    def _take(self, number: int) -> bool:
        """Whether the job is this board's to start: one board gets it."""
        try:
            self._path(number, "started").open("x").close()
        except OSError:
            return False
        return True

    def _start(self, number: int, work: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != TOKEN}
        with self._path(number, "log").open("ab") as log:
            child = subprocess.Popen(
                [*python("jaxpeft.board"), "--job", str(self._path(number, "json"))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=work,
                env=environment,
                start_new_session=True,
            )
        self._children.append(child)

    def _end(self, number: int, code: int) -> None:
        write_end(self._path(number, "ended"), code)

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:06}.{kind}"

    def _numbers(self) -> list[int]:
        if not self._is_ours():
            return []
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        stems = [Path(name).stem for name in names if name.endswith(".json")]
        found = [int(stem) for stem in stems if stem.isdecimal() and len(stem) == 6]
        there = set(found)
        # Whoever removes the folder makes the numbers free for others.
        for number in list(self._over):
            if number not in there:
                self._over.pop(number, None)
        return found
