"""What is wrong with the grid of a sweep, before the sweep is queued."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxpeft.errors import InputError
from jaxpeft.sweep import grid
from jaxpeft.sweep.sweep import Sweep

FIELD = "sweep: "  # what a complaint begins with that stands beside the field
MOST = 1000  # points that are checked, one after another


def problems(lines: Sequence[str], text: str, directory: Path) -> list[str]:
    """All that is wrong with a grid, as the command would say it.

    Args:
        lines: texts KEY=A,B,C.
        text: the configuration; "": it is not sound, and only the lines are checked.
        directory: where the sweep is to be written.
    """
    if not lines:
        return [f"{FIELD}give at least one line KEY=A,B,C"]
    try:
        axes = grid.axes(lines)
        count = math.prod(map(len, axes.values()))
        if count > MOST:
            raise InputError(
                f"these are {count:,} points, and at most {MOST:,} are started here; "
                "name fewer values, or run the command by hand"
            )
        if text:
            _check(axes, text, directory)
    except InputError as error:
        own = dict.fromkeys(one.removeprefix("--grid ") for one in error.problems)
        return [FIELD + one for one in own]
    return []


def _check(axes: dict, text: str, directory: Path) -> None:
    """Parses the configuration of each point, which is read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        sweep = Sweep(str(path), (), directory, axes)
        sweep.configurations(sweep.add(grid.points(axes)))
