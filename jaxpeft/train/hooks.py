"""What happens beside the steps: log, checkpoints, ends of a run.

Each hook serves one run as it serves several that one program trains.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpeft import optim
from jaxpeft.assembly.step import TrainState
from jaxpeft.devices import termination
from jaxpeft.errors import Preempted
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.train.loop import Moment
from jaxpeft.train.program import Program
from jaxpeft.train.progress import Progress
from jaxpeft.train.standing import (
    EVALUATION_DUE,
    Standing,
    active,
    positions,
)
from jaxpeft.train.utilisation import mfu_per_speed
from jaxpeft.train.waits import Waits
from jaxpeft.train.watchdog import Watchdog

SAVE_GRACE = 600.0  # seconds that a compilation or a save may take before it is a hang
# Of every step; what else it has are the objective's own figures.
OF_EVERY_STEP = {"loss", "grad_norm", "update_norm", "weight", "skipped_in_row"}


class Log:
    """A hook that writes a line for every `every`-th step, and keeps the time.

    Args:
        program: takes the steps.
        standings: of its runs.
        progress: the display.
        every: steps from line to line; the first and the last step have one too.
        last: the number of the last step.
        seconds: the time that earlier starts took.
    """

    def __init__(
        self,
        program: Program,
        standings: Sequence[Standing],
        progress: Progress,
        *,
        every: int,
        last: int,
        seconds: float = 0.0,
    ):
        self._program, self._standings, self._progress = program, standings, progress
        self._every, self._last = every, last
        self._earlier, self._start = seconds, time.monotonic()
        self._window = [0] * len(standings)
        self._mfu = [mfu_per_speed(one.run) for one in standings]
        self._told = False  # that a step had nothing to learn
        self._waits = Waits(progress.note)
        self.restart()

    @property
    def seconds(self) -> float:
        """The seconds since the first step, in all starts; all runs share them."""
        return self._earlier + time.monotonic() - self._start

    def restart(self) -> None:
        """Begins the measured time anew: all of it up to now was no training."""
        self._since, self._paused, self._waited = time.monotonic(), 0.0, 0.0

    def paused(self, seconds: float) -> None:
        """Takes off time that was no training, such as compiling or evaluating.

        Args:
            seconds: which the tokens per second then leave out.
        """
        self._paused += seconds

    def __call__(self, moment: Moment) -> None:
        self.paused(moment.compiling)
        self._waited += moment.waited
        for number, standing in enumerate(self._standings):
            if standing.runs:
                standing.tokens += moment.tokens[number]
                self._window[number] += moment.tokens[number]
        self._progress.advance(moment.step)
        if moment.step % self._every and moment.step not in (1, self._last):
            return
        values = jax.device_get(moment.metrics)  # waits for the step
        elapsed = time.monotonic() - self._since - self._paused
        lines = [
            self._line(number, moment.step, values, elapsed)
            for number in range(len(self._standings))
        ]
        for standing, line in zip(self._standings, lines, strict=True):
            if standing.runs:
                standing.file.write(line)
        self._progress.log(moment.step, lines)
        self._waits.see(self._waited, elapsed)
        if not self._told and np.any(np.asarray(values["weight"]) == 0):
            self._told = True
            self._progress.note(
                f"step {moment.step} has no loss (null in the metrics), nor have "
                "others like it: no token of its batch is learned, as where answers "
                "are cut off; raise data.max_length, or take out such examples"
            )
        self.restart()
        self._window = [0] * len(lines)

    def _line(
        self, number: int, step: int, values: dict[str, Any], elapsed: float
    ) -> dict[str, float]:
        standing = self._standings[number]
        speed, unit = self._window[number] / max(elapsed, 1e-9), self._mfu[number]
        own = {name: float(np.atleast_1d(x)[number]) for name, x in values.items()}
        return {
            "step": step,
            "loss": own["loss"] if own["weight"] else math.nan,
            "learning_rate": rate(standing, self._program.state(number), step),
            "grad_norm": own["grad_norm"],
            "update_norm": own["update_norm"],
            **{name: own[name] for name in own if name not in OF_EVERY_STEP},
            "tokens": standing.tokens,
            "tokens_per_second": round(speed, 1),
            "data_wait": round(min(1.0, self._waited / max(elapsed, 1e-9)), 4),
            **({} if unit is None else {"mfu": round(speed * unit, 4)}),
            "epoch": round(standing.run.batches.epoch(step), 4),
        }


def rate(standing: Standing, state: TrainState, step: int) -> float:
    """The learning rate of a step, as evaluations have left it.

    Args:
        standing: of the run.
        state: its state after the step.
        step: the number of the step.
    """
    updates = max(0, step - 1 - int(state.skipped))
    factor = optim.rate_factor(state.opt_state)
    given = standing.run.updates.rate(updates)
    return float(np.asarray(given)) * float(np.asarray(factor))


class Save:
    """A hook that saves every `every`-th step and the last, and asks after requests.

    Args:
        program: takes the steps.
        standings: of its runs.
        log: knows the time that they took.
        checkpoints: where it saves.
        watchdog: is told of every step, and that a save may take long.
        every: steps from one to the next.
        last: the number of the last step.
        keeps_best: also saves each step that is the best so far, which then stays
            whatever is deleted, where the program finds it in a checkpoint.
    """

    def __init__(
        self,
        program: Program,
        standings: Sequence[Standing],
        log: Log,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        *,
        every: int,
        last: int,
        keeps_best: bool = False,
    ):
        self._program, self._standings, self._log = program, standings, log
        self._checkpoints, self._watchdog = checkpoints, watchdog
        self._every, self._last = every, last
        self._keeps_best = keeps_best and program.saves_best

    def __call__(self, moment: Moment) -> None:
        ends = moment.step == self._last or not active(self._standings).any()
        if moment.step % self._every == 0 or moment.step == self._best() or ends:
            self._save(moment.step)
        termination.check()
        self._watchdog.pet()

    def stop(self, asked: termination.Asked, first: int, evaluation_due: bool) -> None:
        """Saves what is new since step `first`, and ends the course.

        Args:
            asked: the request to end.
            first: the step that it continued from.
            evaluation_due: whether the evaluation after the last step is to be
                repeated.

        Raises:
            Preempted: in any case.
        """
        step = self._program.done
        if step == first:
            raise Preempted(
                f"{asked.name} received before a new step was taken; repeat the "
                "command to continue"
            )
        self._save(step, **({EVALUATION_DUE: True} if evaluation_due else {}))
        self._checkpoints.wait()
        raise Preempted(
            f"{asked.name} received: saved after step {step}; repeat the command to "
            "continue"
        )

    def pause(self) -> None:
        """Saves what the course has reached, to be gone on with later."""
        self._save(self._program.done)

    def _save(self, step: int, **more: Any) -> None:
        self._watchdog.pet(SAVE_GRACE)
        note = {"seconds": self._log.seconds, **positions(self._standings), **more}
        self._checkpoints.save(step, self._program.saved, note, keep=self._best())

    def _best(self) -> int | None:
        """The step whose checkpoint stays, since its parameters are the best."""
        return self._standings[0].stopping.best_step if self._keeps_best else None


class Abort:
    """A hook that gives a run up when over `limit` steps in a row were not finite.

    Such steps leave the state as it was (a fused one without clipping may have updated
    layers above the first bad gradient), so that nothing non-finite is ever saved. It
    looks at the step before the newest: asking after that one would make the host wait.
    Only of the run's `last` step there is no later moment to ask.

    Args:
        standings: of the runs.
        give_up: called with a run and what was seen of it.
        limit: steps in a row that may be not finite.
        last: the number of the last step.
    """

    def __init__(
        self,
        standings: Sequence[Standing],
        give_up: Callable[[Standing, str], None],
        *,
        limit: int,
        last: int,
    ):
        self._standings, self._give_up = standings, give_up
        self._limit, self._last = limit, last
        self._waiting: list[tuple[int, Any]] = []

    def __call__(self, moment: Moment) -> bool:
        self._waiting.append((moment.step, moment.metrics["skipped_in_row"]))
        while len(self._waiting) > (moment.step != self._last):
            self._look(*self._waiting.pop(0))
        return not active(self._standings).any()

    def _look(self, step: int, skipped: Any) -> None:
        in_rows = np.atleast_1d(np.asarray(skipped))
        for standing, in_row in zip(self._standings, in_rows, strict=True):
            if standing.runs and in_row > self._limit:
                self._give_up(
                    standing,
                    f"step {step}: the loss or gradient was not finite in {in_row} "
                    f"steps in a row, and training.max_nonfinite_steps is "
                    f"{self._limit}; lower optimizer.learning_rate, use dtype float32 "
                    "or bfloat16, or look at the data of these steps",
                )
