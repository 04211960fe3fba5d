"""A sweep: runs from one configuration, in a directory that can be gone on with."""

import csv
import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from jaxpeft import console, tree
from jaxpeft.assembly import configuration
from jaxpeft.config import RunConfig, strict_yaml
from jaxpeft.config.training import LOSS
from jaxpeft.errors import InputError, NumericsError
from jaxpeft.report import plots, sweep_page, wording
from jaxpeft.rundir import files, sweep_files
from jaxpeft.sweep import grid, joint
from jaxpeft.sweep.judge import Judge
from jaxpeft.sweep.point import LAST_LINES, Point
from jaxpeft.train import course
from jaxpeft.train.standing import DIVERGED, DONE, RUNNING, STOPPED

TABLE, POINTS, GROUPS = "sweep.csv", "points", "groups"
SEED = "seed"
NEAR = 0.05  # of a space: what a search drew there is at its end


@dataclass
class Sweep:
    """The points of a sweep and where they are written.

    Attributes:
        source: the configuration file.
        overrides: texts `section.key=value` that replace its keys at every point.
        directory: where the sweep is written.
        axes: {key: the values of a grid, or the space of a search}.
        at_once: the most points that one program trains; None: see `grid.together`.
        points: the points so far.

    Raises:
        InputError: where the directory holds another sweep, or anything else.
    """

    source: str
    overrides: Sequence[str]
    directory: Path
    axes: dict[str, Any]
    at_once: int | None = None
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = configuration.open_config(self.source, self.overrides)
        self.judge = Judge(self.base)
        settings = self.base.model_dump(mode="json")
        settings.pop("output_dir")
        self._asked = {"settings": settings, "axes": self.axes}
        self._present: list[dict[str, str]] = []  # the points of this command's grid
        path = self.directory / sweep_files.SWEEP
        if path.is_file():
            try:
                self._go_on(files.read_json(path))
            except (TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{path}: found no sweep that can be gone on with; name another "
                    "directory with --out, or remove this one"
                ) from error
        elif self.directory.is_dir() and any(self.directory.iterdir()):
            raise InputError(
                f"--out: {str(self.directory)!r} is not empty and holds no sweep; name "
                "another directory"
            )

    def add(self, choices: Sequence[dict[str, Any]]) -> list[Point]:
        """Adds points that wait, but for those that a grid has; returns the added."""
        turn = 1 + max((point.turn for point in self.points), default=-1)
        known = [point.written for point in self.points]
        # Not how many there are: one of them may have been taken out of sweep.json.
        number = 1 + max((int(_number(point)) for point in self.points), default=-1)
        added = []
        for values in choices:
            directory = f"{POINTS}/{number + len(added):02}"
            point = Point(grid.name(values), directory, values, turn=turn)
            self._present.append(point.written)
            if not self.is_grid or point.written not in known:
                added.append(point)
        self.points += added
        return added

    @property
    def is_grid(self) -> bool:
        """Whether the axes name values, and not spaces to draw from."""
        return all(isinstance(axis, list) for axis in self.axes.values())

    def configurations(self, points: Sequence[Point]) -> list[RunConfig]:
        """The configuration of each point; an InputError says all that is wrong."""
        configs, problems = [], []
        for point in points:
            own = {**point.values, "output_dir": str(self._output(point))}
            try:
                cfg = configuration.open_config(self.source, self.overrides, own)
            except InputError as error:
                problems += [f"{point.name}: {text}" for text in error.problems]
            else:
                configs.append(cfg)
        if problems:
            raise InputError(*problems)
        return configs

    def way_out(self, point: Point) -> list[str]:
        """How to drop a point that an earlier command's grid alone has, in a sentence.

        Args:
            point: that cannot be trained.

        Returns:
            The sentence; none for a point of the present grid, or of a search.
        """
        if not self.is_grid or point.written in self._present:
            return []
        folder, path = self._output(point), self.directory / sweep_files.SWEEP
        also = f", and delete the folder {folder}" if folder.exists() else ""
        return [
            f"{point.name}: comes from an earlier command with this --out, and the "
            f"present --grid does not name it; to drop it, remove its entry (the one "
            f'with "directory": "{point.directory}") from the list "points" in '
            f"{path}{also}; or name another directory with --out"
        ]

    def train(self, points: Sequence[Point]) -> None:
        """Trains the points that have not ended, together where one program can."""
        left = [point for point in points if not point.ended]
        configs = self.configurations(left)
        if reason := grid.of_ranks(configs, jax.device_count()):
            console.say(reason)
        for turn in sorted({point.turn for point in left}):
            at = [n for n, point in enumerate(left) if point.turn == turn]
            ours = [configs[n] for n in at]
            for numbers in grid.together(ours, jax.device_count(), self.at_once):
                self._train_group(
                    [left[at[n]] for n in numbers], [ours[n] for n in numbers]
                )

    def ranking(self) -> list[Point]:
        """The points that have ended, best first; those that diverged last."""
        ended = [point for point in self.points if point.ended]
        return sorted(ended, key=lambda p: (p.status == DIVERGED, self.judge.order(p)))

    def save(self) -> None:
        """Writes how the points stand, and the table of those that have ended."""
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {
            "base_config": self.source,
            **self._asked,
            "judged_by": self.judge.column,
            "prefers_greater": self.judge.prefers_greater,
            "remarks": [*over_seeds(self), *advice(self)] if self.ranking() else [],
            "points": [self._entry(point) for point in self.points],
        }
        files.write_json(self.directory / sweep_files.SWEEP, state)
        rows = [
            {"rank": rank, **point.written, **self.judge.columns(point)}
            for rank, point in enumerate(self.ranking(), 1)
        ]
        if rows:
            path = self.directory / TABLE
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def _entry(self, point: Point) -> dict[str, Any]:
        """A point as sweep.json has it."""
        entry = asdict(point)
        if self.judge.figure == LOSS:
            del entry["figure"], entry["best_figure"]
        return entry

    def draw(self) -> None:
        """Draws the picture and writes the page of the points so far."""
        sweep = sweep_files.read_sweep(self.directory)
        picture = self.directory / sweep_files.SWEEP_PLOT
        plots.plot_sweep(sweep, picture, str(self.directory))
        sweep_page.write_sweep(self.directory)

    def _train_group(self, group: list[Point], configs: list[RunConfig]) -> None:
        """Trains points together, and takes down what came of them."""
        for point in group:
            point.status = RUNNING
        self.save()
        start = time.monotonic()
        try:
            self._take_steps(group, configs)
        except InputError as error:
            ways = [text for point in group for text in self.way_out(point)]
            raise InputError(*error.problems, *ways) from error
        for point in group:
            point.seconds = round((time.monotonic() - start) / len(group), 1)
            path = self._output(point) / files.METRICS
            point.read(path, self.judge.figure, self.judge.prefers_greater)
        self.save()

    def _take_steps(self, group: list[Point], configs: list[RunConfig]) -> None:
        numbers = [_number(point) for point in group]
        if len(group) == 1:
            console.say(f"point {numbers[0]}: {group[0].name}")
            group[0].status = _alone(configs[0])
            return
        console.say(f"{len(group)} points in one program:")
        for number, point in zip(numbers, group):
            console.say(f"  {number}  {point.name}")
        shared = self.directory / GROUPS / numbers[0]
        for point, status in zip(group, joint.train(configs, shared, console.say)):
            point.status = status

    def _go_on(self, found: dict[str, Any]) -> None:
        """Takes over the points of the sweep that the directory holds.

        A grid may have got further values: its points are added to those.
        """
        points = [Point(**point) for point in found["points"]]
        begun = any((self._output(p) / files.METRICS).exists() for p in points)
        axes = found["axes"]
        if _further(axes, self.axes):
            # By their texts: true is not 1, though Python says so.
            both = {key: [*axes[key], *self.axes[key]] for key in axes}
            self.axes = self._asked["axes"] = {
                key: list({strict_yaml.dump_scalar(x): x for x in values}.values())
                for key, values in both.items()
            }
            found = {**found, "axes": self.axes}
        then, now = (
            {**_flat(x["settings"]), **_flat(x["axes"])} for x in (found, self._asked)
        )
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed and not begun:
            return  # it came to nothing: nothing is lost by another
        if changed:
            raise InputError(
                f"--out: {str(self.directory)!r} holds a sweep with other settings "
                f"({', '.join(changed[:5])}); name another directory, or "
                "repeat that sweep's command to go on with it"
            )
        self.points = points

    def _output(self, point: Point) -> Path:
        return self.directory / point.directory


