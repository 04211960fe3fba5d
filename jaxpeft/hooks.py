"""What happens beside the steps: log, evaluation, checkpoints, ends of a run."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax

from jaxpeft import optim
from jaxpeft.checkpoint import Checkpoints
from jaxpeft.errors import NumericsError, Preempted
from jaxpeft.interrupt import Watchdog
from jaxpeft.loop import Moment
from jaxpeft.progress import Progress
from jaxpeft.step import TrainState

SAVE_GRACE = 600.0  # seconds that a compilation or a save may take before it is a hang


class MetricsFile:
    """`metrics.jsonl`: a line of JSON an entry, written through at once.

    JSON has no NaN and no infinity: null stands for them. Resuming at a step drops the
    lines after it, which the steps to come write anew. Without a path it writes
    nothing: of several processes one alone does.
    """

    def __init__(self, path: Path | None, resumed_at: int | None):
        self._file = None
        if path is None:
            return
        kept = []
        if resumed_at is not None and path.exists():
            for line in path.read_text().splitlines(keepends=True):
                # A killed process may have left half a line, always the last one.
                if line.endswith("\n") and json.loads(line)["step"] <= resumed_at:
                    kept.append(line)
        # Moved into place, so that a kill right here cannot cost the lines kept.
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry."""
        if self._file is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


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
        if moment.step % self._every and moment.step not in (1, self._last):
            return
        loss = float(moment.metrics["loss"])  # waits for the step
        updates = moment.step - 1 - int(moment.state.skipped)
        elapsed = time.monotonic() - self._since - self._paused
        line = {
            "step": moment.step,
            "loss": loss,
            "learning_rate": self._rate(max(0, updates), moment.state),
            "grad_norm": float(moment.metrics["grad_norm"]),
            "update_norm": float(moment.metrics["update_norm"]),
            "tokens": self.tokens,
            "tokens_per_second": round(self._window / max(elapsed, 1e-9), 1),
            "epoch": round(self._epoch(moment.step), 4),
        }
        self._file.write(line)
        self._progress.log(moment.step, line)
        self._since, self._window, self._paused = time.monotonic(), 0, 0.0

    def _rate(self, updates: int, state: TrainState) -> float:
        factor = optim.rate_factor(state.opt_state)
        return float(np.asarray(self._schedule(updates))) * float(np.asarray(factor))


class Evaluate:
    """Evaluates after every `every`-th step and the last one; keeps the newest loss.

    With a patience it ends the run once that many evaluations in a row have brought no
    lower loss than the best before them.
    """

    def __init__(
        self,
        evaluate: Callable[[TrainState], dict[str, float]],
        file: MetricsFile,
        log: Log,
        progress: Progress,
        *,
        every: int | None,
        last: int,
        patience: int | None,
        best: float | None,
        waited: int,
    ):
        self._evaluate, self._file, self._log = evaluate, file, log
        self._progress, self._every, self._last = progress, every, last
        self._patience, self.best, self.waited = patience, best, waited
        self.newest: dict[str, float] | None = None

    def __call__(self, moment: Moment) -> bool:
        due = self._every is not None and moment.step % self._every == 0
        if not due and moment.step != self._last:
            return False
        newest = self.run(moment.step, moment.state)
        # Some schedules lower the rate by this loss; what is saved knows of it.
        opt_state = optim.observe(moment.state.opt_state, newest["eval_loss"])
        moment.state = dataclasses.replace(moment.state, opt_state=opt_state)
        return self._exhausted(moment.step)

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

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self._patience is not None and self.waited >= self._patience

    def _exhausted(self, step: int) -> bool:
        assert self.newest is not None
        loss = self.newest["eval_loss"]
        if self.best is None or math.isnan(self.best) or loss < self.best:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if not self.exhausted:
            return False
        self._progress.note(
            f"stopped early after step {step}: no evaluation loss below "
            f"{self.best:.4f} in {self.waited} evaluations"
        )
        return True


class Save:
    """Saves every `every`-th step, and the last; at once when asked to stop.

    asked_to_stop: given the step, what asked to stop after it; empty if nothing did.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        extra: Callable[[], dict[str, Any]],
        asked_to_stop: Callable[[int], str],
        watchdog: Watchdog,
        *,
        every: int,
        last: int,
    ):
        self._checkpoints, self._extra = checkpoints, extra
        self._asked_to_stop = asked_to_stop
        self._watchdog, self._every, self._last = watchdog, every, last

    def __call__(self, moment: Moment) -> None:
        stopping = self._asked_to_stop(moment.step)
        if stopping or moment.step % self._every == 0 or moment.step == self._last:
            self._watchdog.pet(SAVE_GRACE)
            self._checkpoints.save(moment.step, moment.state, self._extra())
        if stopping and moment.step != self._last:
            self._checkpoints.wait()
            raise Preempted(
                f"{stopping} received: saved after step {moment.step}; repeat the "
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
