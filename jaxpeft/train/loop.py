"""The training loop: draw batches, take a step, tell the hooks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpeft import data
from jaxpeft.assembly.step import Metrics
from jaxpeft.train.program import Program
from jaxpeft.train.standing import Standing, active


@dataclass(frozen=True)
class Moment:
    """The moment after a step, as a hook sees it.

    Attributes:
        step: its number, from 1.
        metrics: of the step, () or (runs,), still on the device.
        tokens: in the batch of each run, padding left out.
        compiling: seconds that the step took if it had to be compiled first, else 0.
        waited: seconds that the step waited for its batch; 0 of the first one.
    """

    step: int
    metrics: Metrics
    tokens: Sequence[int]
    compiling: float = 0.0
    waited: float = 0.0


# Returns whether the course should end after this step.
Hook = Callable[[Moment], bool | None]


def fit(
    program: Program,
    standings: Sequence[Standing],
    hooks: Sequence[Hook],
    *,
    last: int,
    before_compiling: Callable[[], None] = lambda: None,
) -> None:
    """Takes the steps of `program` up to `last`, or until a hook ends them.

    Every hook sees every step, in order, also one that ends the course.

    Args:
        program: whose state says how many are taken already.
        standings: of its runs; those that have ended keep their state.
        hooks: called after each step.
        last: the number of the last step.
        before_compiling: called before a step that will take longer.
    """
    first = program.done
    timed = _timed(program.iterate(first))
    for done, (batches, waited) in enumerate(timed, first + 1):
        if done > last or not active(standings).any():
            break
        arrays = program.on_devices(batches)
        if program.is_new(arrays):
            before_compiling()
        start, compiled = time.monotonic(), program.compiling
        metrics = program.take(arrays, active(standings))
        compiles = program.compiling > compiled
        moment = Moment(
            done,
            metrics,
            _tokens(batches, len(standings)),
            time.monotonic() - start if compiles else 0.0,
            waited if done > first + 1 else 0.0,
        )
        ends = [hook(moment) for hook in hooks]  # all of them, also after a True
        if any(ends):
            break


def _timed(batches: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Each item, and the seconds that it was waited for."""
    drawn = iter(batches)
    while True:
        start = time.monotonic()
        try:
            batch = next(drawn)
        except StopIteration:
            return
        yield batch, time.monotonic() - start


def _tokens(batches: Sequence[data.Batch], runs: int) -> list[int]:
    """The tokens of each run's batch; one batch alone is that of all."""
    counts = [int(np.count_nonzero(batch["segments"])) for batch in batches]
    return counts * runs if len(counts) == 1 else counts
