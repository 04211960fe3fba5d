"""The page on which runs stand side by side."""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jaxpeft.board import pages
from jaxpeft.board.answers import Told, new_parts, page, stream


async def compare(request: Request) -> Response:
    """The page."""
    content = await asyncio.to_thread(_opened, request)
    return page("compare.html", **content)


def _compared(request: Request) -> Any:
    from jaxpeft.board.comparison import AXES, Compared

    entries = request.app.state.catalog.refresh()
    keys = request.query_params.getlist("run")
    chosen = [entries[key] for key in dict.fromkeys(keys) if key in entries]
    axis = request.query_params.get("x", "step")
    found = Compared(chosen, list(entries.values()), axis if axis in AXES else "step")
    if not found.entries:
        raise HTTPException(404, "Choose runs in the table of all, then compare.")
    found.read()
    return found


def _opened(request: Request) -> dict[str, Any]:
    from jaxpeft.board.comparison import AXES, MOST

    found = _compared(request)
    records = found.records()
    keys = request.query_params.getlist("run")
    return {
        **_table(found, records),
        "title": f"{len(records)} runs side by side",
        "charts": found.charts(records),
        "axis": found.axis,
        "axes": list(AXES),
        "asked": "&".join(f"run={key}" for key in keys if key.isalnum()),
        "is_cut": len(records) == MOST,
    }


def _table(found: Any, records: Any) -> dict[str, Any]:
    from jaxpeft.board.comparison import parallel
    from jaxpeft.compare import table

    return {
        "runs": [(r.name, e.place.key) for r, e in zip(records, found.entries)],
        "rows": [
            (row.label, [(cell, n in row.best) for n, cell in enumerate(row.cells)])
            for row in table.rows(records)
        ],
        "parallel": parallel(records),
    }


async def compare_events(request: Request) -> Response:
    """What is new of the runs on the page."""
    found = await asyncio.to_thread(_compared, request)
    seen: dict[str, str] = {}
    first = True

    def changes() -> Told:
        nonlocal first
        if not found.read() and not first:
            return ()
        first = False
        entries = request.app.state.catalog.refresh()
        found.entries = [entries.get(e.place.key, e) for e in found.entries]
        records = found.records()
        html = pages.render("compare_table.html", **_table(found, records))
        told = new_parts(seen, {"side-by-side": html})
        return [("charts", found.charts(records)), *told]

    return stream(request, changes)
