"""The page of a run or a sweep, its parts, its files and its buttons."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from jaxpeft.board import about, actions, examples, inside, job_pages, pages, try_pages
from jaxpeft.board.answers import Told, form, new_parts, page, stream
from jaxpeft.board.catalog import Catalog, Entry
from jaxpeft.board.follower import Follower
from jaxpeft.board.jobs import Queue
from jaxpeft.rundir.files import CONFIG

PIECE = 2**20  # bytes of a file that are sent at once


async def run(request: Request) -> Response:
    """The page of a run or a sweep."""
    entry = await _entry(request)
    queue: Queue = request.app.state.queue
    content = await asyncio.to_thread(_content, entry, queue)
    return page("run.html", **content)


def _content(entry: Entry, queue: Queue) -> dict[str, Any]:
    folder, found = entry.place.folder, pages.row(entry)
    try:
        config = inside.text(folder, CONFIG)
    except OSError:
        config = ""
    return {
        **_head(entry),
        "title": found["name"],
        "folder": inside.shown(folder),
        "samples": about.samples(folder),
        "log": _log(entry, queue),
        "command": actions.command(entry),
        "config": config,
        "environment": about.environment(folder),
        "files": about.files(folder),
    }


def _head(entry: Entry) -> dict[str, Any]:
    found = pages.row(entry)
    return {
        "row": found,
        "headlines": about.headlines(found, entry),
        "buttons": actions.buttons(entry),
        "can_try": try_pages.has_result(entry),
    }


def _log(entry: Entry, queue: Queue) -> str:
    """What the newest command about a run says, if the board has started one."""
    folder = str(entry.place.folder)
    for job in queue.jobs():
        if job.run == folder and job.name in ("train", "sweep"):
            return pages.render("log.html", job=job, log=job_pages.log(queue, job))
    return ""


async def act(request: Request) -> Response:
    """Does what a button of a run says."""
    entry = await _entry(request)
    action = actions.ACTIONS.get(request.path_params["action"])
    if action is None:
        raise HTTPException(404, "There is no such button.")
    to = (await form(request)).get("to", "")
    number = await asyncio.to_thread(action, entry, request.app.state.queue, to)
    after = f"/run/{entry.place.key}" if number is None else f"/jobs/{number}"
    return RedirectResponse(after, 303)


async def events(request: Request) -> Response:
    """What is new of a run: its head, its curves, its samples, its files."""
    entry = await _entry(request)
    catalog: Catalog = request.app.state.catalog
    queue: Queue = request.app.state.queue
    key, follower = entry.place.key, Follower(entry.place.folder)
    seen: dict[str, str] = {}

    def changes() -> Told:
        now = catalog.refresh().get(key)
        if now is None:
            return new_parts(seen, {"head": pages.render("gone.html")})
        told: list[tuple[str, Any]] = []
        remarks = []
        try:
            if follower.read():
                told.append(("charts", follower.charts()))
        except OSError as error:
            remarks.append(f"the metrics cannot be read ({error.strerror})")
        if follower.bad:
            remarks.append(f"{follower.bad} lines of the metrics could not be read")
        if follower.every > 1:
            remarks.append(f"the curves show one of {follower.every} lines")
        folder = now.place.folder
        parts = {
            "head": pages.render("head.html", **_head(now), remarks=remarks),
            "log": _log(now, queue),
            "samples": pages.render("samples.html", samples=about.samples(folder)),
            "files": pages.render(
                "files.html", row={"key": key}, files=about.files(folder)
            ),
        }
        return told + new_parts(seen, parts)

    return stream(request, changes)


async def findings(request: Request) -> Response:
    """What the curves of a run say, a part of its page."""
    entry = await _entry(request)
    found = await asyncio.to_thread(about.findings, entry.place.folder)
    return page("findings.html", findings=found)


async def settings(request: Request) -> Response:
    """The settings of a run that are not the defaults, a part of its page."""
    entry = await _entry(request)
    found, wrong = await asyncio.to_thread(about.settings, entry.place.folder)
    return page("settings.html", settings=found, complaints=wrong)


async def examples_of(request: Request) -> Response:
    """The first examples of a run as its model sees them; they take a while."""
    entry = await _entry(request)
    name = inside.shown(entry.place.name)
    return page("examples.html", title=f"Data of {name}", key=entry.place.key)


async def examples_part(request: Request) -> Response:
    """The same, made now, a part of its page."""
    entry = await _entry(request)
    queue: Queue = request.app.state.queue
    try:
        text = await asyncio.to_thread(inside.text, entry.place.folder, CONFIG)
    except OSError as error:
        raise HTTPException(404, f"It cannot be read: {error.strerror}.") from None
    told = await examples.of(text, queue.work)
    sets, error = told.get("sets", ()), told.get("error", "")
    return page("examples_part.html", sets=sets, error=error)


async def download(request: Request) -> Response:
    """A file of a run, to be kept and never shown: it may hold anything."""
    entry = await _entry(request)
    name = request.query_params.get("name", "")
    folder = entry.place.folder
    offered = await asyncio.to_thread(about.files, folder)
    if name not in {known for known, _ in offered}:
        raise HTTPException(404, "The run has no such file.")
    try:
        file = await asyncio.to_thread(inside.opened, folder, name)
    except OSError as error:
        raise HTTPException(404, f"It cannot be read: {error.strerror}.") from None
    size = os.fstat(file.fileno()).st_size

    async def content() -> AsyncIterator[bytes]:
        left = size
        with file:
            while left > 0:
                piece = await asyncio.to_thread(file.read, min(PIECE, left))
                if not piece:
                    return
                left -= len(piece)
                yield piece

    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return StreamingResponse(
        content(),
        media_type="application/octet-stream",
        headers={"content-disposition": f"attachment; filename={plain}"},
    )


async def _entry(request: Request) -> Entry:
    """The run that an address names."""
    catalog: Catalog = request.app.state.catalog
    entries = await asyncio.to_thread(catalog.refresh)
    entry = entries.get(request.path_params["key"])
    if entry is None:
        raise HTTPException(404, "There is no such run, or it is gone.")
    return entry
