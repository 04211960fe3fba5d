"""What came of a sweep in words: the best, by how much, and what to try next."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpeft.sweep import grid
from jaxpeft.sweep.point import Point
from jaxpeft.sweep.replicates import SEED, Candidate, candidates, margin
from jaxpeft.sweep.table import short
from jaxpeft.sweep.tried import Tried

NEAR = 0.05  # of a space: what a search drew there is at its end
WIDE = 8.0  # the largest over the smallest value of a grid that goes by factors


def over_seeds(sweep: Tried) -> list[str]:
    """Mean and spread over the seeds, best first, where points differ by seed alone."""
    several = [one for one in candidates(sweep) if one.name and len(one.scores) > 1]
    return [f"{one.name}: {_spread(one)}" for one in several]


def _spread(one: Candidate) -> str:
    finite = [score for score in one.scores if math.isfinite(score)]
    ends = f"from {min(finite):.4f} to {max(finite):.4f}" if finite else ""
    count = len(one.scores)
    if len(finite) == count:
        return (
            f"{one.mean:.4f} on average over {count} seeds, "
            f"standard error {one.error:.4f}, {ends}"
        )
    told = f"{count - len(finite)} of {count} seeds diverged"
    if len(finite) == 1:
        return f"{told}, the other had {finite[0]:.4f}"
    return f"{told}, the others {ends}" if finite else told


def advice(sweep: Tried) -> list[str]:
    """Lines on the best point, how sure that is, and what to try next."""
    judge = sweep.judge
    tried = candidates(sweep)
    ranked = [one for one in tried if math.isfinite(one.mean)]
    if not ranked:
        return _without_any(sweep, tried)
    first, best = ranked[0], ranked[0].points[0]
    said = f"{best.name}, {judge.column} {judge.score(best):.4f}{judge.unit}"
    if first.error is not None and first.name:
        said = (
            f"{first.name}, {judge.column} {first.mean:.4f}{judge.unit} on average "
            f"over {len(first.scores)} seeds, standard error {first.error:.4f}"
        )
    text = [f"best: {said}", f"train it again: {_command(sweep, best)}"]
    if unlike := judge.incomparable(sweep.axes):
        text.append(
            f"{', '.join(unlike)}: another value is another loss, so that losses say "
            f"little of which one is better; {judge.way_to_compare}"
        )
    sure, told = _difference(sweep, ranked)
    ends = list(_at_ends(sweep, best))
    finer = [] if sure is False else list(_finer(sweep, best))
    return text + told + ends + finer


def _without_any(sweep: Tried, tried: list[Candidate]) -> list[str]:
    """What is said where no candidate has a finite mean."""
    judge = sweep.judge
    points = [point for one in tried for point in one.points]
    finite = [point for point in points if math.isfinite(judge.score(point))]
    if not finite:
        return ["no point has a finite loss: lower optimizer.learning_rate"]
    best = min(finite, key=judge.order)
    return [
        "of every candidate a seed diverged: lower optimizer.learning_rate",
        f"the best point: {best.name}, {judge.column} {judge.score(best):.4f}"
        f"{judge.unit}",
    ]


def _difference(sweep: Tried, ranked: list[Candidate]) -> tuple[bool | None, list[str]]:
    """Whether the best is better by more than seeds make; None if nobody knows."""
    if len(ranked) < 2 or not sweep.is_grid or not ranked[0].name:
        return None, []
    first, second = ranked[:2]
    apart = abs(first.mean - second.mean)
    opening = f"the next is {second.name}, {apart:.4f} behind: "
    found = margin(first, second)
    if found is None:
        seeds = "" if SEED in sweep.axes else ", in another --out"
        return None, [
            f"{opening}whether that is more than another seed makes is not known; "
            f"train both with several, --grid seed=1,2,3{seeds}"
        ]
    if apart > found:
        return True, [
            f"{opening}more than seeds make, of which {found:.4f} would be expected at "
            "most (95 %)"
        ]
    return False, [
        f"{opening}no more than seeds make, of which up to {found:.4f} is to be "
        "expected (95 %): either may be the better one; give more seeds before "
        "anything finer"
    ]


def _at_ends(sweep: Tried, best: Point) -> Iterator[str]:
    """Lines on the keys whose best value is at the end of what was tried."""
    for key, axis in sweep.axes.items():
        at, ends = best.values[key], _ends(key, axis)
        for end, word in zip(ends, ("smaller", "larger")):
            if at == end or _is_near(at, end, ends, axis):
                yield (
                    f"{key}: the best value, {short(at)}, is at the end of what was "
                    f"tried; try {word} ones"
                    + (": the same command goes on from here" if sweep.is_grid else "")
                )


def _finer(sweep: Tried, best: Point) -> Iterator[str]:
    """Lines on the keys whose best value lies inside of the grid: what is beside it."""
    for key, axis in sweep.axes.items():
        at = best.values[key]
        if not sweep.is_grid or not _ends(key, axis) or at in _ends(key, axis):
            continue
        tried = sorted(axis)
        place, by_factors = tried.index(at), tried[0] > 0
        by_factors = by_factors and tried[-1] / tried[0] >= WIDE
        sides = (tried[place - 1], tried[place + 1])
        between = [
            math.sqrt(at * side) if by_factors else (at + side) / 2 for side in sides
        ]
        whole = all(isinstance(value, int) for value in tried)
        values = [str(round(x)) if whole else f"{x:.2g}" for x in between]
        values = [text for text in values if float(text) not in tried]
        if values:
            yield (
                f"{key}: the best value, {short(at)}, lies inside of what was tried; "
                f"a finer grid: --grid {key}={','.join(values)}, with which the same "
                "command goes on from here"
            )


def _command(sweep: Tried, point: Point) -> str:
    """What trains a point again as a run of its own, quoted for a shell.

    Its folder is another one than that of the configuration, where a run may be.
    """
    words = ["python", "-m", "jaxpeft.train", "--config", sweep.source]
    number = Path(point.directory).name
    beside = {"output_dir": f"{sweep.directory}-{number}"}
    said = [*sweep.overrides, *grid.overrides({**point.values, **beside})]
    return shlex.join([*words, *said])


def _ends(key: str, axis: Any) -> tuple[float, ...]:
    """The (lowest, highest) value of a key; () where these are no ends of a scale."""
    if isinstance(axis, dict):
        return (axis["low"], axis["high"]) if "low" in axis else ()
    if key == SEED or len(axis) < 3 or not all(map(_is_number, axis)):
        return ()
    return min(axis), max(axis)


def _is_near(value: float, end: float, ends: tuple[float, ...], axis: Any) -> bool:
    """Whether what a search has drawn lies at an end of its space, or next to it."""
    if not isinstance(axis, dict):
        return False
    along = math.log if axis["kind"] == "log" else float
    apart = abs(along(value) - along(end))
    return apart < NEAR * (along(ends[1]) - along(ends[0]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