def _number(point: Point) -> str:
    return point.directory.rsplit("/", 1)[-1]


def lines(sweep: Sweep) -> list[str]:
    """The table of the points that have ended, best first, in lines."""
    keys = list(dict.fromkeys(key for point in sweep.points for key in point.values))
    head = ("rank", *(key.rsplit(".", 1)[-1] for key in keys))
    head += (*sweep.judge.heads(), f"train loss, last {LAST_LINES}")
    head += ("s, its share", "status", "point")
    rows: list[tuple[str, ...]] = [head]
    for rank, point in enumerate(sweep.ranking(), 1):
        values = [
            wording.choice(point.values[key]) if key in point.values else "-"
            for key in keys
        ]
        rows.append(
            (str(rank), *values, *map(_short, sweep.judge.columns(point).values()))
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths))
        for row in rows
    ]


def over_seeds(sweep: Sweep) -> list[str]:
    """Mean and spread over the seeds, best first, where points differ by seed alone."""
    groups: dict[str, list[float]] = {}
    for point in sweep.ranking():
        others = {key: v for key, v in point.values.items() if key != SEED}
        if SEED in point.values and others and sweep.is_grid:
            groups.setdefault(grid.name(others), []).append(sweep.judge.score(point))
    several = {name: scores for name, scores in groups.items() if len(scores) > 1}
    rows = sorted(
        ((sum(s) / len(s), name, s) for name, s in several.items()),
        reverse=sweep.judge.prefers_greater,
    )
    return [
        f"{name}: {mean:.4f} on average over {len(scores)} seeds, "
        f"from {min(scores):.4f} to {max(scores):.4f}"
        for mean, name, scores in rows
        if math.isfinite(mean)
    ]


