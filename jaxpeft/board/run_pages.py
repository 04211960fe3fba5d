"""The page of a run or a sweep, its parts, its files and its buttons."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from jaxpeft.board import (
    about,
    actions,
    examples,
    guard,
    inside,
    life,
    live,
    pages,
    resume,
)
from jaxpeft.board.answers import Told, form, new_parts, page, stream
from jaxpeft.board.catalog import Catalog, Entry
from jaxpeft.board.jobs import Queue
from jaxpeft.board.kept import Kept
from jaxpeft.board.live import Live
from jaxpeft.board.shared import Look
from jaxpeft.rundir.files import CONFIG, METRICS

PIECE = 2**20  # bytes of a file that are sent at once
MOMENT = 30.0  # seconds for which examples are as good as new: their data may change
LONG = 600.0  # for which it is that of files which have not changed


async def run(request: Request) -> Response:
    """The page of a run or a sweep."""
    entry = await _entry(request)
    content = await asyncio.to_thread(_content, request, entry)
    return page("run.html", **content)


def _content(request: Request, entry: Entry) -> dict[str, Any]:
    queue: Queue = request.app.state.queue
    entries = request.app.state.catalog.refresh()
    folder, found = entry.place.folder, pages.row(entry)
    try:
        config = inside.text(folder, CONFIG)
    except OSError:
        config = ""
    return {
        **live.head(entry),
        "points": live.points(entry, entries),
        "title": found["name"],
        "folder": inside.shown(folder),
        "samples": about.samples(folder),
        "log": live.log(entry, queue),
        "command": resume.began(entry),
        "config": config,
        "environment": about.environment(folder),
        "files": about.files(folder),
    }


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
    state, place = request.app.state, entry.place
    seen: dict[str, str] = {}
    shown = 0

    def begin() -> Look:
        return Live(state.catalog, state.queue, place.key, place.folder).look

    def changes() -> Told:
        nonlocal shown
        _, (drawn, charts, parts) = state.shared.look(("run", place.key), begin)
        curves = [("charts", charts)] if drawn != shown else []
        shown = drawn
        return curves + new_parts(seen, parts)

    return stream(request, changes)


async def findings(request: Request) -> Response:
    """What the curves of a run say, a part of its page."""
    entry = await _entry_of_part(request)
    folder, ended = entry.place.folder, entry.state not in life.LIVE
    key = ("findings", folder, ended, about.stamps(folder, CONFIG, METRICS))
    looks: Kept = request.app.state.looks
    found = await looks.in_thread(key, LONG, about.findings, folder, ended)
    return page("findings.html", findings=found)


async def settings(request: Request) -> Response:
    """The settings of a run that are not the defaults, a part of its page."""
    entry = await _entry_of_part(request)
    folder = entry.place.folder
    key = ("settings", folder, about.stamps(folder, CONFIG))
    looks: Kept = request.app.state.looks
    found, wrong = await looks.in_thread(key, LONG, about.settings, folder)
    return page("settings.html", settings=found, complaints=wrong)


async def examples_of(request: Request) -> Response:
    """The first examples of a run as its model sees them; they take a while."""
    entry = await _entry(request)
    name = inside.shown(entry.place.name)
    return page("examples.html", title=f"Data of {name}", key=entry.place.key)


async def examples_part(request: Request) -> Response:
    """The same, made now, a part of its page."""
    entry = await _entry_of_part(request)
    queue: Queue = request.app.state.queue
    kept: Kept = request.app.state.examples
    try:
        text = await asyncio.to_thread(inside.text, entry.place.folder, CONFIG)
    except OSError as error:
        raise HTTPException(404, f"It cannot be read: {error.strerror}.") from None
    told = await kept.get(text, MOMENT, lambda: examples.of(text, queue.work))
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

    # Who loads an adapter looks for its files by their own names.
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])
    return StreamingResponse(
        content(),
        media_type="application/octet-stream",
        headers={"content-disposition": f"attachment; filename={plain}"},
    )


async def _entry_of_part(request: Request) -> Entry:
    """The run, where a page of the board asks for a part that takes work."""
    if not guard.is_from_page(request):
        raise HTTPException(403, "This is a part of a page; open the page.")
    return await _entry(request)


async def _entry(request: Request) -> Entry:
    """The run that an address names."""
    catalog: Catalog = request.app.state.catalog
    entries = await asyncio.to_thread(catalog.refresh)
    entry = entries.get(request.path_params["key"])
    if entry is None:
        raise HTTPException(404, "There is no such run, or it is gone.")
    return entry
