"""The table of a sweep's points, best first: as lines, and as CSV."""

import csv
from pathlib import Path
from typing import Any

from jaxpeft.replacing import replacing
from jaxpeft.report import wording
from jaxpeft.rundir.sweep_files import DROPPED
from jaxpeft.sweep.point import LAST_LINES
from jaxpeft.sweep.tried import Tried


def lines(sweep: Tried) -> list[str]:
    """The table of the points that have ended, best first, in lines."""
    keys = list(dict.fromkeys(key for point in sweep.points for key in point.values))
    head = ("rank", *(key.rsplit(".", 1)[-1] for key in keys))
    head += (*sweep.judge.heads(), f"train loss, last {LAST_LINES}")
    head += ("s, its share", "status", "point")
    rows: list[tuple[str, ...]] = [head]
    ranking = sweep.ranking()
    for rank, point in enumerate(ranking, 1):
        values = [
            wording.choice(point.values[key]) if key in point.values else "-"
            for key in keys
        ]
        rows.append(
            (str(rank), *values, *map(short, sweep.judge.columns(point).values()))
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths))
        for row in rows
    ]
    dropped = [point for point in ranking if point.status == DROPPED]
    return table + [f"dropped: {point.name}, {point.why}" for point in dropped]


def write(sweep: Tried, path: Path) -> None:
    """Writes the points that have ended as CSV, best first; none, no file.

    Args:
        sweep: of the points.
        path: the file.
    """
    rows: list[dict[str, Any]] = []
    for rank, point in enumerate(sweep.ranking(), 1):
        row = {"rank": rank, **point.written, **sweep.judge.columns(point)}
        rows.append(row | ({} if sweep.halving is None else {"why": point.why or ""}))
    if rows:
        with (
            replacing(path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def short(value: Any) -> str:
    """A cell of the table, or a number in a sentence."""
    if isinstance(value, float):
        return (
            f"{value:.4g}"
            if abs(value) < 0.1
            else f"{value:.4f}".rstrip("0").rstrip(".")
        )
    return "-" if value is None else str(value)
