"""What a finding is, and what must be known of a run to come to one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxpeft import optim
from jaxpeft.config import RunConfig

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a diagnosis must know of the configuration.

    Attributes:
        max_grad_norm: the global norm that gradients are clipped to; None: no clipping.
        averages: whether the optimizer averages its parameters, so that its rate need
            not fall.
        batch_size: sequences a step.
        keeps_best: whether the best evaluation's adapter is the one that is written.
        learning_rate: the schedule's highest rate; None: unknown, or found by itself.
    """

    max_grad_norm: float | None = None
    averages: bool = False
    batch_size: int = 16
    keeps_best: bool = False
    learning_rate: float | None = None

    @classmethod
    def of(cls, cfg: RunConfig) -> "Settings":
        """The settings that a configuration has."""
        return cls(
            cfg.optimizer.max_grad_norm,
            optim.OPTIMIZERS[cfg.optimizer.name].averages,
            cfg.training.batch_size,
            cfg.training.keeps_best,
            None if cfg.optimizer.is_auto else cfg.optimizer.learning_rate,
        )


@dataclass(frozen=True)
class Finding:
    """One thing seen in the metrics of a run.

    Attributes:
        kind: a word for it.
        step: where it shows.
        evidence: what was seen, in numbers.
        remedy: the setting to change, with its number.
    """

    kind: str
    step: int
    evidence: str
    remedy: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.kind}: {self.evidence}; {self.remedy}"


def number(line: Line, key: str) -> float | None:
    """A value of a line; None where it has none or one that is not finite.

    Args:
        line: of the metrics.
        key: the value's name.
    """
    value = line.get(key)
    if value is None or not math.isfinite(value):
        return None
    return float(value)
