"""A page from its template: texts escaped, style and script inside, nothing fetched.

`charts.js` is our own, since a plotting library was found the worse choice. With uPlot
1.6.32 a page grows by 51 kB (a short run's from 25 to 76), most of the script stays
(legend, tooltip, keys, logarithmic ticks, marks), titles and curves become pixels that
nothing can read, and its lines want one column of x for all curves, which makes many
curves slow and keeps one of two points of a curve with the same x.
"""

import base64
import functools
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxpeft import replacing

TEMPLATES = resources.files("jaxpeft.report") / "templates"


def write(path: Path, template: str, **content: Any) -> None:
    """Writes a page, moved into place so that a browser never reads half of it.

    Args:
        path: the file.
        template: the name of its template in `templates/`.
        content: what the template shows. Its `charts`, a list of objects for
            `charts.js`, goes in as JSON.
    """
    charts = script_data(content.pop("charts"))
    style, script = _asset("page.css"), _asset("charts.js")
    html = (
        _environment()
        .get_template(template)
        .render(
            **content,
            charts=Markup(charts),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
        )
    )
    replacing.write_text(path, html)


def script_data(content: Any) -> str:
    """JSON that can stand inside a script element: no `<` can end or open one."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which nothing is fetched or run but ours."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
