"""How a run stands while its steps are taken, alone or among several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpeft.assembly.run import Run
from jaxpeft.config.training import EVAL
from jaxpeft.devices import cluster
from jaxpeft.rundir.files import METRICS
from jaxpeft.rundir.metrics import MetricsFile, read_metrics
from jaxpeft.train import results
from jaxpeft.train.stopping import Stopping

RUNNING, DONE, STOPPED, DIVERGED = "running", "done", "stopped early", "diverged"
# In a checkpoint's note: it was saved during the evaluation after its step.
EVALUATION_DUE = "evaluation_due"


@dataclass
class Standing:
    """One run under way: what it writes, and how far it is.

    Attributes:
        run: what it works with.
        file: its metrics.jsonl.
        stopping: what its evaluations say of its end.
        tokens: trained on since its first step, padding left out.
        status: RUNNING, or how it ended.
    """

    run: Run
    file: MetricsFile
    stopping: Stopping
    tokens: int = 0
    status: str = RUNNING

    @property
    def runs(self) -> bool:
        """Whether it still takes steps."""
        return self.status == RUNNING

    def position(self) -> dict[str, Any]:
        """The tokens, status and best figure that a checkpoint notes, for `stand`."""
        return {
            "tokens": self.tokens,
            "status": self.status,
            **self.stopping.position(),
        }


def stand(
    run: Run,
    position: Mapping[str, Any],
    resumed_at: int | None,
    evaluates_again: bool = False,
) -> Standing:
    """The standing of a run before its first step, or where a checkpoint left off.

    Args:
        run: what it works with.
        position: the checkpoint's note; empty before the first step.
        resumed_at: the step to continue after; None: there is none.
        evaluates_again: whether the evaluation after that step is still to come.
    """
    if cluster.is_primary():
        run.output.mkdir(parents=True, exist_ok=True)
    training = run.cfg.training
    stopping = Stopping(
        training.early_stopping_patience,
        training.early_stopping_threshold,
        training.figure.removeprefix(EVAL),
        training.prefers_greater,
    )
    stopping.restore(dict(position))
    status = position.get("status", RUNNING)
    if stopping.exhausted and status == RUNNING:
        status = STOPPED  # it had stopped early, and was saved
    file = results.open_metrics(run, resumed_at, evaluates_again)
    return Standing(run, file, stopping, position.get("tokens", 0), status)


def positions(standings: Sequence[Standing]) -> dict[str, Any]:
    """The positions that a checkpoint notes: a lone run's own, else by number."""
    if len(standings) == 1:
        return standings[0].position()
    return {str(number): one.position() for number, one in enumerate(standings)}


def repeated(
    runs: Sequence[Run], note: Mapping[str, Any], done: int
) -> list[dict[str, float]] | None:
    """The report of an evaluation that a checkpoint notes as due and has been made.

    An earlier start repeated it and wrote its line, and saved nothing since: it had no
    step left to take, or was killed. None where none was due, or it has to be made
    still; so with several runs, and several processes, of which one alone reads.

    Args:
        runs: the runs.
        note: what `positions` made, with EVALUATION_DUE or without.
        done: how many steps are taken.
    """
    if not note.get(EVALUATION_DUE) or len(runs) > 1 or cluster.is_shared():
        return None
    _, evaluations = read_metrics(runs[0].output / METRICS)
    lines = [line for line in evaluations if line["step"] == done]
    if len(lines) != 1:
        return None
    wanted = ("eval_loss", runs[0].cfg.training.figure)
    known = all(np.isfinite(lines[0].get(name, np.nan)) for name in wanted)
    return lines if known else None


def stand_all(
    runs: Sequence[Run], note: Mapping[str, Any], done: int, evaluates_again: bool
) -> list[Standing]:
    """The standings of runs before their first step, or where a checkpoint left off.

    Args:
        runs: the runs.
        note: what `positions` made; empty before any step.
        done: how many steps are taken.
        evaluates_again: whether the evaluation after that step is still to come.
    """
    if len(runs) == 1:
        each = [note]
    else:
        each = [note.get(str(number), {}) for number in range(len(runs))]
    resumed_at = done if note else None
    return [
        stand(run, mine, resumed_at, evaluates_again)
        for run, mine in zip(runs, each, strict=True)
    ]


def active(standings: Sequence[Standing]) -> np.ndarray:
    """The runs that still take steps, (runs,) bool."""
    return np.array([one.runs for one in standings])
