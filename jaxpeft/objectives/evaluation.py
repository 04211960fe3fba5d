"""The figures of an evaluation, from sums that are streamed."""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxpeft.objectives.objective import Objective

AHEAD = 2  # batches that the devices are given before the first result is waited for


def streamed(
    sums: Iterable[Any], told: Callable[[int], None] = lambda done: None
) -> list[Any]:
    """The sums of all batches, brought to the host while others are computed.

    Args:
        sums: a tree of arrays for each batch, whose computation begins as it is drawn.
        told: called with the number of batches done, after each; it may raise.

    Returns:
        The trees, of numpy arrays.
    """
    started, done = collections.deque(), []

    def finish() -> None:
        done.append(jax.device_get(started.popleft()))
        told(len(done))

    for one in sums:
        started.append(one)
        if len(started) > AHEAD:
            finish()
    while started:
        finish()
    return done


def figures(objective: Objective, sums: Iterable[Any]) -> dict[str, float]:
    """The figures that an objective reports of a data set.

    Args:
        objective: whose `sums` they are.
        sums: a tree of () float32 for each batch, see `streamed`.

    Returns:
        {name: figure}, `eval_loss` among them.
    """
    totals = jax.tree.map(lambda *parts: math.fsum(map(float, parts)), *sums)
    return objective.report(totals)
