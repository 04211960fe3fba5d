"""The look at the data as a page, in the manner of a run's report."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jaxpeft.data.shown import Piece, visible
from jaxpeft.look.facts import Facts
from jaxpeft.look.first import Part, Record
from jaxpeft.look.histogram import Bar
from jaxpeft.report import page

HEIGHT, TOP, BOTTOM = 200, 14, 24  # pixels of a histogram
_LABELS = 5  # lengths named below it


def write(
    path: Path,
    state: str,
    found: Sequence[Facts],
    records: Sequence[Sequence[tuple[str, list[Record]]]],
) -> None:
    """Writes the page.

    Args:
        path: the file.
        state: what the model and its settings are.
        found: the facts of each data set.
        records: the first records of its sources, for each data set.
    """
    page.write(
        path,
        "data.html",
        title="What the model sees",
        state=state,
        sets=[
            {
                "facts": about,
                "picture": picture(about.bars),
                "sources": [
                    (source, [as_shown(record) for record in some])
                    for source, some in sources
                ],
            }
            for about, sources in zip(found, records)
        ],
        charts=[],
    )


def picture(bars: Sequence[Bar]) -> dict[str, Any]:
    """Where the bars of a histogram stand: across in percent, upright in pixels.

    Args:
        bars: the histogram.
    """
    most = max(bar.count for bar in bars)
    room, width = HEIGHT - TOP - BOTTOM, 100 / len(bars)
    every = -(-len(bars) // _LABELS)
    return {
        "height": HEIGHT,
        "floor": HEIGHT - BOTTOM,
        "most": f"{most:,}",
        "top": TOP,
        "bars": [
            {
                "x": f"{i * width + 0.1 * width:.3f}%",
                "width": f"{0.8 * width:.3f}%",
                "y": round(HEIGHT - BOTTOM - room * bar.count / most, 1),
                "height": round(room * bar.count / most, 1),
                "middle": f"{(i + 0.5) * width:.3f}%" if i + 1 < len(bars) else "100%",
                "anchor": "middle" if i + 1 < len(bars) else "end",
                "label": bar.label if i % every == every // 2 else "",
                "title": f"{bar.label} tokens: {bar.count:,} examples",
            }
            for i, bar in enumerate(bars)
        ],
    }


def as_shown(record: Record) -> dict[str, Any]:
    """A record as a template shows it: its stretches of one kind, in their order.

    Args:
        record: the record.
    """
    return {"title": record.title, "parts": [_part(part) for part in record.parts]}


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "about": part.about,
        "begins": _spans(part.begins),
        "hidden": f"{part.hidden:,}" if part.hidden else "",
        "ends": _spans(part.ends),
    }


def _spans(found: Sequence[Piece]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(class, [(text, token ids) of each piece]) of each stretch of one kind."""
    return [
        (
            " ".join(
                name for name, holds in zip(("learned", "special"), kind) if holds
            ),
            [(visible(one.text), " ".join(map(str, one.ids))) for one in group],
        )
        for kind, group in groupby(found, lambda one: (one.learned, one.special))
    ]
