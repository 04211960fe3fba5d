"""The curves of a run as they grow, for one page that shows them."""

from pathlib import Path
from typing import Any

from jaxpeft.board.tail import Line, Tail
from jaxpeft.report.charts import run_charts

MOST = 20_000  # lines that are kept; of more every second one goes


class Thinned:
    """Lines, thinned where there are very many.

    Args:
        most: how many are kept.

    Attributes:
        lines: those that are kept.
        every: which of all they are: each, each second, ...
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.lines: list[Line] = []
        self.every = 1
        self._count = 0

    def add(self, line: Line) -> None:
        """Takes the next line."""
        if self._count % self.every == 0:
            self.lines.append(line)
        self._count += 1
        if len(self.lines) > self._most:
            self.lines, self.every = self.lines[::2], 2 * self.every


class Follower:
    """The lines of a run, read once each, and the charts of them.

    Args:
        folder: the run's directory.
        most: lines of training, and of evaluations, that are kept; None: `MOST`.
    """

    def __init__(self, folder: Path, most: int | None = None):
        self._tail, self._most = Tail(folder, whole=True), most or MOST
        self._drawn = False
        self._training, self._evaluation = Thinned(self._most), Thinned(self._most)

    @property
    def training(self) -> list[Line]:
        """The lines of its training, thinned where there are very many."""
        return self._training.lines

    @property
    def evaluation(self) -> list[Line]:
        """Those of its evaluations, likewise."""
        return self._evaluation.lines

    @property
    def every(self) -> int:
        """Which of the training's lines are kept: each, each second, ..."""
        return self._training.every

    @property
    def bad(self) -> int:
        """How many lines could not be read."""
        return self._tail.bad

    def read(self) -> bool:
        """Reads what is new; whether there was anything.

        Raises:
            OSError: the metrics cannot be read.
        """
        changed = not self._drawn
        for number, lines in enumerate(self._tail.pieces()):
            if number == 0 and self._tail.fresh:
                self._training = Thinned(self._most)
                self._evaluation = Thinned(self._most)
                changed = True
            changed = changed or bool(lines)
            for line in lines:
                if "eval_loss" in line:
                    self._evaluation.add(line)
                if "loss" in line:
                    self._training.add(line)
        self._drawn = True
        return changed

    def charts(self) -> list[dict[str, Any]]:
        """The charts, as the page's script takes them."""
        return [chart.data() for chart in run_charts(self.training, self.evaluation)]
