"""One run of a sweep: its values, how far it is, and what came of it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft.config import strict_yaml
from jaxpeft.config.training import LOSS
from jaxpeft.rundir import files
from jaxpeft.rundir.metrics import read_metrics
from jaxpeft.train.standing import RUNNING

WAITING = "waiting"
HALVING = ("scores", "steps", "why")  # fields that only halving fills
LAST_LINES = 10  # whose mean is the training loss of a point


@dataclass
class Point:
    """One run of a sweep; its losses are in nats per token, None where there is none.

    Attributes:
        name: its values in short.
        directory: where it is written, below the sweep's own.
        values: {key: value} of the keys that the sweep changes.
        status: "waiting", "running", "done", "stopped early", "diverged" or, by
            halving, "dropped".
        eval_loss: of the last evaluation.
        best_eval_loss: of the lowest evaluation.
        best_step: the step of that evaluation.
        figure: of the last evaluation, what evaluations are compared by where that is
            not the loss (`training.metric_for_best_model`).
        best_figure: the best of them, which `best_step` is then the step of.
        scores: what it was judged by at each rung of a halving that it has reached;
            None where that was not finite.
        steps: the step of the last of these rungs.
        why: it was dropped, in words.
        train_loss: the mean of the last logged training losses.
        seconds: of the program that trained it, over the number of points it trained.
        turn: points added together have the same, and no program trains points of
            several turns, so that a sweep that grew goes on as it began.
    """

    name: str
    directory: str
    values: dict[str, Any]
    status: str = WAITING
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None
    seconds: float | None = None
    turn: int = 0
    figure: float | None = None
    best_figure: float | None = None
    scores: list[float | None] = field(default_factory=list)
    steps: int | None = None
    why: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status not in (WAITING, RUNNING)

    @property
    def written(self) -> dict[str, str]:
        """The values as YAML, which tells text from the number that it looks like."""
        return {key: strict_yaml.dump_scalar(v) for key, v in self.values.items()}

    @property
    def results(self) -> dict[str, Any]:
        """What came of it, in the order of the table's columns."""
        return {
            name: getattr(self, name)
            for name in (
                *("eval_loss", "best_eval_loss", "best_step", "train_loss"),
                *("seconds", "status", "directory"),
            )
        }

    def read(self, path: Path, figure: str = LOSS, greater: bool = False) -> None:
        """Takes the losses from the point's metrics, if there are any.

        Args:
            path: its `metrics.jsonl`.
            figure: what evaluations are compared by.
            greater: whether the higher one is the better.
        """
        if not path.is_file():
            return
        lines, evaluations = read_metrics(path)
        last = [line["loss"] for line in lines[-LAST_LINES:]]
        self.train_loss = files.finite(sum(last) / len(last)) if last else None
        if evaluations:
            self.eval_loss = files.finite(evaluations[-1]["eval_loss"])
        trained = [
            e for e in evaluations if e["step"] and math.isfinite(e["eval_loss"])
        ]
        if trained:
            best = min(trained, key=lambda line: line["eval_loss"])
            self.best_eval_loss, self.best_step = best["eval_loss"], best["step"]
        if figure == LOSS or not evaluations:
            return
        self.figure = files.finite(evaluations[-1].get(figure))
        known = [e for e in evaluations if e["step"] and math.isfinite(_of(e, figure))]
        if known:
            sign = -1 if greater else 1
            best = min(known, key=lambda line: sign * line[figure])
            self.best_figure, self.best_step = best[figure], best["step"]


def _of(line: dict[str, Any], figure: str) -> float:
    return line.get(figure, math.nan)
