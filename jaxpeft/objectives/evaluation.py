"""The figures of an evaluation, from sums that are streamed."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxpeft.objectives.objective import Objective


def figures(objective: Objective, sums: Iterable[Any]) -> dict[str, float]:
    """The figures that an objective reports of a data set.

    Args:
        objective: whose `sums` they are.
        sums: a tree of () float32 for each batch, perhaps still being computed.

    Returns:
        {name: figure}, `eval_loss` among them.
    """
    # All batches are started before the first result is waited for.
    started = list(sums)
    totals = jax.tree.map(
        lambda *parts: math.fsum(float(np.asarray(jax.device_get(x))) for x in parts),
        *started,
    )
    return objective.report(totals)
