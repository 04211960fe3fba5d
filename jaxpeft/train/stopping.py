"""When a run should end before its last step, and which of its steps was the best."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Stopping:
    """A figure of a run's evaluations, and whether it still gets better.

    A value that is better than the best one so far by more than `threshold` starts the
    count anew; any other adds one to `waited`, and `patience` of them in a row end the
    run. The best value itself moves by any amount. Both are those of transformers'
    EarlyStoppingCallback and Trainer. A NaN improves nothing.

    Attributes:
        patience: evaluations without an improvement that end the run; None: it never
            ends so.
        threshold: by how much a value must be better to count as an improvement.
        name: what the figure is called.
        greater: whether the higher value is the better one.
        best: the best value so far; None before the first finite one.
        best_step: the step after which it was seen.
        waited: evaluations since the last improvement.
    """

    patience: int | None = None
    threshold: float = 0.0
    name: str = "loss"
    greater: bool = False
    best: float | None = None
    best_step: int | None = None
    waited: int = 0

    def observe(self, step: int, value: float) -> bool:
        """Takes in the figure of an evaluation.

        Args:
            step: after which it was computed.
            value: such as a loss in nats per token.

        Returns:
            Whether it is the best so far.
        """
        sign = -1 if self.greater else 1
        before = math.inf if self.best is None else sign * self.best
        now = sign * value
        # In this order: a difference of infinities is not a number.
        enough = now < before and (math.isinf(before) or before - now > self.threshold)
        self.waited = 0 if enough else self.waited + 1
        if not now < before:
            return False
        self.best, self.best_step = value, step
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def position(self) -> dict[str, Any]:
        """The best value and the count that a checkpoint notes, for `restore`."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def restore(self, position: dict[str, Any]) -> None:
        """Goes on where a checkpoint's note left off; an empty one changes nothing."""
        self.best = position.get("best", self.best)
        self.best_step = position.get("best_step", self.best_step)
        self.waited = position.get("waited", self.waited)

    def verdict(self, step: int) -> str:
        """The reason why the run ends after `step`, in words."""
        if self.best is None:
            none = f"no evaluation {self.name} was finite"
            return f"stopped early after step {step}: {none}"
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        return (
            f"stopped early after step {step}: {self.waited} evaluations without an "
            f"improvement{by}; the best {self.name} is {self.best:.4f}, of step "
            f"{self.best_step}"
        )
