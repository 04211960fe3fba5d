"""The hook that evaluates while a run is under way, and what follows from it."""

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from jaxpeft import console
from jaxpeft.config.training import EVAL
from jaxpeft.devices import cluster, termination
from jaxpeft.generate.scoring import Scoring
from jaxpeft.train import results
from jaxpeft.train.hooks import SAVE_GRACE, Log, rate
from jaxpeft.train.loop import Moment
from jaxpeft.train.program import Program
from jaxpeft.train.progress import Progress
from jaxpeft.train.standing import STOPPED, Standing, active
from jaxpeft.train.watchdog import Watchdog


class Evaluate:
    """A hook that evaluates after every `every`-th step and the last one.

    It writes the figures, lets schedules follow them, and ends the runs whose patience
    is at its end. A request to end stops it between two batches, as if it had never
    begun.

    Args:
        program: takes the steps.
        standings: of its runs.
        log: is told of the time that evaluations take.
        progress: the display.
        watchdog: is told that an evaluation may take long.
        every: steps from one to the next; None: only after the last step.
        last: the number of the last step.
        scoring: asks for answers and scores them, or None.

    Attributes:
        is_due: whether an evaluation has begun and not come to its end.
    """

    def __init__(
        self,
        program: Program,
        standings: Sequence[Standing],
        log: Log,
        progress: Progress,
        watchdog: Watchdog,
        *,
        every: int | None,
        last: int,
        scoring: Scoring | None = None,
    ):
        self._program, self._standings, self._log = program, standings, log
        self._progress, self._watchdog = progress, watchdog
        self._every, self._last, self._scoring = every, last, scoring
        self._figure = standings[0].run.cfg.training.figure
        self.is_due = False

    def __call__(self, moment: Moment) -> bool:
        due = self._every is not None and moment.step % self._every == 0
        if not due and moment.step != self._last:
            return False
        return self.heed(moment.step, self.run(moment.step))

    def heed(self, step: int, reports: Sequence[Mapping[str, float]]) -> bool:
        """Lets schedules and patience follow an evaluation.

        Args:
            step: the number of the steps taken.
            reports: {name: figure} of each run.

        Returns:
            Whether no run takes another step.
        """
        runs = active(self._standings)
        values = [report[self._figure] for report in reports]
        improved = np.array(
            [
                runs[number] and one.stopping.observe(step, values[number])
                for number, one in enumerate(self._standings)
            ]
        )
        before = self._rates(step)
        losses = [report["eval_loss"] for report in reports]
        self._program.observe(values, losses, improved, runs)
        for number, now in enumerate(self._rates(step)):
            if now != before[number]:
                self._note(
                    number,
                    "by the evaluations the learning rate goes from "
                    f"{before[number]:.2e} to {now:.2e}",
                )
        for number, one in enumerate(self._standings):
            if one.runs and one.stopping.exhausted and step != self._last:
                one.status = STOPPED
                self._note(number, one.stopping.verdict(step))
        return not active(self._standings).any()

    def run(self, step: int) -> list[dict[str, float]]:
        """Evaluates each run, and writes the line of a step.

        Args:
            step: the number of the steps taken.

        Returns:
            {name: figure} for each run: those of `Objective.report`, and of metrics.
        """
        start = time.monotonic()
        self.is_due = True
        self._watchdog.pet(SAVE_GRACE)
        batches, answered = self._standings[0].run.evaluation, self._scoring or ()
        self._work = self._progress.work(
            f"evaluation after step {step}, in batches",
            len(batches or ()) + len(answered) * int(active(self._standings).sum()),
        )
        reports = self._program.evaluate(self._told)
        scores = [self._scores(step, number) for number in range(len(reports))]
        reports = [{**one, **own} for one, own in zip(reports, scores, strict=True)]
        for one, figures in zip(self._standings, reports, strict=True):
            if one.runs:
                one.file.write({"step": step, **figures})
        if len(reports) == 1:
            said = self._standings[0].run.objective.in_words(reports[0])
        else:
            said = "losses " + "  ".join(f"{one['eval_loss']:.4f}" for one in reports)
        for name in scores[0]:
            values = "  ".join(f"{own.get(name, math.nan):.4f}" for own in scores)
            said += f", {name.removeprefix(EVAL)} {values}"
        some = self._standings[0].run.evaluation
        of = f" of {some.share()}" if some is not None and some.share() else ""
        self._progress.note(f"evaluation{of} after step {step}: {said}")
        self._log.paused(time.monotonic() - start)
        self.is_due = False
        return reports

    def _scores(self, step: int, number: int) -> dict[str, float]:
        """The figures of a run's answers, which are written beside its other files."""
        standing = self._standings[number]
        if self._scoring is None:
            return {}
        if not standing.runs:
            return dict.fromkeys((EVAL + m for m in self._scoring.metrics), math.nan)
        scored = self._scoring.run(self._program.evaluated(number), self._told)
        for fault in scored.faults:
            console.warn(
                f"after step {step}: {fault}; the run goes on, and this evaluation has "
                "no score of it"
            )
        if cluster.is_primary():
            scored.write(results.predictions(standing.run.output, step))
        return scored.figures

    def _told(self, done: int) -> None:
        self._work.advance()
        self._watchdog.pet(SAVE_GRACE)
        termination.check()

    def _rates(self, step: int) -> list[float]:
        """The learning rate of each run whose schedule follows evaluations."""
        return [
            rate(one, self._program.state(number), step)
            for number, one in enumerate(self._standings)
            if one.run.updates.follows_evaluation
        ]

    def _note(self, number: int, text: str) -> None:
        several = len(self._standings) > 1
        name = f"{self._standings[number].run.output.name}: " if several else ""
        self._progress.note(name + text)
