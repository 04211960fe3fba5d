"""The page on which runs stand side by side."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jaxpeft.board import pages
from jaxpeft.board.answers import Encoded, Told, encoded, new_parts, page, stream
from jaxpeft.board.catalog import Catalog
from jaxpeft.board.kept import Kept
from jaxpeft.board.shared import SECONDS

NONE = (
    "Mark runs by the boxes before their names in the table, or a sweep for all of its "
    'points, then choose "compare the marked".'
)


async def compare(request: Request) -> Response:
    """The page."""
    if not request.query_params.getlist("run"):
        return page("complaint.html", title="Nothing is marked", why=NONE)
    kept: Kept = request.app.state.comparisons
    key = ("opened", *_asked(request))
    content = await kept.in_thread(key, SECONDS, _opened, request)
    return page("compare.html", **content)


def _asked(request: Request) -> tuple[str, ...]:
    """What makes one comparison another than the next: the axis, and the runs."""
    keys = request.query_params.getlist("run")
    return request.query_params.get("x", ""), *dict.fromkeys(keys)


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
    state = request.app.state
    kept: Kept = state.comparisons
    key = _asked(request)
    # Once here, so that who asks for none is told.
    first = await kept.in_thread(("begun", *key), 0, _Live, request)
    seen: dict[str, str] = {}
    shown = 0

    def changes() -> Told:
        nonlocal shown
        _, (drawn, charts, html) = state.shared.look(("compare", key), lambda: first)
        curves = [("charts", charts)] if drawn != shown else []
        shown = drawn
        return curves + new_parts(seen, {"side-by-side": html})

    return stream(request, changes)


class _Live:
    """Runs side by side, looked at once for all pages that show them."""

    def __init__(self, request: Request):
        self._catalog: Catalog = request.app.state.catalog
        self._found = _compared(request)
        self._last: tuple[int, Encoded, str] | None = None

    def __call__(self) -> tuple[int, Encoded, str]:
        """(how often they were drawn, their curves, the table)."""
        found, last = self._found, self._last
        if not found.read() and last is not None:
            return last
        entries = self._catalog.refresh()
        found.entries = [entries.get(e.place.key, e) for e in found.entries]
        records = found.records()
        html = pages.render("compare_table.html", **_table(found, records))
        drawn = 1 if last is None else last[0] + 1
        self._last = drawn, encoded(found.charts(records)), html
        return self._last
