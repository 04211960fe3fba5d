"""What a training step minimises, and what an evaluation reports: one file each."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxpeft.config import DataSection, Table, keys
from jaxpeft.objectives.classification import classification, labels_of
from jaxpeft.objectives.cpo import cpo, simpo
from jaxpeft.objectives.dpo import dpo
from jaxpeft.objectives.kto import kto
from jaxpeft.objectives.objective import Head, Loss, Objective
from jaxpeft.objectives.orpo import orpo
from jaxpeft.objectives.reward import reward
from jaxpeft.objectives.sft import sft

__all__ = [
    "OBJECTIVES",
    "Head",
    "Line",
    "Loss",
    "Objective",
    "classification",
    "cpo",
    "dpo",
    "kto",
    "orpo",
    "reward",
    "sft",
    "simpo",
]


class Line(NamedTuple):
    """A line of the table of objectives.

    Attributes:
        make: the function whose keywords are the section's keys.
        settled: (the section's keys, the section `data`) -> the keys that the data
            themselves say; None: there are none.
        records: what records of a data set that is described elsewhere have to be, see
            `data.dataset_info.KINDS`.
        unit: of its loss, behind a number; empty: it has none.
        tells: the figure by which runs whose keys differ can be told apart, since their
            losses cannot; empty: there is none. None: the loss of an evaluation is the
            same whatever the keys.
    """

    make: Callable[..., Objective]
    settled: Callable[[dict[str, Any], DataSection], dict[str, Any]] | None = None
    records: str = "answers"
    unit: str = ""
    tells: str | None = None


_PREFERRED = "rewards/accuracies"

OBJECTIVES = Table(
    rows={
        "sft": Line(sft, unit="nats per token"),
        "dpo": Line(dpo, records="pairs", tells=_PREFERRED),
        "orpo": Line(orpo, records="pairs", tells=_PREFERRED),
        "simpo": Line(simpo, records="pairs", tells=_PREFERRED),
        "cpo": Line(cpo, records="pairs", tells=_PREFERRED),
        "kto": Line(kto, records="labelled", tells=""),
        "reward": Line(reward, records="pairs", tells=_PREFERRED),
        "classification": Line(classification, settled=labels_of, unit="nats per text"),
    },
    given=("continues", "base_trains"),
    all_say=keys.ALWAYS,
    some_say={
        "beta": keys.NUMBER,
        "sft_weight": keys.NUMBER,
        "gamma": keys.NUMBER,
        "cpo_alpha": keys.NUMBER,
        "desirable_weight": keys.NUMBER,
        "undesirable_weight": keys.NUMBER,
    },
)
