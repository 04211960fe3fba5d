"""What the buttons of a run do."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpeft.board import confine, life, resume
from jaxpeft.board.catalog import Entry
from jaxpeft.board.jobs import Queue
from jaxpeft.board.processes import terminate
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import ADAPTER, CONFIG, MODEL
from jaxpeft.rundir.lock import LOCK

STOPPED = (life.PREEMPTED, life.FAILED, life.WAITING)
FORMS = ("peft", "vllm", "merged", "bnb4")


class Button(NamedTuple):
    """Something that can be asked for.

    Attributes:
        name: the last part of its address.
        label: what stands on it.
        remark: what it does.
        choices: the values of its field `to`, if it has one.
    """

    name: str
    label: str
    remark: str
    choices: Sequence[str] = ()


def buttons(entry: Entry) -> list[Button]:
    """What can be asked for of a run in its state.

    Args:
        entry: the run.
    """
    found = []
    held = entry.held
    alive = held is not None and held.alive
    if held is not None and alive and held.is_here:
        found.append(Button("stop", "stop", "saves, then ends; it can be continued"))
    folder, stopped = entry.place.folder, entry.state in STOPPED
    has_settings = entry.place.is_sweep or (folder / CONFIG).is_file()
    if stopped and not entry.place.sweep and has_settings and _is_free(held):
        remark = "its points go on" if entry.place.is_sweep else "from its checkpoint"
        found.append(Button("continue", "continue", f"goes on: {remark}"))
    found.append(Button("report", "write the report", "report.html, among the files"))
    if any((folder / name).is_dir() for name in (ADAPTER, MODEL)):
        found.append(
            Button("export", "export", "writes it beside the run's folder", FORMS)
        )
    return found


def _is_free(held: life.Holder | None) -> bool:
    """Whether a run is surely not written by another process."""
    return held is None or (not held.alive and held.is_sure)


def stop(entry: Entry, queue: Queue, to: str) -> int | None:
    """Asks the process of a run to save and to end.

    Args:
        entry: the run.
        queue: is not needed.
        to: is not needed.

    Raises:
        InputError: no process of this host writes it.
    """
    folder = entry.place.folder
    try:
        held = life.holder(folder, time.time())
    except OSError:
        held = None
    if held is None or (held.is_here and not held.alive):
        raise InputError("no process writes this run any more")
    if not held.is_here or held.pid is None:
        raise InputError(f"the run's process is on host {held.host}; stop it there")
    terminate(held.pid, folder / LOCK)
    return None


def go_on(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the rest of a run or of a sweep; returns the job's number.

    Args:
        entry: the run, which goes on from its last checkpoint, or the sweep.
        queue: takes the job.
        to: is not needed.

    Raises:
        InputError: it is being written, leads out of the folders that were named, does
            not say how to go on, or cannot be queued.
    """
    held, folder = entry.held, entry.place.folder
    if held is not None and held.alive:
        raise InputError("the run is under way")
    if held is not None and not held.is_sure:
        raise InputError(
            f"host {held.host} may be writing the run: its clock is another one, and "
            f"the board has to watch it for {life.SILENT:.0f} s; ask again then"
        )
    confine.check(folder, queue.tops)
    if not entry.place.is_sweep:
        return _once(queue, resume.of_run(folder), folder)
    text, options = resume.of_sweep(entry)
    for job in queue.jobs():  # each has a configuration of its own
        if job.run == str(folder) and job.name == "sweep" and job.is_left:
            return job.number
    argv = ["sweep", "--config", str(queue.written(text)), *options]
    return queue.add(argv, str(folder))


def report(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the writing of a run's report; returns the job's number.

    Args:
        entry: the run or sweep.
        queue: takes the job.
        to: is not needed.

    Raises:
        InputError: it leads out of the folders that were named, or cannot be queued.
    """
    confine.check(entry.place.folder, queue.tops)
    kind = "--sweep" if entry.place.is_sweep else "--run"
    return _once(queue, ["report", kind, str(entry.place.folder)], entry.place.folder)


def export(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the writing of a run in another form; returns the job's number.

    Args:
        entry: the run.
        queue: takes the job.
        to: the form.

    Raises:
        InputError: there is no such form, the run or what would be written leads out
            of the folders that were named, or it cannot be queued.
    """
    if to not in FORMS:
        raise InputError(f"found {to!r}; choose one of {', '.join(FORMS)}")
    folder = entry.place.folder
    out = folder.with_name(f"{folder.name}-{to}")
    confine.check(folder, queue.tops)
    if not confine.is_within(out.parent, queue.tops):
        raise InputError(
            f"the export would be {out}, which is in none of the folders that --runs "
            "names; name the one above it"
        )
    confine.check(out, queue.tops)
    argv = ["export", "--run", str(folder), "--to", to, "--out", str(out)]
    return _once(queue, argv, folder)


ACTIONS: dict[str, Callable[[Entry, Queue, str], int | None]] = {
    "stop": stop,
    "continue": go_on,
    "report": report,
    "export": export,
}


def _once(queue: Queue, argv: Sequence[str], folder: Path) -> int:
    """The number of a job that does this: one that is there already, or a new one."""
    for job in queue.jobs():
        if job.argv == tuple(argv) and job.is_left:
            return job.number
    return queue.add(argv, str(folder))


def shell(argv: Sequence[str]) -> str:
    """A job's command as one would type it."""
    return f"python -m jaxpeft.{argv[0]} {shlex.join(argv[1:])}"
