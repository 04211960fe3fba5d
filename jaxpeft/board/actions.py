"""What the buttons of a run do."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpeft.board import inside, life
from jaxpeft.board.catalog import Entry
from jaxpeft.board.jobs import Queue
from jaxpeft.board.processes import terminate
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import ADAPTER, CONFIG, ENVIRONMENT, MODEL
from jaxpeft.rundir.lock import LOCK

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
    folder = entry.place.folder
    whole = not entry.place.is_sweep and not entry.place.sweep
    stopped = entry.state in (life.PREEMPTED, life.FAILED, life.WAITING)
    if not alive and whole and stopped and (folder / CONFIG).is_file():
        found.append(Button("continue", "continue", "goes on from its last checkpoint"))
    found.append(Button("report", "write the report", "report.html, among the files"))
    if any((folder / name).is_dir() for name in (ADAPTER, MODEL)):
        found.append(
            Button("export", "export", "writes it beside the run's folder", FORMS)
        )
    return found


def command(entry: Entry) -> str:
    """The command that began a run, as it wrote it down; "" where it did not."""
    found = inside.json_object(entry.place.folder, ENVIRONMENT).get("command")
    return found if isinstance(found, str) else ""


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
    if held is None or not held.alive:
        raise InputError("no process writes this run any more")
    if not held.is_here or held.pid is None:
        raise InputError(f"the run's process is on host {held.host}; stop it there")
    terminate(held.pid, folder / LOCK)
    return None


def go_on(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the training of a run from its last checkpoint; returns the job's number.

    Args:
        entry: the run.
        queue: takes the job.
        to: is not needed.

    Raises:
        InputError: it is being written, or cannot be queued.
    """
    if entry.held is not None and entry.held.alive:
        raise InputError("the run is under way")
    folder = entry.place.folder
    place = strict_yaml.dump_scalar(str(folder))
    argv = ["train", "--config", str(folder / CONFIG), f"output_dir={place}"]
    return _once(queue, argv, folder)


def report(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the writing of a run's report; returns the job's number.

    Args:
        entry: the run or sweep.
        queue: takes the job.
        to: is not needed.

    Raises:
        InputError: it cannot be queued.
    """
    kind = "--sweep" if entry.place.is_sweep else "--run"
    return _once(queue, ["report", kind, str(entry.place.folder)], entry.place.folder)


def export(entry: Entry, queue: Queue, to: str) -> int | None:
    """Queues the writing of a run in another form; returns the job's number.

    Args:
        entry: the run.
        queue: takes the job.
        to: the form.

    Raises:
        InputError: there is no such form, or it cannot be queued.
    """
    if to not in FORMS:
        raise InputError(f"found {to!r}; choose one of {', '.join(FORMS)}")
    folder = entry.place.folder
    out = folder.with_name(f"{folder.name}-{to}")
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
        if job.argv == tuple(argv) and job.state in ("waiting", "running"):
            return job.number
    return queue.add(argv, str(folder))


def shell(argv: Sequence[str]) -> str:
    """A job's command as one would type it."""
    return f"python -m jaxpeft.{argv[0]} {shlex.join(argv[1:])}"
