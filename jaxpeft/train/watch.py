"""A hook that says while a run is under way what `diagnose` would say of it."""

import json
from collections.abc import Callable
from pathlib import Path

from jaxpeft.diagnose.findings import Line, Settings, diagnose
from jaxpeft.train.loop import Moment


class Watch:
    """A hook that notes what is new in a run's findings, once for each kind.

    It reads the metrics after every `every`-th step, and of them only what is new; it
    notes one finding at a time.

    Args:
        metrics: the run's metrics.jsonl.
        settings: what the findings must know of the configuration.
        note: called with a line for the user.
        every: steps from look to look.
    """

    def __init__(
        self,
        metrics: Path,
        settings: Settings,
        note: Callable[[str], None],
        every: int,
    ):
        self._metrics, self._settings = metrics, settings
        self._note, self._every = note, every
        self._lines: list[Line] = []
        self._position = 0
        self._noted: set[str] = set()

    def __call__(self, moment: Moment) -> None:
        if moment.step % self._every:
            return
        with self._metrics.open() as file:
            file.seek(self._position)
            text = file.read()
            self._position = file.tell()
        self._lines += map(json.loads, text.splitlines())
        for finding in diagnose(self._lines, self._settings, ended=False):
            if finding.kind not in self._noted:
                self._noted.add(finding.kind)
                self._note(f"step {moment.step}: {finding}")
                return
