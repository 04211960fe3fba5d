"""What tables and sentences about a sweep look at: what was tried, and its ranking."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxpeft.sweep.judge import Judge
from jaxpeft.sweep.point import Point


class Tried(Protocol):
    """A sweep as those see it that tell of it.

    Attributes:
        source: the configuration file.
        directory: the sweep's folder.
        overrides: texts `section.key=value` that replace its keys at every point.
        axes: {key: the values of a grid, or the space of a search}.
        halving: the factor by which points are dropped on the way, or None.
        points: all of them.
        judge: knows which of two is the better.
    """

    source: str
    directory: Path
    overrides: Sequence[str]
    axes: dict[str, Any]
    halving: int | None
    points: list[Point]
    judge: Judge

    @property
    def is_grid(self) -> bool:
        """Whether the axes name values, and not spaces to draw from."""
        ...

    def ranking(self) -> list[Point]:
        """The points that have ended, best first."""
        ...
