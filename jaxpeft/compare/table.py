"""Runs side by side: as text, and a line for each run as CSV."""

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpeft import replacing
from jaxpeft.compare.record import Record
from jaxpeft.config.training import EVAL
from jaxpeft.report import wording
from jaxpeft.rundir.metrics import unit_of_loss

NONE, BEST = "-", "*"
LOWER = ("train_loss", "eval_loss", "best_eval_loss", "seconds", "peak_memory_bytes")
PLAIN = ("steps", "best_step", "tokens", "parameters", "trainable")
WIDTH = 100  # characters of a line where nobody says how wide the terminal is


class Row(NamedTuple):
    """One line of the comparison.

    Attributes:
        label: what it is about.
        cells: the values of all runs, as text.
        best: the numbers of the runs with the best value, if one is better.
        is_setting: whether it is a key of the configuration.
    """

    label: str
    cells: list[str]
    best: frozenset[int] = frozenset()
    is_setting: bool = False


def rows(records: Sequence[Record]) -> list[Row]:
    """The status of the runs, the settings in which they differ, and what came out.

    Args:
        records: the runs.
    """
    found = [Row("status", [one.status for one in records])]
    for key in _differing(records):
        cells = [_shortest(one.settings.get(key, NONE)) for one in records]
        found.append(Row(key, cells, is_setting=True))
    units = [unit_of_loss([*one.training, *one.evaluation]) for one in records]
    for name in _figures(records):
        values = [one.figures.get(name) for one in records]
        label, unit = wording.FIGURES.get(
            name, (name.removeprefix(EVAL).replace("_", " "), "score")
        )
        cells = [
            NONE if v is None else wording.figure(v, unit, of_loss)
            for v, of_loss in zip(values, units, strict=True)
        ]
        found.append(Row(label, cells, _best(name, values)))
    return found


def lines(records: Sequence[Record]) -> list[str]:
    """The comparison as text: a column for each run, or a block where that is too wide.

    Args:
        records: the runs.
    """
    found = rows(records)
    names = [one.name for one in records]
    table = [("", *names)] + [(row.label, *_marked(row)) for row in found]
    widths = [max(map(len, column)) for column in zip(*table)]
    most = shutil.get_terminal_size((WIDTH, 24)).columns
    if sum(widths) + 2 * len(names) <= most:
        return [_line(cells, widths) for cells in table]
    # Too wide: one run below the other.
    width = max(len(row.label) for row in found)
    blocks = []
    for number, name in enumerate(names):
        own = [f"  {row.label:<{width}}  {_marked(row)[number]}" for row in found]
        blocks += ([""] if number else []) + [name, *own]
    return blocks


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Writes a line for each run: its settings that differ, and its figures.

    Args:
        path: the file.
        records: the runs.
    """
    settings, figures = _differing(records), _figures(records)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", "status", *settings, *figures])
    for one in records:
        writer.writerow(
            [
                *(one.name, one.status),
                *(one.settings.get(key, "") for key in settings),
                *(one.figures.get(name) for name in figures),
            ]
        )
    replacing.write_text(path, text.getvalue())


def _differing(records: Sequence[Record]) -> list[str]:
    """The keys of which not all the configurations that can be read say the same."""
    known = [one.settings for one in records if one.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return [key for key in keys if len({one.get(key) for one in known}) > 1]


def _figures(records: Sequence[Record]) -> list[str]:
    """The figures that any run has, in the order of the run that has the most."""
    fullest = sorted(records, key=lambda one: -len(one.figures))
    names = dict.fromkeys(name for one in fullest for name in one.figures)
    return [n for n in names if any(one.figures.get(n) is not None for one in records)]


def _best(name: str, values: Sequence[float | None]) -> frozenset[int]:
    """The runs with the best of several different values."""
    known = [value for value in values if value is not None]
    if name in PLAIN or len(set(known)) < 2:
        return frozenset()
    best = min(known) if name in LOWER or name.endswith("loss") else max(known)
    return frozenset(number for number, value in enumerate(values) if value == best)


def _marked(row: Row) -> list[str]:
    return [cell + BEST * (number in row.best) for number, cell in enumerate(row.cells)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths)).rstrip()


def _shortest(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
