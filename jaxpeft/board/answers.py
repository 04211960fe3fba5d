"""Answers of the board: pages, streams of events, complaints; and what forms send."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from jaxpeft.board import pages
from jaxpeft.errors import InputError

EVERY = 0.5  # seconds between two looks for what is new: a line is seen within 1 s
MOST = 2000  # fields of a form
QUIET = 15.0  # seconds of silence after which a stream says that it lives

Told = Sequence[tuple[str, Any]]


class Encoded(str):
    """What an event says, as JSON already: many pages are told the same."""


def page(template: str, status: int = 200, **content: Any) -> Response:
    """A page as an answer.

    Args:
        template: its name.
        status: the code of the answer.
        content: what it shows.
    """
    text = pages.render(template, **content)
    # Texts of a run may hold what no encoding can.
    return HTMLResponse(text.encode("utf-8", "replace"), status)


def data(content: Any) -> Response:
    """JSON as an answer.

    Args:
        content: what it says.
    """
    return Response(json.dumps(content), media_type="application/json")


def encoded(content: Any) -> Encoded:
    """What an event says, as JSON.

    Args:
        content: what it says.
    """
    return content if isinstance(content, Encoded) else Encoded(json.dumps(content))


def stream(request: Request, changes: Callable[[], Told]) -> Response:
    """An answer without end: events, as they come.

    Args:
        request: the request; the stream ends when who asked is gone.
        changes: the events since its last call, asked in a thread.
    """

    async def events() -> AsyncIterator[str]:
        spoke = time.monotonic()
        while not request.app.state.is_ending():
            told = await asyncio.to_thread(changes)
            for name, content in told:
                yield f"event: {name}\ndata: {encoded(content)}\n\n"
            now = time.monotonic()
            if told:
                spoke = now
            elif now - spoke > QUIET:
                yield ": still here\n\n"
                spoke = now
            if await request.is_disconnected():
                return
            await asyncio.sleep(EVERY)

    return StreamingResponse(events(), media_type="text/event-stream")


def new_parts(seen: dict[str, str], parts: dict[str, str]) -> list[tuple[str, Any]]:
    """The event with the parts of a page that are others than those last told.

    Args:
        seen: {the id of a part: its HTML} that was told, and is brought up to date.
        parts: the same as they are now.
    """
    new = {name: html for name, html in parts.items() if seen.get(name) != html}
    seen.update(new)
    return [("parts", new)] if new else []


async def form(request: Request) -> dict[str, str]:
    """The fields that a form has sent, the last of those with the same name.

    Args:
        request: whose body they are.
    """
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=MOST)
    except ValueError:
        raise HTTPException(413, f"A form has at most {MOST:,} fields.") from None
    return {name: values[-1] for name, values in fields.items()}


async def complaint(request: Request, error: Exception) -> Response:
    """The page about a request that cannot be answered.

    Args:
        request: the request.
        error: why.
    """
    assert isinstance(error, HTTPException)
    why = (
        error.detail if error.status_code != 404 or error.detail != "Not Found" else ""
    )
    return page("complaint.html", error.status_code, title="Not found", why=why)


async def fault(request: Request, error: Exception) -> Response:
    """The page about a fault of the board, which goes on.

    Args:
        request: the request.
        error: the fault.
    """
    return page("complaint.html", 500, title="A fault of the board", why=repr(error))


async def refusal(request: Request, error: Exception) -> Response:
    """The page about something that was asked for and cannot be done.

    Args:
        request: the request.
        error: why.
    """
    assert isinstance(error, InputError)
    why = "; ".join(error.problems)
    return page("complaint.html", 409, title="This cannot be done", why=why)
