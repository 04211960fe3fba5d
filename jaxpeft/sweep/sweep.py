"""A sweep: runs from one configuration, in a directory that can be gone on with."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from jaxpeft import console, tree
from jaxpeft.assembly import configuration
from jaxpeft.config import RunConfig, strict_yaml
from jaxpeft.config.training import LOSS
from jaxpeft.errors import InputError, NumericsError
from jaxpeft.report import plots, sweep_page
from jaxpeft.rundir import files, sweep_files
from jaxpeft.rundir.sweep_files import DROPPED
from jaxpeft.sweep import grid, joint, table, verdict
from jaxpeft.sweep.judge import Judge
from jaxpeft.sweep.point import HALVING, WAITING, Point
from jaxpeft.sweep.stretches import Stretch
from jaxpeft.train import course, results
from jaxpeft.train.standing import DIVERGED, DONE, RUNNING, STOPPED

TABLE, POINTS, GROUPS = "sweep.csv", "points", "groups"
PAUSED = "paused"  # the states of points that go on once others have caught up
Until = Callable[[RunConfig], int | None]


@dataclass
class Sweep:
    """The points of a sweep and where they are written.

    Attributes:
        source: the configuration file.
        overrides: texts `section.key=value` that replace its keys at every point.
        directory: where the sweep is written.
        axes: {key: the values of a grid, or the space of a search}.
        at_once: the most points that one program trains; None: see `grid.together`.
        halving: the factor by which points are dropped on the way, or None.
        points: the points so far.
        trials: how many points a search draws; None: there is none.

    Raises:
        InputError: where the directory holds another sweep, or anything else.
    """

    source: str
    overrides: Sequence[str]
    directory: Path
    axes: dict[str, Any]
    at_once: int | None = None
    halving: int | None = None
    points: list[Point] = field(default_factory=list)
    trials: int | None = None

    def __post_init__(self) -> None:
        self.base = configuration.open_config(self.source, self.overrides)
        self.judge = Judge(self.base)
        settings = self.base.model_dump(mode="json")
        settings.pop("output_dir")
        self._asked = {"settings": settings, "axes": self.axes}
        if self.halving is not None:
            self._asked["halving"] = {"factor": self.halving}
        self.rungs: int | None = None  # of the halving, once it is known
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

    def train(self, points: Sequence[Point], until: Until = lambda cfg: None) -> None:
        """Trains the points that have not ended, together where one program can.

        Args:
            points: of the sweep.
            until: the step after which a point of a configuration pauses; None: it goes
                to its end.
        """
        left = [point for point in points if not point.ended]
        configs = self.configurations(left)
        reason = grid.of_ranks(configs, jax.device_count())
        if reason and not any(point.scores for point in left):  # said once
            console.say(reason)
        for turn in sorted({point.turn for point in left}):
            at = [n for n, point in enumerate(left) if point.turn == turn]
            ours = [configs[n] for n in at]
            for numbers in grid.together(ours, jax.device_count(), self.at_once):
                self._train_group(
                    [left[at[n]] for n in numbers],
                    [ours[n] for n in numbers],
                    until(ours[numbers[0]]),
                )

    def ranking(self) -> list[Point]:
        """The points that have ended, best first; those that diverged last."""
        ended = [point for point in self.points if point.ended]

        def place(point: Point) -> tuple[bool, float, float]:
            # The figures of different rungs cannot be compared.
            reached = len(point.scores) if point.status == DROPPED else math.inf
            return point.status == DIVERGED, -reached, self.judge.order(point)

        return sorted(ended, key=place)

    def save(self) -> None:
        """Writes how the points stand, and the table of those that have ended."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Settings of no point, which whoever repeats the command needs all the same.
        repeated = {"at_once": self.at_once, "trials": self.trials}
        state = {
            "base_config": self.source,
            **self._asked,
            **{key: value for key, value in repeated.items() if value is not None},
            "judged_by": self.judge.column,
            "prefers_greater": self.judge.prefers_greater,
            "remarks": [*verdict.over_seeds(self), *verdict.advice(self)]
            if self.ranking()
            else [],
            "points": [self._entry(point) for point in self.points],
        }
        files.write_json(self.directory / sweep_files.SWEEP, state)
        table.write(self, self.directory / TABLE)

    def _entry(self, point: Point) -> dict[str, Any]:
        """A point as sweep.json has it."""
        entry = asdict(point)
        if self.halving is None:
            entry = {k: v for k, v in entry.items() if k not in HALVING}
        if self.judge.figure == LOSS:
            del entry["figure"], entry["best_figure"]
        return entry

    def draw(self) -> None:
        """Draws the picture and writes the page of the points so far."""
        sweep = sweep_files.read_sweep(self.directory)
        picture = self.directory / sweep_files.SWEEP_PLOT
        plots.plot_sweep(sweep, picture, str(self.directory))
        sweep_page.write_sweep(self.directory)

    def _train_group(
        self, group: list[Point], configs: list[RunConfig], until: int | None
    ) -> None:
        """Trains points together, and takes down what came of them."""
        for point in group:
            point.status = RUNNING
        self.save()
        start = time.monotonic()
        try:
            self._take_steps(group, configs, until)
        except InputError as error:
            ways = [text for point in group for text in self.way_out(point)]
            raise InputError(*error.problems, *ways) from error
        for point in group:
            seconds = (time.monotonic() - start) / len(group)
            point.seconds = round((point.seconds or 0.0) + seconds, 1)
            path = self._output(point) / files.METRICS
            point.read(path, self.judge.figure, self.judge.prefers_greater)
            if point.status == RUNNING:  # it pauses
                point.status, point.steps = WAITING, until
                point.scores.append(files.finite(self.judge.score(point)))
        self.save()
        if self.halving is not None:  # nothing goes on from these any more
            _remove(self._shared(group, until))
            for point in group:
                if point.ended:
                    _remove(self._kept(point))

    def _take_steps(
        self, group: list[Point], configs: list[RunConfig], until: int | None
    ) -> None:
        numbers = [_number(point) for point in group]
        only = "" if until is None else f", up to step {until}"
        # In stretches what can be in a program always is, so that its states are alike.
        if len(group) == 1 and not (
            self.halving and grid.can_share(configs[0], jax.device_count())
        ):
            console.say(f"point {numbers[0]}{only}: {group[0].name}")
            kept = self._output(group[0]) / course.CHECKPOINTS
            if group[0].steps is not None and not any(kept.glob("[0-9]*")):
                console.warn(
                    f"{kept}: the paused state is missing; the point begins again at "
                    "step 0"
                )
            group[0].status = _alone(configs[0], until)
            return
        several = f"{len(group)} points in" if len(group) > 1 else "a point in"
        console.say(f"{several} one program{only}:")
        for number, point in zip(numbers, group):
            console.say(f"  {number}  {point.name}")
        kept = [self._kept(point) for point in group]
        stretch = None if self.halving is None else Stretch(until, kept, group[0].steps)
        shared = self._shared(group, until)
        ends = joint.train(configs, shared, console.say, stretch)
        for point, status in zip(group, ends):
            point.status = status

    def let_go(self, points: Sequence[Point]) -> None:
        """Ends points that halving has dropped: says so, writes their pages, saves.

        Args:
            points: of the sweep.
        """
        for point in points:
            console.say(f"dropped: {point.name}, {point.why}")
        if points:
            self.save()  # before the pages, which say it
        for point in self.points:
            # Also of those whose command was killed right here.
            page = self._output(point) / files.REPORT
            if point.status == DROPPED and not page.exists():
                results.show(self._output(point))
                _remove(self._kept(point))

    def _shared(self, group: list[Point], until: int | None) -> Path:
        """Where the checkpoints lie that points share while they train together."""
        number = _number(group[0])
        return self.directory / GROUPS / (number + f"-{until}" * (until is not None))

    def _kept(self, point: Point) -> Path:
        """Where a point's state lies between two stretches."""
        return self.directory / PAUSED / _number(point)

    def _go_on(self, found: dict[str, Any]) -> None:
        """Takes over the points of the sweep that the directory holds.

        A grid may have got further values: its points are added to those.
        """
        points = [Point(**point) for point in found["points"]]
        rungs = found.get("halving", {}).get("rungs")
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
            {
                **_flat(x["settings"]),
                **_flat(x["axes"]),
                "--halving": x.get("halving", {}).get("factor"),
            }
            for x in (found, self._asked)
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
        if rungs is not None:
            self.keep_rungs(rungs)

    def keep_rungs(self, count: int) -> None:
        """Settles how many rungs the halving has, for this command and later ones."""
        self.rungs = self._asked["halving"]["rungs"] = count

    def _output(self, point: Point) -> Path:
        return self.directory / point.directory


def _number(point: Point) -> str:
    return point.directory.rsplit("/", 1)[-1]


def _further(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two grids are over the same keys, however many values each has."""
    lists = all(isinstance(axis, list) for axis in [*then.values(), *now.values()])
    return lists and set(then) == set(now)


def _alone(cfg: RunConfig, until: int | None) -> str:
    """Trains one point as `train` would; returns how it ended, or that it pauses."""
    try:
        course.train(cfg, until=until)
    except NumericsError as error:
        console.warn(str(error))
        return DIVERGED
    summary = files.read_json(Path(cfg.output_dir) / files.SUMMARY)
    if summary is None and until is not None:
        return RUNNING
    summary = summary or {}
    return STOPPED if summary.get("stopped_early") else DONE


def _remove(folder: Path) -> None:
    """Removes a folder, and the one that it stands in if that is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in tree.walk(settings)}
