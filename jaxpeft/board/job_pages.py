"""The pages about the commands that the board has started."""

import asyncio
import itertools
import re
import socket
import time
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from jaxpeft.board import about, actions, inside, pages
from jaxpeft.board.answers import Told, new_parts, page, stream
from jaxpeft.board.catalog import Entry
from jaxpeft.board.jobs import DONE, WAITING, Job, Queue
from jaxpeft.board.shared import Shared

DRAWN_UP = ("train", "plan", "lr_find", "sweep")
DIGITS = 6  # of a job's number
LAST = 2**16  # bytes of a log that are shown
PNG, LARGEST = b"\x89PNG\r\n\x1a\n", 2**23  # how a picture begins; its bytes
# What moves a terminal's cursor or colors its text.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]")


async def index(request: Request) -> Response:
    """The table of jobs."""
    queue: Queue = request.app.state.queue
    jobs = await asyncio.to_thread(_table, request)
    return page(
        "jobs.html",
        title="Jobs",
        **jobs,
        places=queue.places,
        folder=inside.shown(queue.folder),
    )


def _table(request: Request) -> dict[str, Any]:
    queue: Queue = request.app.state.queue
    places = {str(e.place.folder): e.place for e in _entries(request).values()}
    now = time.time()
    rows = []
    for job in queue.jobs():
        place = places.get(job.run)
        name = Path(job.run).name if place is None else place.name
        subject = inside.shown(name), "" if place is None else place.key
        command = inside.shown(actions.shell(job.argv))
        rows.append((job, subject, command, f"{pages.ago(now - job.made)} ago"))
    return {"jobs": rows, "fault": inside.shown(queue.fault)}


def _entries(request: Request) -> dict[str, Entry]:
    return request.app.state.catalog.refresh()


async def index_events(request: Request) -> Response:
    """What is new among the jobs."""
    shared: Shared = request.app.state.shared
    seen: dict[str, str] = {}

    def look() -> str:
        return pages.render("jobs_table.html", **_table(request))

    def changes() -> Told:
        _, html = shared.look("jobs", lambda: look)
        return new_parts(seen, {"jobs": html})

    return stream(request, changes)


async def job(request: Request) -> Response:
    """The page of a job."""
    queue: Queue = request.app.state.queue
    found = await asyncio.to_thread(_job, request)
    return page(
        "job.html",
        **_head(request, found),
        title=f"Job {found.number}: {found.name}",
        command=inside.shown(actions.shell(found.argv)),
        log=await asyncio.to_thread(log, queue, found),
    )


def _job(request: Request) -> Job:
    number = request.path_params["number"]
    known = number.isdecimal() and number.isascii() and len(number) <= DIGITS
    found = request.app.state.queue.job(int(number)) if known else None
    if found is None:
        raise HTTPException(404, "There is no such job.")
    return found


def _head(request: Request, found: Job) -> dict[str, Any]:
    """What the head of its page says, and the key of the run that it is about."""
    entries = _entries(request).values()
    keys = (e.place.key for e in entries if str(e.place.folder) == found.run)
    draft = ""
    if found.name == "lr_find" and found.state == DONE:
        draft = "new run at this rate"
    elif found.name in DRAWN_UP:
        draft = "back to its configuration"
    away = found.state == WAITING and found.host not in ("", socket.gethostname())
    elsewhere = found.host if away else ""
    content = {"job": found, "key": next(keys, ""), "draft": draft}
    content["drawn"] = bool(_picture(request.app.state.queue, found))
    return {**content, "elsewhere": inside.shown(elsewhere)}


def _picture(queue: Queue, found: Job) -> bytes:
    """What a range test that the board has started drew; nothing, where it did not."""
    out = Path(dict(itertools.pairwise(found.argv)).get("--out", ""))
    if found.name != "lr_find" or found.state != DONE or out.parent != queue.folder:
        return b""
    try:
        with inside.opened(queue.folder, f"{out.name}/{about.RATES}") as file:
            content = file.read(LARGEST)
    except OSError:
        return b""
    return content if content.startswith(PNG) else b""


async def picture(request: Request) -> Response:
    """The losses of a range test over its rates."""
    found = await asyncio.to_thread(_job, request)
    content = await asyncio.to_thread(_picture, request.app.state.queue, found)
    if not content:
        raise HTTPException(404, "The job has drawn nothing.")
    return Response(content, media_type="image/png")


async def job_events(request: Request) -> Response:
    """What is new of a job."""
    queue: Queue = request.app.state.queue
    shared: Shared = request.app.state.shared
    seen: dict[str, str] = {}
    number = (await asyncio.to_thread(_job, request)).number

    def look() -> dict[str, str]:
        found = _job(request)
        text = pages.render("log_text.html", log=log(queue, found))
        head = pages.render("job_head.html", **_head(request, found))
        return {"job": head, "log": text}

    def changes() -> Told:
        _, parts = shared.look(("job", number), lambda: look)
        return new_parts(seen, parts)

    return stream(request, changes)


async def act(request: Request) -> Response:
    """Stops a job, or puts its command into the queue again."""
    queue: Queue = request.app.state.queue
    found = await asyncio.to_thread(_job, request)
    number = found.number
    if request.path_params["action"] == "stop":
        await asyncio.to_thread(queue.stop, number)
    elif request.path_params["action"] == "again":
        number = await asyncio.to_thread(queue.add, found.argv, found.run, found.work)
    else:
        raise HTTPException(404, "There is no such button.")
    return RedirectResponse(f"/jobs/{number}", 303)


def log(queue: Queue, found: Job) -> str:
    """The end of what a job has said, as a terminal would show it in the end.

    Args:
        queue: has it.
        found: the job.
    """
    text = _ESCAPES.sub("", queue.log(found.number, LAST))
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)
