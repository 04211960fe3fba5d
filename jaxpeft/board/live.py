"""What is new of a run, looked at once for all pages that show it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.board import about, actions, job_pages, pages, try_pages
from jaxpeft.board.answers import Encoded, encoded
from jaxpeft.board.catalog import Catalog, Entry
from jaxpeft.board.follower import Follower
from jaxpeft.board.jobs import Queue


class Live:
    """A run that pages follow.

    Args:
        catalog: knows it.
        queue: has the commands about it.
        key: the run's.
        folder: its directory.
    """

    def __init__(self, catalog: Catalog, queue: Queue, key: str, folder: Path):
        self._catalog, self._queue, self._key = catalog, queue, key
        self._follower = Follower(folder)
        self._drawn, self._charts = 0, Encoded("null")

    def look(self) -> tuple[int, Encoded, dict[str, str]]:
        """(how often its curves were drawn, the curves, {id of a part: its HTML})."""
        entries = self._catalog.refresh()
        now = entries.get(self._key)
        if now is None:
            return self._drawn, self._charts, {"head": pages.render("gone.html")}
        follower, remarks = self._follower, []
        try:
            if follower.read():
                self._charts = encoded(follower.charts())
                self._drawn += 1
        except OSError as error:
            remarks.append(f"the metrics cannot be read ({error.strerror})")
        if follower.bad:
            lines = "line" if follower.bad == 1 else "lines"
            remarks.append(f"{follower.bad} {lines} of the metrics could not be read")
        if follower.every > 1:
            remarks.append(f"the curves show one of {follower.every} lines")
        folder = now.place.folder
        return (
            *(self._drawn, self._charts),
            {
                "head": pages.render("head.html", **head(now), remarks=remarks),
                "points": pages.render("points.html", points=points(now, entries)),
                "log": log(now, self._queue),
                "samples": pages.render("samples.html", samples=about.samples(folder)),
                "files": pages.render(
                    "files.html", row={"key": self._key}, files=about.files(folder)
                ),
            },
        )


def head(entry: Entry) -> dict[str, Any]:
    """What the head of a run's page shows.

    Args:
        entry: the run.
    """
    found = pages.row(entry)
    return {
        "row": found,
        "headlines": about.headlines(found, entry),
        "buttons": actions.buttons(entry),
        "can_try": try_pages.has_result(entry),
    }


def points(
    entry: Entry, entries: Mapping[str, Entry]
) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """(the row, the same as texts) of the points of a sweep, the best first.

    Args:
        entry: the sweep; any other run has none.
        entries: all runs.
    """
    own = [one for one in entries.values() if one.place.sweep == entry.place.key]
    rows = [pages.row(one) for one in own]
    evaluated = any(row["eval_loss"] is not None for row in rows)
    rows = pages.in_order(rows, "eval_loss" if evaluated else "loss", False)
    return [(row, pages.texts(row, 0.0)) for row in rows]


def log(entry: Entry, queue: Queue) -> str:
    """What the newest command about a run says, if the board has started one.

    Args:
        entry: the run.
        queue: has the commands.
    """
    folder = str(entry.place.folder)
    for job in queue.jobs():
        if job.run == folder and job.name in ("train", "sweep"):
            return pages.render("log.html", job=job, log=job_pages.log(queue, job))
    return ""
