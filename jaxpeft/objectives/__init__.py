"""What a training step minimises, and what an evaluation reports: one file each."""

from collections.abc import Callable
from typing import NamedTuple

from jaxpeft.config import Table, keys
from jaxpeft.objectives.cpo import cpo, simpo
from jaxpeft.objectives.dpo import dpo
from jaxpeft.objectives.objective import Loss, Objective
from jaxpeft.objectives.orpo import orpo
from jaxpeft.objectives.sft import sft

__all__ = [
    "OBJECTIVES",
    "Line",
    "Loss",
    "Objective",
    "cpo",
    "dpo",
    "orpo",
    "sft",
    "simpo",
]


class Line(NamedTuple):
    """A line of the table of objectives.

    Attributes:
        make: the function whose keywords are the section's keys.
    """

    make: Callable[..., Objective]


OBJECTIVES = Table(
    rows={
        "sft": Line(sft),
        "dpo": Line(dpo),
        "orpo": Line(orpo),
        "simpo": Line(simpo),
        "cpo": Line(cpo),
    },
    given=("continues", "base_trains"),
    all_say=keys.ALWAYS,
    some_say={
        "beta": keys.NUMBER,
        "sft_weight": keys.NUMBER,
        "gamma": keys.NUMBER,
        "cpo_alpha": keys.NUMBER,
    },
)