def advice(sweep: Sweep) -> list[str]:
    """Lines on what to do next: the best point, and where the grid is too small."""
    judge = sweep.judge
    ranked = [point for point in sweep.ranking() if math.isfinite(judge.score(point))]
    if not ranked:
        return ["no point has a finite loss: lower optimizer.learning_rate"]
    best = ranked[0]
    text = [
        f"best: {best.name}, {judge.column} {judge.score(best):.4f}{judge.unit}",
        f"train it again: {_command(sweep, best)}",
    ]
    if unlike := judge.incomparable(sweep.axes):
        text.append(
            f"{', '.join(unlike)}: another value is another loss, so that losses say "
            f"little of which one is better; {judge.way_to_compare}"
        )
    for key, axis in sweep.axes.items():
        at, ends = best.values[key], _ends(key, axis)
        for end, word in zip(ends, ("smaller", "larger")):
            if at == end or _is_near(at, end, ends, axis):
                text.append(
                    f"{key}: the best value, {_short(at)}, is at the end of what was "
                    f"tried; try {word} ones"
                    + (": the same command goes on from here" if sweep.is_grid else "")
                )
    return text


def _command(sweep: Sweep, point: Point) -> str:
    """What trains a point again as a run of its own, quoted for a shell."""
    words = ["python", "-m", "jaxpeft.train", "--config", sweep.source]
    return shlex.join([*words, *sweep.overrides, *grid.overrides(point.values)])


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


def _further(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two grids are over the same keys, however many values each has."""
    lists = all(isinstance(axis, list) for axis in [*then.values(), *now.values()])
    return lists and set(then) == set(now)


def _alone(cfg: RunConfig) -> str:
    """Trains one point as `train` would; returns how it ended."""
    try:
        course.train(cfg)
    except NumericsError as error:
        console.warn(str(error))
        return DIVERGED
    summary = files.read_json(Path(cfg.output_dir) / files.SUMMARY) or {}
    return STOPPED if summary.get("stopped_early") else DONE


def _short(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:.4g}"
            if abs(value) < 0.1
            else f"{value:.4f}".rstrip("0").rstrip(".")
        )
    return "-" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in tree.walk(settings)}
