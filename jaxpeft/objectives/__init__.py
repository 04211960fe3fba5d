"""What a training step minimises, and what an evaluation reports: one file each."""

from collections.abc import Callable
from typing import NamedTuple

from jaxpeft.config import Table, keys
from jaxpeft.objectives.objective import Loss, Objective
from jaxpeft.objectives.sft import sft

__all__ = ["OBJECTIVES", "Line", "Loss", "Objective", "sft"]


class Line(NamedTuple):
    """A line of the table of objectives.

    Attributes:
        make: the function whose keywords are the section's keys.
    """

    make: Callable[..., Objective]


OBJECTIVES = Table(
    rows={"sft": Line(sft)},
    all_say=keys.ALWAYS,
)
