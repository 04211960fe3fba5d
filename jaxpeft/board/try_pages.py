"""The page on which one talks with a model, or with two side by side."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jaxpeft.board import confine, inside
from jaxpeft.board.answers import form, page
from jaxpeft.board.catalog import Entry
from jaxpeft.board.jobs import Queue
from jaxpeft.board.talk import DRAWING
from jaxpeft.board.talks import Talks
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import ADAPTER, MODEL

BASE = "base"
FIELDS = (
    ("temperature", "0", "0 takes the most probable token each time"),
    ("top_k", "0", "draw from so many of the most probable; 0: all"),
    ("top_p", "1", "draw from the most probable that make up so much"),
    ("repetition_penalty", "1", "above 1: less of what was said already"),
    ("seed", "0", "of drawing"),
    ("max_new_tokens", "256", "tokens of an answer"),
)


async def talk(request: Request) -> Response:
    """The page."""
    entries = await asyncio.to_thread(request.app.state.catalog.refresh)
    entry = _trained(entries, request.query_params.get("run", ""))
    beside = request.query_params.get("with", "")
    sides = [{"run": entry.place.key, "base": "", "name": _name(entry)}]
    if beside == BASE:
        sides.append({"run": entry.place.key, "base": "1", "name": "its base"})
    elif beside:
        other = _trained(entries, beside)
        sides.append({"run": other.place.key, "base": "", "name": _name(other)})
    others = [
        (one.place.key, _name(one))
        for one in entries.values()
        if has_result(one) and one is not entry
    ]
    return page(
        "try.html",
        title=f"Try {_name(entry)}",
        row={"key": entry.place.key, "name": _name(entry)},
        sides=sides,
        others=sorted(others, key=lambda one: one[1]),
        beside=beside,
        fields=FIELDS,
    )


def _name(entry: Entry) -> str:
    return inside.shown(entry.place.name)


def has_result(entry: Entry) -> bool:
    """Whether a run has left a model that can be asked.

    Args:
        entry: the run.
    """
    folder = entry.place.folder
    return any((folder / name).is_dir() for name in (ADAPTER, MODEL))


def _trained(entries: dict[str, Entry], key: str) -> Entry:
    entry = entries.get(key)
    if entry is None or not has_result(entry):
        raise HTTPException(404, "There is no such run with a result to try.")
    return entry


async def say(request: Request) -> Response:
    """The answer of a model to a conversation, a line of JSON for each piece."""
    fields = await form(request)
    entries = await asyncio.to_thread(request.app.state.catalog.refresh)
    entry = _trained(entries, fields.get("run", ""))
    asked: dict[str, Any] = {
        name: fields.get(name, "")
        for name in (*DRAWING, "max_new_tokens", "system", "text")
    }
    try:
        asked["messages"] = json.loads(fields.get("messages", "[]"))
    except (ValueError, RecursionError):
        raise HTTPException(400, "The conversation is no JSON.") from None
    talks: Talks = request.app.state.talks
    is_base, folder = fields.get("base") == "1", entry.place.folder
    queue: Queue = request.app.state.queue

    async def parts() -> AsyncIterator[str]:
        try:
            await asyncio.to_thread(confine.check, folder, queue.tops)
            await asyncio.to_thread(queue.make)  # for the log
        except InputError as error:
            yield json.dumps({"error": "; ".join(error.problems)}) + "\n"
            return
        async for part in talks.ask(folder, is_base, asked):
            yield json.dumps(part) + "\n"

    return StreamingResponse(parts(), media_type="application/x-ndjson")
