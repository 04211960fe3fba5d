"""The curves of a run as they grow, for one page that shows them."""

from pathlib import Path
from typing import Any

from jaxpeft.board.tail import Line, Tail
from jaxpeft.report.charts import run_charts

MOST = 20_000  # lines that are kept; of more every second one goes


class Follower:
    """The lines of a run, read once each, and the charts of them.

    Args:
        folder: the run's directory.

    Attributes:
        training: the lines of its training, thinned where there are very many.
        evaluation: those of its evaluations.
        every: which of the training's lines are kept: each, each second, ...
    """

    def __init__(self, folder: Path):
        self._tail = Tail(folder, whole=True)
        self._count = 0
        self._drawn = False
        self.training: list[Line] = []
        self.evaluation: list[Line] = []
        self.every = 1

    @property
    def bad(self) -> int:
        """How many lines could not be read."""
        return self._tail.bad

    def read(self) -> bool:
        """Reads what is new; whether there was anything.

        Raises:
            OSError: the metrics cannot be read.
        """
        lines = self._tail.more()
        if self._tail.fresh:
            self._count, self.every = 0, 1
            self.training, self.evaluation = [], []
        for line in lines:
            if "eval_loss" in line:
                self.evaluation.append(line)
            if "loss" in line:
                if self._count % self.every == 0:
                    self.training.append(line)
                self._count += 1
                if len(self.training) > MOST:
                    self.training, self.every = self.training[::2], 2 * self.every
        changed = bool(lines) or self._tail.fresh or not self._drawn
        self._drawn = True
        return changed

    def charts(self) -> list[dict[str, Any]]:
        """The charts, as the page's script takes them."""
        return [chart.data() for chart in run_charts(self.training, self.evaluation)]
