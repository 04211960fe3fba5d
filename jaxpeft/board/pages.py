"""Pages of the board from their templates, and what they say of a run."""

import functools
import math
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jaxpeft.board import inside, life
from jaxpeft.board.catalog import Entry
from jaxpeft.board.tail import is_number
from jaxpeft.config.sections import ModelSection, ObjectiveSection
from jaxpeft.report import wording
from jaxpeft.report.page import TEMPLATES as OF_REPORTS
from jaxpeft.report.page import script_data
from jaxpeft.rundir.files import finite

TEMPLATES = resources.files("jaxpeft.board") / "templates"
# What a page may ask for beside itself: name -> (folder, kind).
ASSETS = {
    "page.css": (OF_REPORTS, "text/css"),
    "board.css": (TEMPLATES, "text/css"),
    "charts.js": (OF_REPORTS, "text/javascript"),
    "board.js": (TEMPLATES, "text/javascript"),
    "new.js": (TEMPLATES, "text/javascript"),
    "try.js": (TEMPLATES, "text/javascript"),
    "theme.js": (TEMPLATES, "text/javascript"),
    "icon.svg": (TEMPLATES, "image/svg+xml"),
}
NONE = ""
# What goes without saying beside the method.
USUAL = {
    "model.quantization": ModelSection.model_fields["quantization"].default,
    "objective.name": ObjectiveSection.model_fields["name"].default,
}


class Column(NamedTuple):
    """A column of the table of runs.

    Attributes:
        key: the key of `row` that it shows, by which it can be sorted.
        title: what stands above.
        is_number: whether it is set to the right.
        remark: what it means.
    """

    key: str
    title: str
    is_number: bool = True
    remark: str = ""


COLUMNS = (
    Column("state", "state", False),
    Column("share", "steps", False, "steps taken, of all"),
    Column("loss", "loss", remark="of the last training line"),
    Column("eval_loss", "evaluation", remark="the last evaluation's loss"),
    Column("rate", "rate", remark="the learning rate of the last line, per update"),
    Column("speed", "tokens/s"),
    Column("memory", "memory", remark="of the process now, or the most of the run"),
    Column("left", "time left"),
    Column("method", "method", False),
    Column("model", "model", False),
    Column("data", "data", False),
    Column("changed", "changed", remark="how long ago a file of it changed"),
)


def asset(name: str) -> tuple[bytes, str]:
    """The content and kind of a file that pages ask for.

    Args:
        name: a key of `ASSETS`.
    """
    folder, kind = ASSETS[name]
    return (folder / name).read_bytes(), f"{kind}; charset=utf-8"


def render(template: str, **content: Any) -> str:
    """A page, or a part of one; all texts in it are escaped.

    Args:
        template: its name.
        content: what it shows.
    """
    return environment().get_template(template).render(**content)


def _asset(name: str) -> str:
    """A template of the board's own, or a part that reports have, too."""
    own = TEMPLATES / name
    path = own if own.is_file() else OF_REPORTS / name
    return path.read_text(encoding="utf-8")


