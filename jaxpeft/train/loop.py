"""The training loop: draw a batch, take a step, tell the hooks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpeft.assembly.step import Metrics, TrainState
from jaxpeft.data import Batch


@dataclass
class Moment:
    """What a hook sees after a step: `step` counts from 1.

    A hook may put another `state` in: the hooks after it and the next step get that.
    """

    step: int
    state: TrainState
    metrics: Metrics
    tokens: int  # in the batch, padding left out


# Returns whether the run should end after this step.
Hook = Callable[[Moment], bool | None]


def fit(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterable[Batch],
    hooks: Sequence[Hook],
    *,
    first: int,
    last: int,
) -> TrainState:
    """Takes the steps after `first` up to `last`, or until a hook ends the run.

    step: (state, batch) -> (state, metrics), the state donated. batches: from batch
    `first` on. Every hook sees every step, in order, also one that ends the run.
    """
    for done, batch in enumerate(batches, first + 1):
        if done > last:
            break
        state, metrics = step(state, batch)
        tokens = int(np.count_nonzero(batch["segments"]))
        moment = Moment(done, state, metrics, tokens)
        ends = [hook(moment) for hook in hooks]  # all of them, also after a True
        state = moment.state
        if any(ends):
            break
    return state
