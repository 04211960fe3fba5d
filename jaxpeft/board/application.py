"""The addresses of the board, and what stands behind each."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jaxpeft.board import (
    compare_pages,
    inside,
    job_pages,
    new_pages,
    pages,
    run_pages,
    try_pages,
)
from jaxpeft.board.answers import (
    Told,
    complaint,
    fault,
    page,
    refusal,
    stream,
)
from jaxpeft.board.catalog import Catalog, Entry
from jaxpeft.board.guard import Guard, TooLarge, too_large
from jaxpeft.board.jobs import Queue
from jaxpeft.board.kept import Kept
from jaxpeft.board.shared import Shared
from jaxpeft.board.talks import Talks
from jaxpeft.errors import InputError

MOST = 5000  # rows that are kept
DIGITS = 16  # of a number in an address that is worth reading


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
            Route("/run/{key}", run_pages.run),
            Route("/run/{key}/events", run_pages.events),
            Route("/run/{key}/findings", run_pages.findings),
            Route("/run/{key}/settings", run_pages.settings),
            Route("/run/{key}/examples", run_pages.examples_of),
            Route("/run/{key}/examples/part", run_pages.examples_part),
            Route("/run/{key}/file", run_pages.download),
            Route("/run/{key}/do/{action}", run_pages.act, methods=["POST"]),
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
            Route("/jobs/{number}", job_pages.job),
            Route("/jobs/{number}/events", job_pages.job_events),
            Route("/jobs/{number}/picture", job_pages.picture),
            Route("/jobs/{number}/{action}", job_pages.act, methods=["POST"]),
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
    # What a GET may set to work, by what it takes: a process, much memory, a thread.
    app.state.examples = Kept(places=1, waiting=8, most=8)
    app.state.comparisons = Kept(places=1, waiting=8, most=2)
    app.state.looks = Kept(places=2, waiting=32, most=64)
    app.state.shared = Shared()
    app.state.rows = Rows()
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
    entries, version = await asyncio.to_thread(catalog.latest)
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
        since=f"{catalog.epoch}-{version}",
        columns=(pages.Column("name", "run", False), *pages.COLUMNS),
        sort=key,
        down=down,
        words=words,
    )


def _table(
    entries: dict[str, Entry], key: str, down: bool, words: str
) -> dict[str, Any]:
    rows = pages.in_order([pages.row(one) for one in entries.values()], key, down)
    drawn: dict[str, list[str]] = {}  # a sweep, or a run that stands alone
    shown = 0
    wanted = words.lower().split()
    # A sweep stands where its own row does, with its points beneath in their order.
    for found in sorted(rows, key=lambda one: bool(one["sweep"])):
        text = " ".join(map(str, (found["name"], *pages.texts(found, 0).values())))
        hidden = not all(word in text.lower() for word in wanted)
        shown += not hidden
        group = found["sweep"] or found["key"]
        drawn.setdefault(group, []).append(pages.render_row(found, hidden))
    sweeps = {one["key"] for one in rows if one["is_sweep"]}
    groups: list[tuple[str | None, list[str]]] = [("", [])]  # runs that begin come here
    for group, texts in drawn.items():
        is_sweep = group in sweeps or len(texts) > 1
        if is_sweep:
            groups.append((group, texts))
        elif groups[-1][0]:
            groups.append((None, texts))
        else:
            groups[-1][1].extend(texts)
    return {"groups": groups, "shown": shown, "total": len(rows)}


async def index_events(request: Request) -> Response:
    """What is new in the table."""
    catalog: Catalog = request.app.state.catalog
    drawn: Rows = request.app.state.rows
    epoch, _, version = request.query_params.get("since", "").partition("-")
    known = epoch == catalog.epoch and version.isdecimal() and len(version) < DIGITS
    begun = int(version) if known else 0
    seen, keys = {"version": begun}, set()

    def changes() -> Told:
        nonlocal keys
        entries, version = catalog.latest()
        told: list[tuple[str, Any]] = []
        new = [one for one in entries.values() if one.version > seen["version"]]
        seen["version"] = version
        if new:
            told.append(("rows", [drawn.told(one) for one in new]))
        if entries.keys() != keys:
            keys = set(entries)
            told.append(("keys", sorted(keys)))
        return told

    return stream(request, changes)


class Rows:
    """The rows of the table as they are told, made once for all of its pages."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()

    def told(self, entry: Entry) -> dict[str, Any]:
        """What the page is told of a run that has changed; from any thread.

        Args:
            entry: the run.
        """
        key, version = entry.place.key, entry.version
        of, told = self._told.get(key, (-1, {}))
        if of != version:
            found = pages.row(entry)
            group = found["key"] if found["is_sweep"] else found["sweep"]
            html = pages.render_row(found)
            told = {"id": found["key"], "group": group, "html": html}
            self._told[key] = (version, told)
            while len(self._told) > MOST:
                self._told.popitem(last=False)
        return told
