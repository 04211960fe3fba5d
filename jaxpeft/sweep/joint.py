"""Several runs over one frozen base, trained together by one program.

The runs may differ in numbers that a compiled step can be given: the rate of each step,
the weight decay, the seed, what the frozen part of an adapter holds (LoRA's scale), and
the rank, by zeros (see `padding`).
Their adapters and optimizer states are stacked along a new first axis, which `jax.vmap`
takes the step over (on a CPU `jax.lax.map`), and the base's weights are not stacked:
there is one of them. Each run has a directory, metrics and an adapter of its own, as if
it had been alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import data, optim, tree
from jaxpeft.assembly import updates
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import Metrics, TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices.compiled import Compiled
from jaxpeft.generate import scoring
from jaxpeft.objectives import evaluation
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.sweep import joint_step, padding, stretches
from jaxpeft.sweep.stretches import Stretch
from jaxpeft.train import course, hooks, results, samples, steering
from jaxpeft.train.progress import PlainProgress
from jaxpeft.train.standing import DIVERGED, Standing


def train(
    configs: Sequence[RunConfig],
    directory: Path,
    tell: Callable[[str], None],
    stretch: Stretch | None = None,
) -> list[str]:
    """Trains several runs in one program.

    Args:
        configs: alike in all but `seed`, `adapter.r`, `adapter.lora_alpha`, the rate,
            its schedule and the weight decay; each has its own `output_dir`.
        directory: of the checkpoints that they share, from which a repeated call
            continues.
        tell: called with lines for the user.
        stretch: the part of the course that is wanted; None: all of it.

    Returns:
        How each ended: "done", "stopped early" or "diverged"; "running" after a
        stretch that is not the last.

    Raises:
        InputError: for what is wrong with any of them.
        Preempted: on SIGTERM.
    """
    first = Run(configs[0], shares=True)
    runs = [first, *(Run(cfg, like=first) for cfg in configs[1:])]
    fingerprints = [run.fingerprint() for run in runs]
    scores = scoring.of_run(first)
    steering.check(first, scores)

    for run in runs:
        if line := updates.rate_warning(run.cfg, run.updates.rate, run.steps):
            tell(f"{run.output.name}: {line}")

    def begin(done: int) -> None:
        for run, fingerprint in zip(runs, fingerprints, strict=True):
            run.output.mkdir(parents=True, exist_ok=True)
            results.begin(run, done, fingerprint)

    def give_up(standing: Standing, seen: str) -> None:
        standing.status = DIVERGED
        tell(f"{standing.run.output.name}: diverged, {seen}")

    together = {
        f"{name} of point {number}": value
        for number, own in enumerate(fingerprints)
        for name, value in own.items()
    }
    folder = directory / course.CHECKPOINTS
    with course.guarded(folder, first.cfg, together, save_total_limit=1) as guards:
        guards.watchdog.pet(hooks.SAVE_GRACE)
        program = Together(runs)
        ended = course.follow(
            program,
            guards,
            PlainProgress,
            begin=begin,
            give_up=give_up,
            scoring=scores,
            until=None if stretch is None else stretch.until,
            start=lambda: stretches.gathered(program, stretch, fingerprints),
        )
        for number, standing in enumerate(ended.standings):
            if stretch is not None and standing.runs:
                own = fingerprints[number]
                stretches.keep(program, stretch, number, standing, own, ended.seconds)
            else:
                _finish(program, number, standing, ended.seconds)
    return [standing.status for standing in ended.standings]


def _finish(
    program: "Together", number: int, standing: Standing, seconds: float
) -> None:
    """Writes what a run trained, its plot and its page."""
    run, trained = standing.run, program.trained(number)
    answers: list[tuple[str, str, str]] = []
    if standing.status != DIVERGED:
        results.write_trained(run, trained)
        answers = samples.answers(run, trained)
    steps = int(program.saved["state"].step[number])
    results.conclude(run, trained, answers, steps=steps, seconds=seconds)


class Together:
    """The steps of several runs: a `train.program.Program` whose state is stacked.

    Attributes:
        runs: the runs.
        first: the first of them, whose base and mesh serve all.
        same_data: whether all have the same seed, and so the same batches.
        tuning: the numbers in which their optimizers differ.
        shared: the arrays of the base, which are not stacked.
        own: the frozen arrays that are each run's own, stacked.
        saved: `state`, all states stacked, and `best`, the best parameters so far, or
            None where they are not kept.
    """

    saves_best = False

    def __init__(self, runs: Sequence[Run]):
        self.runs, self.first = runs, runs[0]
        self.same_data = len({run.cfg.seed for run in runs}) == 1
        self.tuning = joint_step.Tuning.of(runs)
        self.shared, self.own = joint_step.fixed(runs)
        state, keeps = self._initial_state(), self.first.cfg.training.keeps_best
        best = jax.tree.map(jnp.copy, state.params) if keeps else None
        self.saved: dict[str, Any] = {"state": state, "best": best}
        self._view = jax.jit(jax.vmap(self.first.view))
        self._slice = jax.jit(
            lambda stacked, index: jax.tree.map(joint_step.at(index), stacked)
        )

    def begin(self, note: Callable[[str], None]) -> None:
        """Prepares the programs, which are compiled when they are first called."""
        mesh, model = self.first.mesh, self.first.base.cfg
        step = joint_step.make_step(
            model, self.tuning, self.first.objective, self.same_data
        )
        self._step = Compiled(step, "step", note, carries=True, mesh=mesh)
        evaluate = joint_step.make_eval_step(model, self.first.objective)
        self._eval_step = Compiled(evaluate, "evaluation", note, mesh=mesh)

    @property
    def done(self) -> int:
        """Steps taken so far, by the runs that took the most."""
        return int(self.saved["state"].step.max())

    @property
    def compiling(self) -> float:
        """Seconds spent on compiling the step so far."""
        return self._step.seconds

    def iterate(self, start: int) -> Iterator[tuple[data.Batch, ...]]:
        """The batches from number `start` on: of each run, or one for all."""
        runs = self.runs[:1] if self.same_data else self.runs
        return zip(*(run.batches.iterate(start) for run in runs))

    def on_devices(self, batches: Sequence[data.Batch]) -> dict[str, Any]:
        """The one batch that all runs share, or the batches of each stacked."""
        width = max(batch["tokens"].shape[-1] for batch in batches)
        wide = [_widened(batch, width) for batch in batches]
        cut = [self.first.micro_batches(batch) for batch in wide]
        return cut[0] if self.same_data else jax.tree.map(lambda *x: jnp.stack(x), *cut)

    def is_new(self, batch: dict[str, Any]) -> bool:
        """Whether a batch of this shape is still to be compiled."""
        return self._step.is_new(batch)

    def take(self, batch: dict[str, Any], active: np.ndarray) -> Metrics:
        """Takes one step of the runs that are active; the others keep their state."""
        numbers, runs = self.tuning.arrays, jnp.asarray(active)
        self.saved["state"], metrics = self._step(
            self.saved["state"], self.shared, self.own, numbers, runs, batch
        )
        return metrics

    def evaluate(self, told: Callable[[int], None]) -> list[dict[str, float]]:
        """The report of each run's evaluation data."""
        self._evaluated = self._view(self.saved["state"])
        batches = map(self.first.on_devices, self.first.evaluation or ())
        sums = evaluation.streamed(
            (
                self._eval_step(self._evaluated, self.shared, self.own, batch)
                for batch in batches
            ),
            told,
        )
        return [
            evaluation.figures(
                self.first.objective,
                (jax.tree.map(joint_step.at(number), one) for one in sums),
            )
            for number in range(len(self.runs))
        ]

    def evaluated(self, number: int) -> Any:
        """The whole params of a run, adapters in.

        Args:
            number: of the run.
        """
        trained = self._in_structure(self._evaluated, number)
        return tree.combine(trained, self.runs[number].frozen)

    def observe(
        self,
        values: Sequence[float],
        losses: Sequence[float],
        improved: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """Lets schedules that follow evaluations see them, and keeps the best so far.

        Args:
            values: of each run, the figure that evaluations are compared by.
            losses: of each run.
            improved: (runs,) bool, whether the value is the run's best so far.
            active: (runs,) bool, whether the run still takes steps.
        """
        state, best = self.saved["state"], self.saved["best"]
        if best is not None:
            self.saved["best"] = joint_step.chosen(
                jnp.asarray(improved), self._evaluated, best
            )
        if optim.observes(state.opt_state):
            given = (jnp.asarray(x, jnp.float32) for x in (values, losses))
            seen = jax.vmap(optim.observe)(state.opt_state, *given)
            seen = joint_step.chosen(jnp.asarray(active), seen, state.opt_state)
            self.saved["state"] = dataclasses.replace(state, opt_state=seen)

    def state(self, number: int) -> TrainState:
        """The state of one run."""
        return self._slice(self.saved["state"], number)

    def part(self, number: int) -> dict[str, Any]:
        """What is saved of one run, in the structure of the first and its padding."""
        return self._slice(self.saved, number)

    def settle(self, best: Sequence[int | None], checkpoints: Checkpoints) -> None:
        """Does nothing: the best parameters are in the state already."""

    def trained(self, number: int) -> Any:
        """The parameters of a run that are its result, in its own structure."""
        best = self.saved["best"]
        trained = self._view(self.saved["state"]) if best is None else best
        return self._in_structure(trained, number)

    def _in_structure(self, trained: Any, number: int) -> Any:
        """What one run has of stacked parameters, in the run's own structure."""
        leaves = jax.tree.leaves(self._slice(trained, number))
        own, structure = jax.tree.flatten(self.runs[number].trainable)
        return jax.tree.unflatten(structure, map(padding.cut, leaves, own))

    def _initial_state(self) -> TrainState:
        """The states before the first step, stacked, on the device."""
        stacked = joint_step.stacked([run.trainable for run in self.runs])
        keys = jnp.stack([run.key for run in self.runs])
        for run in self.runs:  # a second copy, of which only the structure is needed
            run.trainable = jax.eval_shape(lambda x: x, run.trainable)
        scales = self.runs[0].base.scales_loss
        create = joint_step.make_create(self.tuning, scales)
        return jax.jit(create, donate_argnums=0)(stacked, keys, self.tuning.arrays)


def _widened(batch: data.Batch, width: int) -> data.Batch:
    """The batch with padding on the right, up to so many tokens."""
    more = width - batch["tokens"].shape[-1]
    # Any token would do there: no segment, so nothing sees it and nothing is learned.
    return {
        name: np.pad(x, ((0, 0), (0, more))) if x.ndim > 1 else x
        for name, x in batch.items()
    }
