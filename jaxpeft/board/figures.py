"""What the table says of a run: numbers of its last lines, and a few settings."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft.board.tail import Line, is_number
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import finite

_SECTION = re.compile(r"^([a-z_]+):(?: (.*))?$")
_KEY = re.compile(r"^  (- )?(?:  )?([a-z_]+): (.*)$")
_WANTED = {
    *("adapter.method", "objective.name", "model.path", "model.quantization"),
    *("optimizer.name", "training.max_steps", "training.num_epochs"),
}


def glance(text: str) -> dict[str, Any]:
    """A few settings of a run, from the text of the configuration that it wrote.

    The table wants seven keys of hundreds of files at once, and reading all of YAML
    takes a hundredth of a second for each. What is shown of one run, or compared, is
    read in full.

    Args:
        text: as `config.to_yaml` writes it.

    Returns:
        {dotted key: value}, and under `data.train` the paths of the sources.
    """
    found: dict[str, Any] = {}
    section, subject = "", ""
    for line in text.splitlines():
        if opened := _SECTION.match(line):
            section, subject = opened[1], ""
        elif section == "data" and line in ("  train:", "  eval:"):
            subject = line.strip(" :")
        elif match := _KEY.match(line):
            name = f"{section}.{match[2]}"
            if subject == "train" and match[1] and match[2] == "path":
                found.setdefault("data.train", []).append(_value(match[3]))
            elif line[2:3] not in ("-", " "):
                subject = ""
                if name in _WANTED:
                    found[name] = _value(match[3])
    return found


def _value(text: str) -> Any:
    if text == "null":
        return None
    if text.isdecimal() and text.isascii() and len(text) < 16:
        return int(text)
    try:
        return strict_yaml.parse_scalar(text) if text[:1] in "'\"0123456789." else text
    except InputError:
        return text


@dataclass
class Figures:
    """The numbers of a run, None for each that is not known.

    Attributes:
        training: the last line of its training.
        evaluation: its last evaluation.
        seconds_a_line: what a line of its log takes.
        seconds_a_step: what a step takes.
    """

    training: Line = field(default_factory=dict)
    evaluation: Line = field(default_factory=dict)
    seconds_a_line: float | None = None
    seconds_a_step: float | None = None

    def add(self, lines: list[Line]) -> None:
        """Takes lines that have come."""
        for line in lines:
            if "loss" in line:
                self._time(line)
                self.training = line
            if "eval_loss" in line:
                self.evaluation = line

    def _time(self, line: Line) -> None:
        """What a step takes, from the tokens since the line before and their speed."""
        before, speed = self.training, line.get("tokens_per_second")
        tokens = line.get("tokens", 0) - before.get("tokens", 0)
        steps = line["step"] - before.get("step", 0)
        if before and speed and speed > 0 and tokens > 0 and steps > 0:
            self.seconds_a_line = finite(tokens / speed)
            self.seconds_a_step = finite(tokens / speed / steps)

    @property
    def step(self) -> int:
        """The last step with a line."""
        lines = (self.training, self.evaluation)
        return max(int(line.get("step", 0)) for line in lines)

    def steps(self, settings: dict[str, Any], summary: dict[str, Any]) -> int | None:
        """How many steps the run has in all; None where that is not known yet.

        Args:
            settings: see `glance`.
            summary: the run's `summary.json`.
        """
        if (
            summary
            and not summary.get("stopped_early")
            and _whole(summary.get("steps"))
        ):
            return max(int(summary["steps"]), self.step)
        if _whole(settings.get("training.max_steps")):
            return int(settings["training.max_steps"])
        if "training.num_epochs" not in settings:
            return None  # its configuration cannot be read: nothing is made up
        epochs, epoch = settings["training.num_epochs"], self.training.get("epoch")
        epochs = 1.0 if epochs is None else epochs
        if not is_number(epochs) or not epoch or not self.training["step"]:
            return None
        count = finite(self.training["step"] / epoch * epochs)
        return None if count is None else round(count)


def resident(pid: int) -> int | None:
    """The bytes that a process of this host holds in memory; None: not known.

    Args:
        pid: the process.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53
