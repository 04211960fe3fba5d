"""Points that differ by their seed alone: one candidate, tried several times."""

import math
from dataclasses import dataclass
from typing import Any

from jaxpeft.rundir.sweep_files import DROPPED
from jaxpeft.sweep import grid
from jaxpeft.sweep.point import Point
from jaxpeft.sweep.tried import Tried

SEED = "seed"
# Student's t of 1, 2, ... degrees of freedom: 95 % lie between minus this and this.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
_T_OF_MORE = 2.2


@dataclass(frozen=True)
class Candidate:
    """Points that differ by their seed alone, and what came of them.

    Attributes:
        name: their common values in short; empty where they have none.
        points: best first.
        scores: of each point, what it is judged by.
    """

    name: str
    points: tuple[Point, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the scores; an infinity where one of them is."""
        return sum(self.scores) / len(self.scores)

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None of a single seed."""
        count = len(self.scores)
        if count < 2 or not math.isfinite(self.mean):
            return None
        squares = sum((score - self.mean) ** 2 for score in self.scores)
        return math.sqrt(squares / (count - 1) / count)


def identity(point: Point, seeded: bool = False) -> tuple[tuple[str, str], ...]:
    """What the replicates of a point share: its values as YAML, without the seed.

    Args:
        point: any.
        seeded: whether the seed counts as any other value.
    """
    return tuple(kv for kv in point.written.items() if seeded or kv[0] != SEED)


def candidates(sweep: Tried) -> list[Candidate]:
    """The points that went to their ends, grouped over seeds, the best mean first.

    Of a search, which draws seeds as it draws anything, each point stands alone.
    """
    groups: dict[Any, list[Point]] = {}
    for point in sweep.ranking():
        if point.status != DROPPED:
            key = identity(point, seeded=not sweep.is_grid)
            groups.setdefault(key, []).append(point)
    found = []
    for points in groups.values():
        values = points[0].values
        others = {key: values[key] for key in values if key != SEED}
        name = grid.name(others if sweep.is_grid else values)
        scores = tuple(map(sweep.judge.score, points))
        found.append(Candidate(name, tuple(points), scores))
    sign = -1 if sweep.judge.prefers_greater else 1
    return sorted(found, key=lambda one: sign * one.mean)


def margin(one: Candidate, other: Candidate) -> float | None:
    """How far apart two means are by the seeds alone, at most, in 95 of 100 sweeps.

    Welch's t test: the two may spread differently.

    Args:
        one: a candidate.
        other: another one.

    Returns:
        The half width of the interval; None unless both have several seeds.
    """
    if one.error is None or other.error is None:
        return None
    parts = [(x.error or 0.0) ** 2 for x in (one, other)]
    counts = [len(x.scores) for x in (one, other)]
    total = sum(parts)
    spread = sum(part**2 / (n - 1) for part, n in zip(parts, counts))
    freedom = math.floor(total**2 / spread + 1e-9) if spread else len(_T)
    t = _T[freedom - 1] if freedom <= len(_T) else _T_OF_MORE
    return t * math.sqrt(total)