@functools.cache
def environment() -> jinja2.Environment:
    """The environment of the templates."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["ago"], made.globals["clock"] = ago, lambda: time.time()
    made.globals["as_data"] = lambda content: Markup(script_data(content))
    return made


def row(entry: Entry) -> dict[str, Any]:
    """What the table says of a run or a sweep: numbers and texts, None for the unknown.

    Args:
        entry: what is known of it.
    """
    found = _unknown(entry)
    try:
        known = {**found, **_known(entry)}
        texts(known, 0.0)
    except Exception as error:  # noqa: BLE001
        # One run must not take the others off the table.
        return {**found, "faults": [*found["faults"], f"cannot be shown: {error!r}"]}
    return known


def _unknown(entry: Entry) -> dict[str, Any]:
    """The row of a run of which nothing is known but its place and its state."""
    name = entry.place.name
    if entry.place.sweep and f"/{POINTS}/" in name:
        name = name.rsplit(f"/{POINTS}/", 1)[1]
    return {
        **{column.key: None for column in COLUMNS},
        "key": entry.place.key,
        "name": inside.shown(name),
        "title": entry.title,
        "sweep": entry.place.sweep,
        "is_sweep": entry.place.is_sweep,
        "state": entry.state,
        "why": entry.why,
        "faults": list(entry.faults.values()),
        "step": 0,
        "steps": None,
        "changed": max(entry.latest, entry.changed) or None,
        "heard": entry.heard,
        "host": "" if entry.held is None else inside.shown(entry.held.host),
    }


def _known(entry: Entry) -> dict[str, Any]:
    figures, settings, summary = entry.figures, entry.settings, entry.summary
    steps, step = figures.steps(settings, summary), figures.step
    if entry.place.is_sweep:
        step, steps = entry.points
    seconds = figures.seconds_a_step
    left = finite(seconds * max(0, steps - step)) if seconds and steps else None
    training = figures.training
    speed = summary.get("tokens_per_second") or training.get("tokens_per_second")
    return {
        "step": step,
        "steps": steps,
        "share": min(1.0, step / steps) if steps else None,
        "loss": _number(training.get("loss")),
        "eval_loss": _number(figures.evaluation.get("eval_loss")),
        "rate": _number(training.get("learning_rate")),
        "speed": _number(speed),
        "memory": entry.memory,
        "left": left if entry.state in life.LIVE else None,
        "method": _method(settings),
        "model": _last(settings.get("model.path")),
        "data": ", ".join(map(_last, settings.get("data.train", ()))) or None,
    }


POINTS = "points"


def texts(found: Mapping[str, Any], now: float) -> dict[str, str]:
    """The same as texts, by the keys of `COLUMNS`.

    Args:
        found: a row.
        now: seconds since the epoch.
    """

    def said(key: str, form: Any) -> str:
        return NONE if found[key] is None else form(found[key])

    return {
        "state": found["state"],
        "share": progress(found),
        "loss": said("loss", loss),
        "eval_loss": said("eval_loss", loss),
        "rate": said("rate", lambda value: f"{value:.2e}" if value else "0"),
        "speed": said("speed", lambda value: f"{value:,.0f}"),
        "memory": said("memory", wording.size),
        "left": said("left", wording.duration),
        "method": found["method"] or NONE,
        "model": found["model"] or NONE,
        "data": found["data"] or NONE,
        "changed": said("changed", lambda at: ago(now - at)),
    }


def progress(found: Mapping[str, Any]) -> str:
    """How many steps, or points of a sweep, of how many."""
    what = " points" if found["is_sweep"] else ""
    if not found["steps"]:
        return f"{found['step']:,}{what}" if found["step"] else NONE
    return f"{found['step']:,} of {found['steps']:,}{what}"


def loss(value: float) -> str:
    """A loss with four digits behind the point."""
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def ago(seconds: float) -> str:
    """How long ago something was, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def in_order(rows: list[dict[str, Any]], key: str, down: bool) -> list[dict[str, Any]]:
    """Rows sorted by a column; those without a value stand last.

    Args:
        rows: of the table.
        key: a key of `COLUMNS`, or "name".
        down: whether the greatest comes first.
    """

    def value(one: Mapping[str, Any]) -> Any:
        found = one[key]
        return life.STATES.index(found) if key == "state" else found

    def known(one: Mapping[str, Any]) -> bool:
        found = one[key]
        return found is not None and not (isinstance(found, float) and found != found)

    by_name = sorted(rows, key=lambda one: one["name"])
    first = sorted(filter(known, by_name), key=value, reverse=down)
    return first + [one for one in by_name if not known(one)]


def render_row(found: Mapping[str, Any], hidden: bool = False) -> str:
    """The row of a run as HTML.

    Args:
        found: see `row`.
        hidden: whether it is there and not shown.
    """
    return render(
        "row.html",
        row=found,
        columns=COLUMNS,
        cells=texts(found, time.time()),
        hidden=hidden,
    )


def _number(value: Any) -> float | None:
    """A number, or NaN, which stands for a loss that is not finite."""
    return float(value) if is_number(value) else None


def _method(settings: Mapping[str, Any]) -> str | None:
    """The method, and its base's quantization and the objective where they say much."""
    words = [settings.get("adapter.method")]
    for key, usual in USUAL.items():
        if settings.get(key) not in (None, usual):
            words.append(settings[key])
    return " ".join(str(word) for word in words if word) or None


def _last(path: Any) -> str:
    """The last two parts of a path, which say what it is."""
    text = inside.shown(str(path or "")).removeprefix("jaxpeft:")
    return "/".join(text.rstrip("/").split("/")[-2:])
