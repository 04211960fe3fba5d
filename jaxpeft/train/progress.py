"""How a run shows itself: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft import console


class Pace:
    """An estimate of how long the steps that are left will take.

    Args:
        total: how many steps there are.
    """

    def __init__(self, total: int):
        self._total = total
        self._first: tuple[int, float] | None = None  # step seen, and when

    def advance(self, step: int) -> None:
        """Takes the time of a step; to be called after every one."""
        if self._first is None:
            self._first = step, time.monotonic()

    def left(self, step: int) -> str:
        """The time left by the pace since the first step, which only compiles."""
        first, start = self._first or (step, 0.0)
        if step == first:
            return "-:--:--"
        rate = (time.monotonic() - start) / (step - first)
        return console.clock(rate * (self._total - step))


def _loss(line: Mapping[str, Any]) -> str:
    """The loss of a step; without a token to learn, and so a gradient, it has none."""
    is_none = math.isnan(line["loss"]) and line["grad_norm"] == 0
    return "none" if is_none else f"{line['loss']:.4f}"


class PlainProgress:
    """A display with a line for every logged step: for files, pipes and cluster logs.

    Args:
        total: how many steps there are.
        done: how many are taken already.
    """

    def __init__(self, total: int, done: int):
        self._total, self._pace = total, Pace(total)

    def log(self, step: int, lines: Sequence[dict[str, Any]]) -> None:
        """Shows a logged training step.

        Args:
            step: its number.
            lines: what is logged of each run; of several only the losses are shown.
        """
        if len(lines) > 1:
            shown = "losses " + "  ".join(map(_loss, lines))
        else:
            (line,) = lines
            shown = (
                f"loss {_loss(line)}"
                f"  lr {line['learning_rate']:.2e}"
                f"  grad {line['grad_norm']:.2f}"
                f"  {line['tokens_per_second']:,.0f} tok/s"
            )
            shown += _preferred(line)
            if "loss_scale" in line:
                shown += f"  scale {line['loss_scale']:g}"
            if "mfu" in line:
                shown += f"  MFU {line['mfu']:.0%}"
        console.say(
            f"step {step:>{len(str(self._total))}}/{self._total}  {shown}"
            f"  {self._pace.left(step)} left"
        )

    def advance(self, step: int) -> None:
        """Counts a step; plain lines show only those that are logged."""
        self._pace.advance(step)

    def note(self, text: str) -> None:
        """Shows a line of its own."""
        console.say(text)

    def work(self, what: str, total: int) -> console.Work:
        """The display of what may take long between two steps."""
        return console.Work(what, total, console.say)

    def close(self) -> None:
        """Ends the display."""


class BarProgress:
    """A bar with step, loss, learning rate, tokens per second and the time left.

    Args:
        total: how many steps there are.
        done: how many are taken already.
    """

    def __init__(self, total: int, done: int):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=total, completed=done)
        self._bar.start()

    def log(self, step: int, lines: Sequence[dict[str, Any]]) -> None:
        """Shows a logged training step beside the bar.

        Args:
            step: its number.
            lines: what is logged of it, as one mapping.
        """
        (line,) = lines
        text = (
            f"loss {_loss(line)}  lr {line['learning_rate']:.2e}"
            f"{_preferred(line)}  {line['tokens_per_second']:,.0f} tok/s"
        )
        self._bar.update(self._task, description=text)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """Shows a line of its own above the bar."""
        self._bar.console.print(text, highlight=False, markup=False)

    def work(self, what: str, total: int) -> console.Work:
        """The display of what may take long between two steps, beside the bar."""
        return console.Work(
            what, total, lambda text: self._bar.update(self._task, description=text)
        )

    def close(self) -> None:
        """Ends the display."""
        self._bar.stop()


Progress = PlainProgress | BarProgress


def _preferred(line: Mapping[str, Any]) -> str:
    """How a step judges answers, in a few words; empty where it judges none."""
    if "rewards/margins" not in line:
        return ""
    share = line.get("rewards/accuracies")
    said = "" if share is None else f"  accuracy {share:.0%}"
    return f"{said}  margin {line['rewards/margins']:.3f}"


def make_progress(total: int, done: int) -> Progress:
    """A display for a run: a bar on a terminal, plain lines elsewhere.

    Args:
        total: how many steps there are.
        done: how many are taken already.
    """
    return (BarProgress if sys.stdout.isatty() else PlainProgress)(total, done)
