"""What happens beside the steps: log, evaluation, checkpoints, ends of a run."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from jaxpeft import optim
from jaxpeft.assembly.step import TrainState
from jaxpeft.errors import NumericsError, Preempted
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.rundir.metrics import MetricsFile
from jaxpeft.train.interrupt import Watchdog
from jaxpeft.train.loop import Moment
from jaxpeft.train.progress import Progress
from jaxpeft.train.stopping import Stopping

SAVE_GRACE = 600.0  # seconds that a compilation or a save may take before it is a hang


class Log:
    """Writes a line for every `every`-th step; `tokens` counts from the run's start."""

    def __init__(
        self,
        file: MetricsFile,
        progress: Progress,
        schedule: optax.Schedule,
        epoch: Callable[[int], float],
        *,
        every: int,
        last: int,
        tokens: int,
    ):
        self._file, self._progress, self._schedule = file, progress, schedule
        self._epoch, self._every, self._last = epoch, every, last
        self.tokens = tokens
        self._since, self._window = time.monotonic(), 0
        self._paused = 0.0

    def restart(self) -> None:
        """All the time up to now was no training."""
        self._since, self._paused = time.monotonic(), 0.0

    def paused(self, seconds: float) -> None:
        """Time that was no training (compiling, evaluating): not in the tokens/s."""
        self._paused += seconds

    def __call__(self, moment: Moment) -> None:
        self.tokens += moment.tokens
        self._window += moment.tokens
        self._progress.advance(moment.step)
        if not self.is_due(moment.step):
            return
        loss = float(moment.metrics["loss"])  # waits for the step
        elapsed = time.monotonic() - self._since - self._paused
        line = {
            "step": moment.step,
            "loss": loss,
            "learning_rate": self.rate(moment.state, moment.step),
            "grad_norm": float(moment.metrics["grad_norm"]),
            "update_norm": float(moment.metrics["update_norm"]),
            "tokens": self.tokens,
            "tokens_per_second": round(self._window / max(elapsed, 1e-9), 1),
            "epoch": round(self._epoch(moment.step), 4),
        }
        self._file.write(line)
        self._progress.log(moment.step, line)
        self._since, self._window, self._paused = time.monotonic(), 0, 0.0

    def is_due(self, step: int) -> bool:
        """Whether this step gets a line; of others only the tokens are counted."""
        return step % self._every == 0 or step in (1, self._last)

    def rate(self, state: TrainState, step: int) -> float:
        """The learning rate of a step, as evaluations have left it."""
        updates = max(0, step - 1 - int(state.skipped))
        factor = optim.rate_factor(state.opt_state)
        return float(np.asarray(self._schedule(updates))) * float(np.asarray(factor))


class Evaluate:
    """Evaluates after every `every`-th step and the last one; keeps the newest losses.

    It ends the run where `stopping` says so.
    """

    def __init__(
        self,
        evaluate: Callable[[TrainState], dict[str, float]],
        file: MetricsFile,
        log: Log,
        progress: Progress,
        stopping: Stopping,
        *,
        every: int | None,
        last: int,
    ):
        self._evaluate, self._file, self._log = evaluate, file, log
        self._progress, self._every, self._last = progress, every, last
        self.stopping = stopping
        self.newest: dict[str, float] | None = None

    def __call__(self, moment: Moment) -> bool:
        if not self.is_due(moment.step):
            return False
        newest = self.run(moment.step, moment.state)
        # Some schedules lower the rate by this loss; what is saved knows of it.
        state = moment.state
        opt_state = optim.observe(state.opt_state, newest["eval_loss"])
        moment.state = dataclasses.replace(state, opt_state=opt_state)
        if optim.observes(opt_state):
            rates = [self._log.rate(s, moment.step) for s in (state, moment.state)]
            if rates[0] != rates[1]:
                self._progress.note(
                    "by the evaluation losses the learning rate goes from "
                    f"{rates[0]:.2e} to {rates[1]:.2e}"
                )
        self.stopping.observe(moment.step, newest["eval_loss"])
        if self.stopping.exhausted and moment.step != self._last:
            self._progress.note(self.stopping.verdict(moment.step))
        return self.stopping.exhausted

    def is_due(self, step: int) -> bool:
        """Whether this step is one to evaluate after."""
        due = self._every is not None and step % self._every == 0
        return due or step == self._last

    def run(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates, and writes the line of `step`; returns the losses."""
        start = time.monotonic()
        self.newest = self._evaluate(state)
        self._file.write({"step": step, **self.newest})
        self._progress.note(
            f"evaluation after step {step}: loss {self.newest['eval_loss']:.4f}, "
            f"token accuracy {self.newest['eval_accuracy']:.1%}"
        )
        self._log.paused(time.monotonic() - start)
        return self.newest


class Save:
    """Saves every `every`-th step, and the last; at once when asked to stop.

    asked_to_stop: given the step, what asked to stop after it; empty if nothing did.
    stopping: also saves the step that it ends the run after. keeps_best: also saves
    each step that is the best so far, which then stays whatever is deleted.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        extra: Callable[[], dict[str, Any]],
        asked_to_stop: Callable[[int], str],
        watchdog: Watchdog,
        stopping: Stopping,
        *,
        every: int,
        last: int,
        keeps_best: bool = False,
    ):
        self._checkpoints, self._extra = checkpoints, extra
        self._asked_to_stop, self._stopping = asked_to_stop, stopping
        self._keeps_best = keeps_best
        self._watchdog, self._every, self._last = watchdog, every, last

    def __call__(self, moment: Moment) -> None:
        asked, best = self._asked_to_stop(moment.step), None
        ends = moment.step == self._last or self._stopping.exhausted
        if self._keeps_best:
            best = self._stopping.best_step
        due = moment.step % self._every == 0 or moment.step == best
        if asked or due or ends:
            self._watchdog.pet(SAVE_GRACE)
            self._checkpoints.save(moment.step, moment.state, self._extra(), keep=best)
        if asked and not ends:
            self._checkpoints.wait()
            raise Preempted(
                f"{asked} received: saved after step {moment.step}; repeat the "
                "command to continue"
            )
        self._watchdog.pet()


def abort_on_nonfinite(limit: int, last: int) -> Callable[[Moment], None]:
    """A hook that ends the run when over `limit` steps in a row were not finite.

    Such steps leave the state as it was (a fused one without clipping may have updated
    layers above the first bad gradient), so that nothing non-finite is ever saved. It
    looks at the step before the newest: asking after that one would make the host wait.
    Only of the run's `last` step there is no later moment to ask.
    """
    before: list[Moment] = []

    def hook(moment: Moment) -> None:
        before.append(moment)
        while len(before) > (moment.step != last):
            earlier = before.pop(0)
            in_row = int(earlier.metrics["skipped_in_row"])
            if in_row > limit:
                raise NumericsError(
                    f"step {earlier.step}: the loss or gradient was not finite in "
                    f"{in_row} steps in a row, and training.max_nonfinite_steps is "
                    f"{limit}; lower optimizer.learning_rate, use dtype float32 or "
                    "bfloat16, or look at the data of these steps"
                )

    return hook
