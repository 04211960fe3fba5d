"""What takes the steps of a run or of several at once; and that of a run alone."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxpeft import console, data, optim, tree
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import Metrics, TrainState
from jaxpeft.devices.compiled import Compiled
from jaxpeft.objectives import evaluation
from jaxpeft.rundir.checkpoint import Checkpoints

Note = Callable[[str], None]


class Program(Protocol):
    """The compiled steps of one run or more, and the state that they carry.

    Attributes:
        saved: what a checkpoint holds; set to what was restored.
        saves_best: whether the best parameters so far are those of a checkpoint, which
            then has to be kept; otherwise `saved` holds them too.
    """

    saved: Any
    saves_best: bool

    @property
    def runs(self) -> Sequence[Run]:
        """The runs whose steps it takes."""
        ...

    @property
    def done(self) -> int:
        """Steps taken so far."""
        ...

    @property
    def compiling(self) -> float:
        """Seconds spent on compiling the step so far."""
        ...

    def begin(self, note: Note) -> None:
        """Prepares the programs; to be called before the first step.

        Args:
            note: is told what is compiled.
        """
        ...

    def iterate(self, start: int) -> Any:
        """The batches of each step from a number on: one for each run, or one for all.

        Args:
            start: the number of steps taken.
        """
        ...

    def on_devices(self, batches: Sequence[data.Batch]) -> Any:
        """The batches of one step on the devices, as `take` wants them.

        Args:
            batches: an item of `iterate`.
        """
        ...

    def is_new(self, batch: Any) -> bool:
        """Whether a batch of this shape is still to be compiled."""
        ...

    def take(self, batch: Any, active: np.ndarray) -> Metrics:
        """Takes one step of the runs that are active; the others keep their state.

        Args:
            batch: from `on_devices`.
            active: (runs,) bool.

        Returns:
            The metrics of the step, () or (runs,) each.
        """
        ...

    def evaluate(self, told: Callable[[int], None]) -> list[dict[str, float]]:
        """The report of each run's evaluation data, {name: figure}.

        Args:
            told: called with the number of batches done, after each; it may raise.
        """
        ...

    def evaluated(self, number: int) -> Any:
        """The whole params of a run as `evaluate` has seen them, adapters in.

        Args:
            number: of the run.
        """
        ...

    def observe(
        self,
        values: Sequence[float],
        losses: Sequence[float],
        improved: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """Takes in evaluations: schedules may follow them, the best are kept.

        Args:
            values: of each run, the figure that evaluations are compared by.
            losses: of each run, for optimizers that look at them.
            improved: (runs,) bool, whether the value is the run's best so far.
            active: (runs,) bool, whether the run still takes steps.
        """
        ...

    def state(self, number: int) -> TrainState:
        """The state of one run."""
        ...

    def settle(self, best: Sequence[int | None], checkpoints: Checkpoints) -> None:
        """Settles what is kept; to be called after the last step, before `trained`.

        Args:
            best: the step of the best evaluation of each run, where that is to be kept.
            checkpoints: where it may be found.
        """
        ...

    def trained(self, number: int) -> Any:
        """The parameters that a run has trained: to be evaluated and written.

        Args:
            number: of the run.
        """
        ...


class Alone:
    """The steps of one run: a `Program` of one.

    Attributes:
        run: the run.
        runs: the same in a list.
        saved: its state.
        kept: the state of its best step, once `settle` has found another than the last.
    """

    saves_best = True

    def __init__(self, run: Run):
        self.run, self.runs = run, [run]
        self.saved: TrainState = run.initial_state()
        self.kept: TrainState | None = None

    def begin(self, note: Note) -> None:
        """Prepares the programs, which are compiled when they are first called."""
        run = self.run
        self._step = Compiled(
            run.train_step(), "step", note, carries=True, mesh=run.mesh
        )
        self._eval_step = Compiled(run.eval_step(), "evaluation", note, mesh=run.mesh)

    @property
    def done(self) -> int:
        """Steps taken so far."""
        return int(self.saved.step)

    @property
    def compiling(self) -> float:
        """Seconds spent on compiling the step so far."""
        return self._step.seconds

    def iterate(self, start: int) -> Any:
        """The run's batches from number `start` on, each alone in a tuple."""
        return zip(self.run.batches.iterate(start))

    def on_devices(self, batches: Sequence[data.Batch]) -> Any:
        """The batch, cut for accumulation."""
        return self.run.micro_batches(batches[0])

    def is_new(self, batch: Any) -> bool:
        """Whether a batch of this shape is still to be compiled."""
        return self._step.is_new(batch)

    def take(self, batch: Any, active: np.ndarray) -> Metrics:
        """Takes one step.

        Args:
            batch: from `on_devices`.
            active: not looked at: a run alone is active.
        """
        self.saved, metrics = self._step(self.saved, self.run.fixed, batch)
        return metrics

    def evaluate(self, told: Callable[[int], None]) -> list[dict[str, float]]:
        """The report of the evaluation data, in a list."""
        run, trained = self.run, self.run.view(self.saved)
        batches = map(run.on_devices, run.evaluation or ())
        sums = (self._eval_step(trained, run.fixed, batch) for batch in batches)
        return [evaluation.figures(run.objective, evaluation.streamed(sums, told))]

    def evaluated(self, number: int) -> Any:
        """The whole params, adapters in."""
        return tree.combine(self.run.view(self.saved), self.run.frozen)

    def observe(
        self,
        values: Sequence[float],
        losses: Sequence[float],
        improved: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """Lets schedules that follow evaluations see them."""
        opt_state = optim.observe(self.saved.opt_state, values[0], losses[0])
        self.saved = dataclasses.replace(self.saved, opt_state=opt_state)

    def state(self, number: int) -> TrainState:
        """The run's state."""
        return self.saved

    def settle(self, best: Sequence[int | None], checkpoints: Checkpoints) -> None:
        """Takes the best step's state from its checkpoint; the last one stays too."""
        if best[0] in (None, self.done):
            return
        self.kept = checkpoints.restore_step(best[0], self.saved)
        if self.kept is None:
            console.warn("the parameters of the last step are written in its place")

    def trained(self, number: int) -> Any:
        """The parameters of the last step, or of the best one."""
        return self.run.view(self.saved if self.kept is None else self.kept)
