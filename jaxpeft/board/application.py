"""The addresses of the board, and what stands behind each."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from jaxpeft.board import (
    about,
    actions,
    compare_pages,
    examples,
    inside,
    job_pages,
    new_pages,
    pages,
    try_pages,
)
from jaxpeft.board.answers import (
    Told,
    complaint,
    fault,
    form,
    new_parts,
    page,
    refusal,
    stream,
)
from jaxpeft.board.catalog import Catalog, Entry
from jaxpeft.board.follower import Follower
from jaxpeft.board.guard import Guard, TooLarge, too_large
from jaxpeft.board.jobs import Queue
from jaxpeft.board.talks import Talks
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import CONFIG

PIECE = 2**20  # bytes of a file that are sent at once


def application(
    catalog: Catalog,
    queue: Queue,
    token: str,
    host: str,
    port: int,
    is_ending: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """The board as an ASGI application.

    Args:
        catalog: the runs that it shows.
        queue: the commands that it starts.
        token: what every request must bring.
        host: where it is served.
        port: likewise.
        is_ending: whether streams are to end.
    """
    app = Starlette(
        routes=[
            Route("/", index),
            Route("/events", index_events),
            Route("/run/{key}", run),
            Route("/run/{key}/events", run_events),
            Route("/run/{key}/findings", run_findings),
            Route("/run/{key}/settings", run_settings),
            Route("/run/{key}/examples", run_examples),
            Route("/run/{key}/examples/part", run_examples_part),
            Route("/run/{key}/file", run_file),
            Route("/run/{key}/do/{action}", run_action, methods=["POST"]),
            Route("/try", try_pages.talk),
            Route("/try/say", try_pages.say, methods=["POST"]),
            Route("/compare", compare_pages.compare),
            Route("/compare/events", compare_pages.compare_events),
            Route("/new", new_pages.new),
            Route("/new/check", new_pages.check, methods=["POST"]),
            Route("/new/start", new_pages.start, methods=["POST"]),
            Route("/new/convert", new_pages.convert, methods=["POST"]),
            Route("/jobs", job_pages.index),
            Route("/jobs/events", job_pages.index_events),
            Route("/jobs/{number:int}", job_pages.job),
            Route("/jobs/{number:int}/events", job_pages.job_events),
            Route("/jobs/{number:int}/{action}", job_pages.act, methods=["POST"]),
            Route("/static/{name}", static),
        ],
        exception_handlers={
            HTTPException: complaint,
            InputError: refusal,
            TooLarge: too_large,
            Exception: fault,
        },
    )
    app.state.catalog = catalog
    app.state.queue = queue
    app.state.talks = Talks(queue.folder, queue.work)
    app.state.is_ending = is_ending
    return Guard(app, token, host, port)


async def static(request: Request) -> Response:
    """A style or a script."""
    name = request.path_params["name"]
    if name not in pages.ASSETS:
        raise HTTPException(404, "There is no such file.")
    content, kind = pages.asset(name)
    headers = {"cache-control": "private, max-age=60"}
    return Response(content, media_type=kind, headers=headers)


async def index(request: Request) -> Response:
    """The table of runs."""
    catalog: Catalog = request.app.state.catalog
    entries = await asyncio.to_thread(catalog.refresh)
    key = request.query_params.get("sort", "changed")
    if key != "name" and key not in {column.key for column in pages.COLUMNS}:
        key = "changed"
    down = request.query_params.get("down", "1" if key == "changed" else "") == "1"
    words = request.query_params.get("words", "")
    content = await asyncio.to_thread(_table, entries, key, down, words)
    return page(
        "index.html",
        **content,
        title="Runs",
        tops=[inside.shown(top) for top in catalog.folders.tops],
        complaints=[inside.shown(one) for one in catalog.folders.complaints],
        since=f"{catalog.epoch}-{catalog.version}",
        columns=(pages.Column("name", "run", False), *pages.COLUMNS),
        sort=key,
        down=down,
        words=words,
    )


def _table(
    entries: dict[str, Entry], key: str, down: bool, words: str
) -> dict[str, Any]:
    rows = pages.in_order([pages.row(one) for one in entries.values()], key, down)
    groups: dict[str, list[str]] = {"": []}
    shown = 0
    wanted = words.lower().split()
    for found in sorted(rows, key=lambda one: not one["is_sweep"]):
        text = " ".join(map(str, (found["name"], *pages.texts(found, 0).values())))
        hidden = not all(word in text.lower() for word in wanted)
        shown += not hidden
        group = found["key"] if found["is_sweep"] else found["sweep"]
        groups.setdefault(group, []).append(pages.render_row(found, hidden))
    return {"groups": groups, "shown": shown, "total": len(rows)}


async def index_events(request: Request) -> Response:
    """What is new in the table."""
    catalog: Catalog = request.app.state.catalog
    epoch, _, version = request.query_params.get("since", "").partition("-")
    begun = int(version) if epoch == catalog.epoch and version.isdecimal() else 0
    seen, keys = {"version": begun}, set()

    def changes() -> Told:
        nonlocal keys
        entries = catalog.refresh()
        told: list[tuple[str, Any]] = []
        new = [one for one in entries.values() if one.version > seen["version"]]
        if new:
            seen["version"] = max(one.version for one in new)
            rows = [pages.row(one) for one in new]
            told.append(
                (
                    "rows",
                    [
                        {
                            "id": one["key"],
                            "group": one["key"] if one["is_sweep"] else one["sweep"],
                            "html": pages.render_row(one),
                        }
                        for one in rows
                    ],
                )
            )
        if entries.keys() != keys:
            keys = set(entries)
            told.append(("keys", sorted(keys)))
        return told

    return stream(request, changes)


async def run(request: Request) -> Response:
    """The page of a run or a sweep."""
    entry = await _entry(request)
    queue: Queue = request.app.state.queue
    content = await asyncio.to_thread(_run_content, entry, queue)
    return page("run.html", **content)


def _run_content(entry: Entry, queue: Queue) -> dict[str, Any]:
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


async def run_action(request: Request) -> Response:
    """Does what a button of a run says."""
    entry = await _entry(request)
    action = actions.ACTIONS.get(request.path_params["action"])
    if action is None:
        raise HTTPException(404, "There is no such button.")
    to = (await form(request)).get("to", "")
    number = await asyncio.to_thread(action, entry, request.app.state.queue, to)
    after = f"/run/{entry.place.key}" if number is None else f"/jobs/{number}"
    return RedirectResponse(after, 303)


async def run_events(request: Request) -> Response:
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


async def run_findings(request: Request) -> Response:
    """What the curves of a run say, a part of its page."""
    entry = await _entry(request)
    found = await asyncio.to_thread(about.findings, entry.place.folder)
    return page("findings.html", findings=found)


async def run_settings(request: Request) -> Response:
    """The settings of a run that are not the defaults, a part of its page."""
    entry = await _entry(request)
    found, wrong = await asyncio.to_thread(about.settings, entry.place.folder)
    return page("settings.html", settings=found, complaints=wrong)


async def run_examples(request: Request) -> Response:
    """The first examples of a run as its model sees them; they take a while."""
    entry = await _entry(request)
    name = inside.shown(entry.place.name)
    return page("examples.html", title=f"Data of {name}", key=entry.place.key)


async def run_examples_part(request: Request) -> Response:
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


async def run_file(request: Request) -> Response:
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
