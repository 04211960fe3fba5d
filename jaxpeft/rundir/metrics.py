"""`metrics.jsonl`: written by a run under way, read at any time of its life."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxpeft import replacing
from jaxpeft.errors import InputError


class Listener(Protocol):
    """What gets each entry of the metrics too, such as a `sinks.Guarded`."""

    def write(self, entry: dict[str, Any]) -> None:
        """Takes an entry."""
        ...

    def close(self) -> None:
        """Ends the listening: no more entries come."""
        ...


class MetricsFile:
    """Writes `metrics.jsonl`: a line of JSON an entry, written through at once.

    JSON has no NaN and no infinity: null stands for them. Resuming at a step drops the
    lines after it, which the steps to come write anew.

    Args:
        path: the file; None writes nothing, since of several processes one alone does.
        resumed_at: the steps taken so far of a run that continues; None: it begins.
        also: what gets each entry too.
        evaluates_again: whether the evaluation after step `resumed_at` is still to
            come, so that a line of it is dropped too.
    """

    def __init__(
        self,
        path: Path | None,
        resumed_at: int | None,
        also: Sequence[Listener] = (),
        evaluates_again: bool = False,
    ):
        self._file, self._also = None, also
        if path is None:
            return
        kept, last = [], None
        if resumed_at is not None and path.exists():
            last = path.stat().st_mtime_ns
            for line in path.read_text().splitlines(keepends=True):
                # A killed process may have left half a line, always the last one.
                if not line.endswith("\n"):
                    continue
                entry = json.loads(line)
                again = evaluates_again and "eval_loss" in entry
                if entry["step"] <= resumed_at - again:
                    kept.append(line)
        # Moved into place, so that a kill right here cannot cost the lines kept.
        replacing.write_text(path, "".join(kept))
        if kept and last is not None:
            # Whoever looks on sees by the time how long ago the last line came.
            os.utime(path, ns=(last, last))
        self._file = path.open("a")

    def write(self, entry: dict[str, Any]) -> None:
        """Appends an entry.

        Args:
            entry: {name: number}, `step` among them.
        """
        if self._file is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for sink in self._also:
            sink.write(finite)

    def close(self) -> None:
        """Closes the file and the sinks."""
        if self._file is not None:
            self._file.close()
        for sink in self._also:
            sink.close()


def read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """The training lines and the evaluation lines of a `metrics.jsonl`.

    Args:
        path: the file; one that is not there has no lines.

    Returns:
        (training lines, evaluation lines), null read as NaN.

    Raises:
        InputError: a line is no JSON object with a step.
    """
    lines = read_lines(path)
    training = [line for line in lines if "loss" in line]
    return training, [line for line in lines if "eval_loss" in line]


def read_lines(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, null read as NaN.

    A last line without its end, which a run may be writing, does not count.

    Args:
        path: the file; one that is not there has no lines.

    Raises:
        InputError: any other line is no JSON object with a step.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("\n") and line.strip():
            lines.append(_entry(path, number, line))
    return lines


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        int(entry["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}, line {number}: found {line.strip()[:60]!r}, which is no JSON "
            "object with a step; delete the line"
        ) from error
    return {key: math.nan if v is None else v for key, v in entry.items()}


def values(lines: list[dict], key: str) -> np.ndarray:
    """One number a line, float64; NaN where a line lacks it.

    Args:
        lines: entries of the metrics.
        key: the name of the number.

    Returns:
        An array of shape (lines,).
    """
    return np.asarray([line.get(key, math.nan) for line in lines], float)


def best_evaluation(lines: list[dict]) -> tuple[int, float] | None:
    """The lowest evaluation loss, the first of equal ones.

    Args:
        lines: the evaluation lines of the metrics.

    Returns:
        (step, loss in nats per token); None where no loss is finite.
    """
    losses = values(lines, "eval_loss")
    if not np.isfinite(losses).any():
        return None
    at = int(np.nanargmin(losses))
    return int(lines[at]["step"]), float(losses[at])


def unit_of_loss(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a run's losses are means of, as its own figures tell.

    Args:
        lines: entries of the metrics, of training, evaluation or both.
    """
    names = {name.removeprefix("eval_") for line in lines for name in line}
    if any("/" in name for name in names):
        return "mean over pairs or answers"
    if names & {"pairs", "examples"} or any(
        "accuracy" in line and "eval_loss" not in line for line in lines
    ):
        return "nats per text"
    return "nats per token"
