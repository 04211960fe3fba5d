"""Successive halving: at a few evaluations the worse points are dropped.

All candidates train to the first rung, one `factor`-th of them to the next, and so on
to the end (Jamieson and Talwalkar, 2016; with a floor at each rung). What is decided
depends on the figures of a rung alone, not on how many points train at once or where a
command was interrupted. Points of a later grid are compared with all that have ever
reached the rung, and what was decided before stays.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxpeft.assembly import configuration, heads
from jaxpeft.assembly.base import open_base
from jaxpeft.assembly.run import steps_in
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.rundir.sweep_files import DROPPED
from jaxpeft.sweep.judge import Judge
from jaxpeft.sweep.point import Point
from jaxpeft.sweep.replicates import identity

if TYPE_CHECKING:
    from jaxpeft.sweep.sweep import Sweep


@dataclass(frozen=True)
class Halving:
    """How a sweep drops points.

    Attributes:
        factor: of so many candidates one goes on from each rung.
        rungs: how many there are.
    """

    factor: int
    rungs: int

    @classmethod
    def of(cls, factor: int, points: Sequence[Point]) -> "Halving":
        """The halving of a sweep that begins with these points.

        Args:
            factor: of so many candidates one goes on from each rung, 2 or more.
            points: replicates by seed count as one.

        Raises:
            InputError: there are too few to drop any.
        """
        count = len({identity(point) for point in points})
        rungs = 0
        while factor ** (rungs + 1) <= count:
            rungs += 1
        if not rungs:
            smaller = f"a factor of {count} or less, " if count > 1 else ""
            raise InputError(
                f"--halving: found {factor} with {count} points (seeds count as one), "
                f"of which none could be dropped; give {smaller}{factor} points or "
                "more, or leave --halving out"
            )
        return cls(factor, rungs)

    def steps(self, cfg: RunConfig, last: int) -> list[int]:
        """The steps of the rungs, each at an evaluation.

        Args:
            cfg: of a point.
            last: how many steps it takes to its end.

        Raises:
            InputError: nothing is evaluated, or too rarely to tell the rungs apart.
        """
        every = cfg.training.eval_steps
        if not cfg.data.evaluates or every is None:
            missing = "training.eval_steps" if cfg.data.evaluates else "data.eval"
            raise InputError(
                f"--halving: drops points by their evaluations, and {missing} is not "
                f"set; set data.eval and training.eval_steps, or leave --halving out"
            )
        wanted = [last / self.factor**n for n in range(self.rungs, 0, -1)]
        found = [math.ceil(round(step / every, 6)) * every for step in wanted]
        if [*found, last] == sorted({*found, last}):
            return found
        enough = math.floor(wanted[0])
        about = " and ".join(f"{step:.3g}" for step in wanted)
        remedy = (
            f"set training.eval_steps={enough} or less"
            if 1 <= enough < every
            else f"train for {every * self.factor**self.rungs} steps or more"
        )
        raise InputError(
            f"--halving {self.factor}: too few steps: points are to be dropped after "
            f"about {about} of {last} steps, and with training.eval_steps {every} "
            f"the evaluations there are after {', '.join(map(str, found))}; {remedy}, "
            "or give a larger factor"
        )


@dataclass(frozen=True)
class Plan:
    """What a sweep that drops points has to know before it trains any.

    Attributes:
        sweep: with all its points.
        halving: how it drops them.
        lengths: how many steps they take.
    """

    sweep: "Sweep"
    halving: Halving
    lengths: "Lengths"

    def until(self, rung: int, cfg: RunConfig) -> int | None:
        """The step of a rung, at which a run pauses; None behind the last rung.

        Args:
            rung: its number, from 0.
            cfg: of the run.
        """
        steps = self.halving.steps(cfg, self.lengths.of(cfg))
        return steps[rung] if rung < len(steps) else None

    def train(self) -> None:
        """Trains the points, from rung to rung, and drops those that others beat."""
        sweep = self.sweep
        for turn in sorted({point.turn for point in sweep.points}):
            ours = [point for point in sweep.points if point.turn == turn]
            for rung in range(self.halving.rungs + 1):
                here = [point for point in ours if len(point.scores) == rung]
                sweep.train(here, functools.partial(self.until, rung))
                if rung < self.halving.rungs:
                    gone = drop(sweep.points, rung, turn, sweep.judge, self.halving)
                    sweep.let_go(gone)


def prepare(sweep: "Sweep", factor: int) -> Plan:
    """Checks that a sweep can drop points, and settles after which steps.

    Args:
        sweep: with all its points.
        factor: of so many candidates one goes on from each rung.

    Raises:
        InputError: for all that is wrong; nothing has been written then.
    """
    left = [point for point in sweep.points if not point.ended]
    if left:
        _check_comparable(sweep)
    if sweep.rungs is None:
        sweep.keep_rungs(Halving.of(factor, sweep.points).rungs)
    plan = Plan(sweep, Halving(factor, sweep.rungs or 0), Lengths())
    problems: list[str] = []
    for cfg in sweep.configurations(left):
        try:
            plan.until(0, cfg)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    _check_alike(plan, left)
    return plan


def _check_comparable(sweep: "Sweep") -> None:
    """Checks that the points are judged by figures that mean the same."""
    judge = sweep.judge
    if unlike := judge.incomparable(sweep.axes):
        ways = ("leave --halving out", judge.way_to_compare)
        remedy = ", or ".join(reversed(ways)) if judge.tells else " and ".join(ways)
        raise InputError(
            f"--halving: {', '.join(unlike)}: another value is another loss, by which "
            f"points cannot be dropped; {remedy}"
        )


def _check_alike(plan: Plan, left: Sequence[Point]) -> None:
    """Checks that all points, also those that have ended, meet at the same steps."""
    sweep, halving = plan.sweep, plan.halving
    rungs = [
        tuple(halving.steps(cfg, plan.lengths.of(cfg)))
        for cfg in sweep.configurations(left)
    ]
    found = list(zip(left, rungs))
    for point in sweep.points:
        if point.scores and point.steps is not None and rungs:
            reached = len(point.scores) - 1
            fits = [one for one in rungs if one[reached] == point.steps]
            found.append((point, fits[0] if fits else (point.steps,)))
    if len({steps for _, steps in found}) < 2:
        return
    keys = [key for key in sweep.axes if _changes_steps(found, key)]
    shown = sorted({", ".join(map(str, steps)) for _, steps in found})[:3]
    own = {"training.max_steps", "training.eval_steps"} & set(keys)
    set_it = "" if own else "set training.max_steps for all, "
    raise InputError(
        f"--halving: {', '.join(keys or sweep.axes)}: points of other values would be "
        f"compared after other steps ({' against '.join(shown)}); {set_it}take the key "
        "out of --grid, or leave --halving out"
    )


def _changes_steps(found: Sequence[tuple[Point, tuple[int, ...]]], key: str) -> bool:
    """Whether points that differ by a key alone have other rungs."""
    rungs: dict[Any, set[tuple[int, ...]]] = {}
    for point, steps in found:
        others = tuple(kv for kv in point.written.items() if kv[0] != key)
        rungs.setdefault(others, set()).add(steps)
    return any(len(different) > 1 for different in rungs.values())


class Lengths:
    """How many steps runs take, found without their weights.

    What is opened for one serves all that read the same.
    """

    def __init__(self) -> None:
        self._known: dict[Any, float] = {}

    def of(self, cfg: RunConfig) -> int:
        """The steps of a run.

        Args:
            cfg: its configuration.
        """
        training = cfg.training
        if training.max_steps:
            return training.max_steps
        key = (
            *(cfg.data.model_dump_json(), cfg.model.model_dump_json()),
            *(cfg.objective.model_dump_json(), training.batch_size, cfg.seed),
        )
        if key not in self._known:
            self._known[key] = _steps_per_epoch(cfg)
        return steps_in(training.num_epochs or 1.0, self._known[key])


def _steps_per_epoch(cfg: RunConfig) -> float:
    cfg = configuration.settled(cfg)
    objective = configuration.objective(cfg)
    base = heads.fitted(open_base(cfg.model), objective.head)
    batches = objective.load_train(
        cfg.data,
        base.tokenizer,
        batch_size=cfg.training.batch_size,
        seed=cfg.seed,
        vocab_size=base.cfg.vocab_size,
    )
    return batches.steps_per_epoch


def drop(
    points: Sequence[Point], rung: int, turn: int, judge: Judge, halving: Halving
) -> list[Point]:
    """Drops the points of a turn that are not among the best at a rung.

    All of them have reached it or have ended before. To decide again what was decided
    changes nothing.

    Args:
        points: of the sweep.
        rung: its number, from 0.
        turn: of the points that are decided on; those of later turns do not count.
        judge: knows which figure is the better.
        halving: of the sweep.

    Returns:
        Those that are dropped now.
    """
    order = _rivals(points, rung, turn, judge, halving)
    kept = max(1, len(order) // halving.factor)
    gone = []
    for place, group in enumerate(list(order.values())[kept:], kept + 1):
        for point in group:
            if point.turn == turn and not point.ended:
                point.status = DROPPED
                figure = "" if len(group) == 1 else "mean "
                point.why = (
                    f"after step {point.steps}: {figure}{judge.column} "
                    f"{_mean(group, rung, judge):.4f}, place {place} of {len(order)}; "
                    f"{'the best' if kept == 1 else f'the best {kept}'} went on"
                )
                gone.append(point)
    return gone


def _rivals(
    points: Sequence[Point], rung: int, turn: int, judge: Judge, halving: Halving
) -> dict[Any, list[Point]]:
    """The candidates that are compared at a rung, best first; see `drop`.

    They have reached it, or ended by themselves with a place among those that went on
    from the one before: what diverged or stopped takes one place, and not one at each
    later rung.
    """
    groups: dict[Any, list[Point]] = {}
    for point in points:
        behind = point.status == DROPPED and len(point.scores) <= rung
        if point.turn <= turn and not behind:
            groups.setdefault((point.turn, identity(point)), []).append(point)
    if rung:
        before = list(_rivals(points, rung - 1, turn, judge, halving))
        kept = set(before[: max(1, len(before) // halving.factor)])
        for key, group in list(groups.items()):
            reached = any(len(point.scores) > rung for point in group)
            if key not in kept and not reached:
                del groups[key]
    sign = -1 if judge.prefers_greater else 1
    order = sorted(groups, key=lambda key: sign * _mean(groups[key], rung, judge))
    return {key: groups[key] for key in order}


def _mean(group: Sequence[Point], rung: int, judge: Judge) -> float:
    return sum(_figure(point, rung, judge) for point in group) / len(group)


def _figure(point: Point, rung: int, judge: Judge) -> float:
    """What a point is judged by at a rung; the worst of what diverged."""
    worst = -math.inf if judge.prefers_greater else math.inf
    # First what it had there: how it went on later must not change what was decided.
    if len(point.scores) > rung:
        score = point.scores[rung]
        return worst if score is None else score
    return judge.score(point)  # it has stopped, or diverged
