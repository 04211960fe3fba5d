"""The page on which a run is made: a form, and the YAML that it stands for."""

import asyncio
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from jaxpeft.board import pages
from jaxpeft.board.answers import data, form, page
from jaxpeft.board.jobs import Queue
from jaxpeft.board.kept import Kept
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError


async def new(request: Request) -> Response:
    """The form, from a recipe, a run or a job."""
    looks: Kept = request.app.state.looks
    key = ("new", str(request.query_params))
    content = await looks.in_thread(key, 0, _opened, request)
    return page("new.html", **content, **EMPTY)


def _opened(request: Request) -> dict[str, Any]:
    return _content(request, _from(request))


EMPTY: dict[str, Any] = {
    **{"remarks": (), "kind": "", "grid": "", "memory": ""},
    "grid_problems": (),
}


def _from(request: Request) -> str:
    """The text of the configuration that the form begins with."""
    from jaxpeft.board import drafts  # it loads JAX, which only this page needs

    asked, state = request.query_params, request.app.state
    queue: Queue = state.queue
    text = ""
    if "run" in asked:
        entry = state.catalog.refresh().get(asked["run"])
        text = "" if entry is None else drafts.of_run(entry)
    elif asked.get("job", "").isdecimal() and len(asked["job"]) < 7:
        job = queue.job(int(asked["job"]))
        text = "" if job is None else drafts.of_job(job, queue)
    else:
        text = drafts.recipe(asked.get("recipe", ""), queue.work)
    if not text:
        raise HTTPException(404, "There is no configuration to begin with.")
    return drafts.fresh(text, queue.top, queue.work)


def _content(request: Request, text: str) -> dict[str, Any]:
    """What the page shows of a configuration."""
    from jaxpeft.board import drafts, schema

    queue: Queue = request.app.state.queue
    wrong = drafts.problems(text, _tops(request), queue.work)
    try:
        mapping = strict_yaml.load(text, drafts.NAME)
        is_read = True
    except InputError:
        mapping, is_read = {}, False
    groups = schema.groups(mapping, wrong)
    return {
        "title": "New run",
        "yaml": text,
        "is_read": is_read,
        "groups": groups,
        "shape": schema.shape(mapping),
        "problems": wrong,
        "unplaced": schema.unplaced(wrong, groups),
        "recipes": sorted(drafts.recipes(queue.work)),
        "chosen": request.query_params.get("recipe", ""),
    }


def _tops(request: Request) -> list[Path]:
    return request.app.state.catalog.folders.tops


async def check(request: Request) -> Response:
    """What is right and wrong with a configuration, after a change of one key."""
    fields = await form(request)
    return data(await asyncio.to_thread(_checked, request, fields))


def _checked(request: Request, fields: dict[str, str]) -> dict[str, Any]:
    from jaxpeft.board import drafts

    text, wrong = fields.get("yaml", ""), []
    if key := fields.get("key"):
        try:
            text = drafts.changed(text, key, fields.get("value", ""))
        except InputError as error:
            wrong = list(error.problems)
    content = _content(request, text)
    content["unplaced"] = [*wrong, *content["unplaced"]]
    count = len({*wrong, *content["problems"]})
    content["grid_problems"] = ()  # they are found when a sweep is started
    drawn = pages.render("new_form.html", **content) if content["is_read"] else None
    return {
        "yaml": text,
        "shape": content["shape"],
        "problems": count,
        "verdict": pages.render("new_verdict.html", **content),
        # Of what cannot be read the form has nothing to say: it stays as it is.
        "form": drawn,
    }


async def start(request: Request) -> Response:
    """Starts a command with the configuration, or says what is wrong with it."""
    from jaxpeft.board.grids import FIELD

    fields = await form(request)
    text, kind = fields.get("yaml", ""), fields.get("kind", "")
    asked = {name: fields.get(name, "") for name in ("grid", "memory")}
    try:
        number = await asyncio.to_thread(_begin, request, kind, text, **asked)
    except InputError as error:
        content = await asyncio.to_thread(_content, request, text)
        known = {*content["problems"]}
        more = [one for one in error.problems if one not in known]
        of_grid = [one for one in more if one.startswith(FIELD)]
        others = [one for one in more if one not in of_grid]
        content["unplaced"] = [*others, *content["unplaced"]]
        content["problems"] = [*more, *content["problems"]]
        content["grid_problems"] = [one.removeprefix(FIELD) for one in of_grid]
        content |= {"remarks": (), "kind": kind, **asked}
        return page("new.html", 409, **content)
    return RedirectResponse(f"/jobs/{number}", 303)


def _begin(request: Request, kind: str, text: str, grid: str, memory: str) -> int:
    from jaxpeft.board import drafts

    queue: Queue = request.app.state.queue
    text = text.replace("\r\n", "\n")
    lines = grid.splitlines()
    return drafts.begin(kind, text, lines, queue, _tops(request), memory)


async def convert(request: Request) -> Response:
    """The form with what a configuration of LLaMA-Factory says."""
    text = (await form(request)).get("theirs", "").replace("\r\n", "\n")
    ours, remarks = await asyncio.to_thread(_convert, request, text)
    content = await asyncio.to_thread(_content, request, ours)
    return page("new.html", **{**content, **EMPTY, "remarks": remarks})


def _convert(request: Request, text: str) -> tuple[str, list[str]]:
    from jaxpeft.board import drafts

    queue: Queue = request.app.state.queue
    ours, remarks = drafts.converted(text)
    return drafts.fresh(ours, queue.top, queue.work), remarks
