"""Several runs over one frozen base, trained together by one program.

The runs may differ in numbers that a compiled step can be given: the rate of each step,
the weight decay, the seed, and what the frozen part of an adapter holds (LoRA's scale).
Their adapters and optimizer states are stacked along a new first axis, which `jax.vmap`
takes the step over (on a CPU `jax.lax.map`), and the base's weights are not stacked:
there is one of them. Each run has a directory, metrics and an adapter of its own, as if
it had been alone.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import data, optim
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import Preempted
from jaxpeft.objectives import evaluation
from jaxpeft.rundir import outcome
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.rundir.metrics import MetricsFile
from jaxpeft.sweep import joint_step
from jaxpeft.train import course, hooks, results, samples
from jaxpeft.train.interrupt import Interrupt, Watchdog
from jaxpeft.train.loop import Moment
from jaxpeft.train.progress import Pace, Quiet
from jaxpeft.train.stopping import Stopping

RUNNING, DONE, STOPPED, DIVERGED = "running", "done", "stopped early", "diverged"


@dataclass
class Point:
    """One of the runs: what it writes, and how it stands."""

    run: Run
    log: hooks.Log
    file: MetricsFile
    stopping: Stopping
    status: str = RUNNING

    def position(self) -> dict[str, Any]:
        """What a checkpoint notes of it."""
        return {
            "tokens": self.log.tokens,
            "status": self.status,
            **self.stopping.position(),
        }


def train(
    configs: Sequence[RunConfig], directory: Path, tell: Callable[[str], None]
) -> list[str]:
    """Trains all of them; returns how each ended: "done", "stopped early", "diverged".

    configs: alike in all but `seed`, `adapter.lora_alpha`, the rate, its schedule and
    the weight decay; each has its own `output_dir`. directory: of the checkpoints that
    they share, from which a repeated call continues. tell: called with lines for the
    user. Raises InputError for what is wrong with any of them, Preempted on SIGTERM.
    """
    first = Run(configs[0], shares=True)
    runs = [first, *(Run(cfg, like=first) for cfg in configs[1:])]
    training_section = first.cfg.training
    with (
        Checkpoints(
            directory / course.CHECKPOINTS,
            save_total_limit=1,
            fingerprint=_fingerprint(runs),
        ) as checkpoints,
        Interrupt() as interrupt,
        Watchdog(training_section.watchdog_seconds) as watchdog,
    ):
        watchdog.pet(hooks.SAVE_GRACE)
        together = _Together(runs, checkpoints, interrupt, watchdog, tell)
        return together.take_all()


def _fingerprint(runs: Sequence[Run]) -> dict[str, str]:
    return {
        f"{name} of point {number}": value
        for number, run in enumerate(runs)
        for name, value in run.fingerprint().items()
    }


class _Together:
    """The steps of several runs, and what each of them writes."""

    def __init__(
        self,
        runs: Sequence[Run],
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        watchdog: Watchdog,
        tell: Callable[[str], None],
    ):
        self.runs, self.first = runs, runs[0]
        self.checkpoints, self.interrupt = checkpoints, interrupt
        self.watchdog, self.tell = watchdog, tell
        self.settings, self.steps = self.first.cfg.training, self.first.steps
        self.same_data = len({run.cfg.seed for run in runs}) == 1
        self.tuning = joint_step.Tuning.of(runs)
        self.shared, self.own = joint_step.fixed(runs)
        self.state = self._initial_state()
        self.best = None
        if self.settings.keeps_best:
            self.best = jax.tree.map(jnp.copy, self.state.params)
        extra = self._restore()
        self._earlier, self._start = extra.get("seconds", 0.0), time.monotonic()
        self.points = [
            self._point(run, extra.get(str(number), {}))
            for number, run in enumerate(runs)
        ]
        self.done = int(self.state.step.max())
        mesh, model = self.first.mesh, self.first.base.cfg
        step = joint_step.make_step(
            model, self.tuning, self.first.objective, self.same_data
        )
        self.step = Compiled(step, "step", tell, carries=True, mesh=mesh)
        evaluate = joint_step.make_eval_step(model, self.first.objective)
        self.eval_step = Compiled(evaluate, "evaluation", tell, mesh=mesh)
        self.view = jax.jit(jax.vmap(self.first.view))
        self.slice = jax.jit(
            lambda state, index: jax.tree.map(joint_step.at(index), state)
        )
        self.pace = Pace(self.steps)
        self.pending: Array | None = None  # of the last step: not yet looked at

    def take_all(self) -> list[str]:
        """Takes the steps that are left, and writes what came of each run."""
        try:
            if self.done:
                self.tell(f"continuing after step {self.done}")
            else:
                self._evaluate(0)
            for point in self.points:
                results.begin(point.run, self.done, point.run.fingerprint())
            if not self.done:
                self._answer_before()
            for point in self.points:
                point.log.restart()
            for batches in self._batches():
                if self.done == self.steps or not self._active().any():
                    break
                self._take(batches)
        finally:
            for point in self.points:
                point.file.close()
        self._look_at_pending()
        self.checkpoints.wait()
        return [self._finish(number) for number in range(len(self.points))]

    def _answer_before(self) -> None:
        """Writes what the untrained models say: of those with one seed the same."""
        said: dict[int, Any] = {}
        for number, point in enumerate(self.points):
            seed = point.run.cfg.seed
            if seed not in said:
                self.watchdog.pet(hooks.SAVE_GRACE)
                said[seed] = samples.answers(point.run, self._trained(number))
            outcome.keep_before(point.run.output, said[seed])

    def _take(self, batches: Sequence[data.Batch]) -> None:
        """One step of all that still run, and what follows it."""
        arrays = self._on_device(batches)
        if self.step.is_new(arrays):
            self.watchdog.pet(hooks.SAVE_GRACE)
        start, compiled = time.monotonic(), self.step.seconds
        active, numbers = jnp.asarray(self._active()), self.tuning.arrays
        self.state, metrics = self.step(
            self.state, self.shared, self.own, numbers, active, arrays
        )
        if self.step.seconds > compiled:
            for point in self.points:
                point.log.paused(time.monotonic() - start)
        self.done += 1
        self._look_at_pending()
        self.pending = metrics["skipped_in_row"]
        self.pace.advance(self.done)
        self._log(batches, metrics)
        self._evaluate(self.done)
        self._save()

    def _look_at_pending(self) -> None:
        """Ends the runs with too many steps in a row that were not finite.

        One step late, as a lone run does: asking at once would make the host wait.
        """
        if self.pending is None:
            return
        for point, in_row in zip(self.points, np.asarray(self.pending)):
            limit = self.settings.max_nonfinite_steps
            if point.status == RUNNING and in_row > limit:
                point.status = DIVERGED
                self.tell(f"{point.run.output.name}: diverged at step {self.done}")
        self.pending = None

    def _log(self, batches: Sequence[data.Batch], metrics: Any) -> None:
        due = self.points[0].log.is_due(self.done)
        values = jax.device_get(metrics) if due else None
        for number, point in enumerate(self.points):
            if point.status != RUNNING:
                continue
            batch = batches[0 if self.same_data else number]
            tokens = int(np.count_nonzero(batch["segments"]))
            state, own = self.state, {}
            if values is not None:
                state = self.slice(self.state, number)
                own = {name: x[number] for name, x in values.items()}
            point.log(Moment(self.done, state, own, tokens))
        if values is not None:
            losses = "  ".join(f"{loss:.4f}" for loss in values["loss"])
            width = len(str(self.steps))
            left = self.pace.left(self.done)
            self.tell(
                f"step {self.done:>{width}}/{self.steps}  losses {losses}  {left} left"
            )

    def _evaluate(self, step: int) -> None:
        """After a step that asks for it: each run's losses, and what they decide."""
        every = self.settings.eval_steps
        due = step in (0, self.steps) or (every is not None and step % every == 0)
        if self.first.evaluation is None or not due:
            return
        start = time.monotonic()
        self.watchdog.pet(hooks.SAVE_GRACE)
        found, trained = self._losses()
        improved = np.zeros(len(self.points), bool)
        active = self._active()
        for number, point in enumerate(self.points):
            if not active[number]:
                continue
            point.file.write({"step": step, **found[number]})
            if step:
                loss = found[number]["eval_loss"]
                improved[number] = point.stopping.observe(step, loss)
                if point.stopping.exhausted:
                    point.status = STOPPED
                    self.tell(
                        f"{point.run.output.name}: {point.stopping.verdict(step)}"
                    )
            point.log.paused(time.monotonic() - start)
        if step:
            self._observe([losses["eval_loss"] for losses in found], active)
        if self.best is not None and step:
            self.best = joint_step.chosen(jnp.asarray(improved), trained, self.best)
        losses = "  ".join(f"{losses['eval_loss']:.4f}" for losses in found)
        self.tell(f"evaluation after step {step}: losses {losses}")

    def _losses(self) -> tuple[list[dict[str, float]], Any]:
        """The evaluation of every run, and the parameters that were evaluated."""
        trained = self.view(self.state)
        batches = map(self.first.on_devices, self.first.evaluation or ())
        sums = jax.device_get(
            [self.eval_step(trained, self.shared, self.own, b) for b in batches]
        )
        found = [
            evaluation.figures(
                self.first.objective,
                (jax.tree.map(joint_step.at(number), one) for one in sums),
            )
            for number in range(len(self.points))
        ]
        return found, trained

    def _observe(self, losses: list[float], active: np.ndarray) -> None:
        """Lets schedules that follow the evaluation loss see it."""
        if not optim.observes(self.state.opt_state):
            return
        seen = jax.vmap(optim.observe)(
            self.state.opt_state, jnp.asarray(losses, jnp.float32)
        )
        seen = joint_step.chosen(jnp.asarray(active), seen, self.state.opt_state)
        self.state = dataclasses.replace(self.state, opt_state=seen)

    def _save(self) -> None:
        asked = self.interrupt.signal
        ends = self.done == self.steps or not self._active().any()
        if asked or ends or self.done % self.settings.save_steps == 0:
            self.watchdog.pet(hooks.SAVE_GRACE)
            self._look_at_pending()
            extra: dict[str, Any] = {"seconds": self.seconds}
            extra |= {str(n): p.position() for n, p in enumerate(self.points)}
            self.checkpoints.save(self.done, self._kept(), extra)
        if asked and not ends:
            self.checkpoints.wait()
            raise Preempted(
                f"{asked.name} received: saved after step {self.done}; repeat the "
                "command to continue"
            )
        self.watchdog.pet()

    def _finish(self, number: int) -> str:
        """Writes what a run trained, its plot and its page; returns how it ended."""
        point = self.points[number]
        run = point.run
        if point.status == RUNNING:
            point.status = DONE
        trained, answers = self._trained(number), []
        if point.status != DIVERGED:
            results.write_trained(run, trained)
            answers = samples.answers(run, trained)
        steps = int(self.state.step[number])
        results.conclude(run, trained, answers, steps=steps, seconds=self.seconds)
        return point.status

    def _trained(self, number: int) -> Any:
        """The parameters of a run that are its result, in its own structure."""
        trained = self.view(self.state) if self.best is None else self.best
        leaves = jax.tree.leaves(self.slice(trained, number))
        return jax.tree.unflatten(
            jax.tree.structure(self.runs[number].trainable), leaves
        )

    @property
    def seconds(self) -> float:
        """The time since the first step, in all starts, that the runs have shared."""
        return self._earlier + time.monotonic() - self._start

    def _active(self) -> np.ndarray:
        return np.array([point.status == RUNNING for point in self.points])

    def _kept(self) -> dict[str, Any]:
        return {"state": self.state, "best": self.best}

    def _restore(self) -> dict[str, Any]:
        restored = self.checkpoints.restore(self._kept())
        if restored is None:
            return {}
        kept, extra = restored
        self.state, self.best = kept["state"], kept["best"]
        return extra

    def _point(self, run: Run, position: dict[str, Any]) -> Point:
        run.output.mkdir(parents=True, exist_ok=True)
        resumed = int(self.state.step.max()) if position else None
        file = results.open_metrics(run, resumed)
        stopping = Stopping(
            self.settings.early_stopping_patience,
            self.settings.early_stopping_threshold,
        )
        stopping.restore(position)
        log = hooks.Log(
            file,
            Quiet(),
            run.updates.rate,
            run.batches.epoch,
            every=self.settings.logging_steps,
            last=run.steps,
            tokens=position.get("tokens", 0),
        )
        return Point(run, log, file, stopping, position.get("status", RUNNING))

    def _initial_state(self) -> TrainState:
        """All states before the first step, stacked, on the device."""
        stacked = joint_step.stacked([run.trainable for run in self.runs])
        keys = jnp.stack([run.key for run in self.runs])
        for run in self.runs:  # a second copy, of which only the structure is needed
            run.trainable = jax.eval_shape(lambda x: x, run.trainable)
        create = joint_step.make_create(self.tuning)
        return jax.jit(create, donate_argnums=0)(stacked, keys, self.tuning.arrays)

    def _batches(self) -> Iterator[Sequence[data.Batch]]:
        """For each step a batch for all, or one for each run."""
        runs = self.runs[:1] if self.same_data else self.runs
        return zip(*(run.batches.iterate(self.done) for run in runs))

    def _on_device(self, batches: Sequence[data.Batch]) -> dict[str, Array]:
        if self.same_data:
            return self.first.micro_batches(batches[0])
        width = max(batch["tokens"].shape[-1] for batch in batches)
        wide = [_widened(batch, width) for batch in batches]
        cut = [self.first.micro_batches(batch) for batch in wide]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *cut)


def _widened(batch: data.Batch, width: int) -> data.Batch:
    """The batch with padding on the right, up to so many tokens."""
    more = width - batch["tokens"].shape[-1]
    # Any token would do there: no segment, so nothing sees it and nothing is learned.
    return {name: np.pad(x, ((0, 0), (0, more))) for name, x in batch.items()}
