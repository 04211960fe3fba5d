"""When a run should end before its last step, and which of its steps was the best."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Stopping:
    """The evaluation losses of a run, and whether they still fall.

    A loss that is lower than the best one so far by more than `threshold` starts the
    count anew; any other adds one to `waited`, and `patience` of them in a row end the
    run. The best loss itself falls by any amount. Both are those of transformers'
    EarlyStoppingCallback and Trainer. A NaN improves nothing.

    Attributes:
        patience: evaluations without an improvement that end the run; None: it never
            ends so.
        threshold: nats per token by which a loss must be lower to count as an
            improvement.
        best: the lowest loss so far; None before the first finite one.
        best_step: the step after which it was seen.
        waited: evaluations since the last improvement.
    """

    patience: int | None = None
    threshold: float = 0.0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0

    def observe(self, step: int, loss: float) -> bool:
        """Takes in an evaluation loss.

        Args:
            step: after which it was computed.
            loss: in nats per token.

        Returns:
            Whether it is the lowest so far.
        """
        before = math.inf if self.best is None else self.best
        # In this order: a difference of infinities is not a number.
        enough = loss < before and (
            math.isinf(before) or before - loss > self.threshold
        )
        self.waited = 0 if enough else self.waited + 1
        if not loss < before:
            return False
        self.best, self.best_step = loss, step
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def position(self) -> dict[str, Any]:
        """The losses and the count that a checkpoint notes, for `restore`."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def restore(self, position: dict[str, Any]) -> None:
        """Goes on where a checkpoint's note left off; an empty one changes nothing."""
        self.best = position.get("best", self.best)
        self.best_step = position.get("best_step", self.best_step)
        self.waited = position.get("waited", self.waited)

    def verdict(self, step: int) -> str:
        """The reason why the run ends after `step`, in words."""
        if self.best is None:
            return f"stopped early after step {step}: no evaluation loss was finite"
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        return (
            f"stopped early after step {step}: {self.waited} evaluations without an "
            f"improvement{by}; the best loss is {self.best:.4f}, of step "
            f"{self.best_step}"
        )
