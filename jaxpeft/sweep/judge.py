"""What the points of a sweep are judged by: a loss, or another figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxpeft.config import RunConfig
from jaxpeft.config.training import EVAL, LOSS
from jaxpeft.objectives import OBJECTIVES
from jaxpeft.sweep.point import Point
from jaxpeft.train.standing import DIVERGED


@dataclass(frozen=True)
class Judge:
    """What the points of a sweep are judged by.

    Attributes:
        base: the configuration that the points are made of.
    """

    base: RunConfig

    @property
    def figure(self) -> str:
        """The figure that evaluations are compared by."""
        return self.base.training.figure

    @property
    def column(self) -> str:
        """The name of the column that ranks: the evaluations' figure if there are."""
        if not self.base.data.evaluates:
            return "train_loss"
        keeps_best = self.base.training.keeps_best
        return f"best_{self.figure}" if keeps_best else self.figure

    @property
    def prefers_greater(self) -> bool:
        """Whether the higher number in that column is the better one."""
        return self.base.data.evaluates and self.base.training.prefers_greater

    @property
    def unit(self) -> str:
        """What stands behind such a number."""
        unit = OBJECTIVES[self.base.objective.name].unit
        return f" {unit}" if unit and self.column.endswith("loss") else ""

    def incomparable(self, axes: Mapping[str, Any]) -> list[str]:
        """Those swept keys that change what the figure itself measures.

        Args:
            axes: those of the sweep; one that has a single value changes nothing.
        """
        if not self.column.endswith("loss"):
            return []
        varied = [key for key, values in axes.items() if len(values) > 1]
        if self.tells is None:  # evaluations leave its settings out
            return [key for key in varied if key == "objective.name"]
        return [key for key in varied if key.startswith("objective.")]

    @property
    def tells(self) -> str | None:
        """The figure that points of unlike losses share; see `objectives.Line`."""
        return OBJECTIVES[self.base.objective.name].tells

    @property
    def way_to_compare(self) -> str:
        """What to judge points by whose losses cannot be compared."""
        if not self.tells:
            return "compare the answers that they give"
        return f"rank by training.metric_for_best_model={self.tells}"

    def score(self, point: Point) -> float:
        """The number that a point is judged by; an infinity, the worst, for none.

        What diverged has none, whatever its last evaluation said.
        """
        value = self.columns(point)[self.column]
        worst = -math.inf if self.prefers_greater else math.inf
        if value is None or math.isnan(value) or point.status == DIVERGED:
            return worst
        return value

    def order(self, point: Point) -> float:
        """The same, so that the lower one is the better."""
        return -self.score(point) if self.prefers_greater else self.score(point)

    def columns(self, point: Point) -> dict[str, Any]:
        """What came of a point, in the order of the table's columns."""
        if self.figure == LOSS:
            return point.results
        own = {self.figure: point.figure, f"best_{self.figure}": point.best_figure}
        return {**own, **point.results}

    def heads(self) -> tuple[str, ...]:
        """What the columns of figures are called in the table, up to the step."""
        if self.figure == LOSS:
            return "eval loss", "lowest", "at step"
        return self.figure.removeprefix(EVAL), "best", "eval loss", "lowest", "best at"
