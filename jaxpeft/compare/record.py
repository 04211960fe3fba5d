"""A run as it stands in its directory, whatever state that is in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft import tree
from jaxpeft.config import strict_yaml
from jaxpeft.config.training import EVAL
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import CONFIG, METRICS, SUMMARY, finite, read_json
from jaxpeft.rundir.metrics import best_evaluation, read_metrics
from jaxpeft.rundir.outcome import USUAL, speed
from jaxpeft.rundir.sweep_files import SWEEP, read_sweep

DAMAGED = "damaged"


@dataclass(frozen=True)
class Record:
    """A run as it was read.

    Attributes:
        name: what it is called: its directory, and of a sweep's point its values.
        directory: its directory.
        status: whether it has ended, in a few words; "damaged" with what is wrong.
        settings: key -> its value as YAML, of all keys but where it is written.
        figures: name -> number, None for one that is not known.
        training: the training lines of its metrics.
        evaluation: the evaluation lines of its metrics.
    """

    name: str
    directory: Path
    status: str
    settings: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float | None] = field(default_factory=dict)
    training: list[dict] = field(default_factory=list)
    evaluation: list[dict] = field(default_factory=list)


def read_all(directories: Sequence[Path]) -> list[Record]:
    """The runs in some directories, in their order; those of a sweep best first.

    Args:
        directories: of runs and of sweeps.

    Raises:
        InputError: for all that are none of the two.
    """
    records, problems = [], []
    for directory in dict.fromkeys(directories):
        if (directory / SWEEP).is_file():
            records += _points(directory)
        elif (directory / CONFIG).is_file() or (directory / METRICS).is_file():
            records.append(read(directory, str(directory)))
        else:
            problems.append(
                f"{str(directory)!r} holds neither {CONFIG} nor {METRICS} nor {SWEEP}; "
                "name the output_dir of a run, or the directory of a sweep"
            )
    if problems:
        raise InputError(*problems)
    return records


def read(directory: Path, name: str, status: str = "") -> Record:
    """The run in a directory.

    Args:
        directory: of a run.
        name: what it is called.
        status: how it ended, where somebody else knows that; empty: nobody.
    """
    wrong: list[str] = []
    settings, training, evaluation, figures = {}, [], [], {}
    try:
        settings = _settings(directory / CONFIG)
    except InputError as error:
        wrong += error.problems
    summary = read_json(directory / SUMMARY)
    if not isinstance(summary, dict):
        wrong += [f"{SUMMARY}: found no object"] * (directory / SUMMARY).exists()
        summary = {}
    try:
        training, evaluation = read_metrics(directory / METRICS)
        _check_numbers(training + evaluation)
        figures = figures_of(summary, training, evaluation)
    except InputError as error:
        wrong += error.problems
    except (ValueError, TypeError, OSError) as error:
        training, evaluation = [], []
        wrong.append(f"{METRICS}: {' '.join(str(error).split())}")
    if wrong:
        status = f"{DAMAGED}: {'; '.join(wrong)}"
    return Record(
        name,
        directory,
        status or _status(summary, training, evaluation),
        settings,
        figures,
        training,
        evaluation,
    )


def _check_numbers(lines: list[dict]) -> None:
    """Raises ValueError where a line holds anything else than numbers."""
    for line in lines:
        for name, value in line.items():
            if not isinstance(value, int | float):
                raise ValueError(f"step {line['step']}: {name} is {value!r}, no number")


def _points(directory: Path) -> list[Record]:
    """The points of a sweep; one record that says so where it cannot be read."""
    try:
        sweep = read_sweep(directory)
    except InputError as error:
        return [Record(str(directory), directory, f"{DAMAGED}: {error.problems[0]}")]
    found = []
    for point in sweep.points:
        status = str(point.row.get("status", ""))
        known = status if status in ("stopped early", "diverged", "waiting") else ""
        found.append(read(point.directory, f"{directory}: {point.name}", known))
    return found


def _settings(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        mapping = strict_yaml.load(path.read_bytes(), CONFIG)
    except OSError as error:
        raise InputError(f"{CONFIG}: cannot be read ({error.strerror})") from None
    if not isinstance(mapping, Mapping):
        raise InputError(f"{CONFIG}: found no mapping")
    known = {str(key): value for key, value in mapping.items() if key != "output_dir"}
    return {key: strict_yaml.dump_scalar(value) for key, value in tree.walk(known)}


def _status(summary: Mapping, training: list[dict], evaluation: list[dict]) -> str:
    if summary:
        return "stopped early" if summary.get("stopped_early") else "finished"
    step = max((int(line["step"]) for line in training + evaluation), default=0)
    return f"not finished: step {step:,}" if step else "no step logged yet"


def figures_of(
    summary: Mapping[str, Any], training: list[dict], evaluation: list[dict]
) -> dict[str, float | None]:
    """What came out, from the summary where there is one, else from the metrics.

    Args:
        summary: the run's `summary.json`, empty where there is none.
        training: the training lines of its metrics.
        evaluation: the evaluation lines.
    """
    best_step, best = best_evaluation(evaluation) or (None, None)
    steps = [int(line["step"]) for line in training + evaluation]
    figures: dict[str, float | None] = {
        "steps": _number(summary.get("steps", max(steps, default=None))),
        "train_loss": _last(training, "loss"),
        "eval_loss": _last(evaluation, "eval_loss"),
        "best_eval_loss": best,
        "best_step": best_step,
    }
    names = dict.fromkeys(name for line in evaluation for name in line)
    for name in names:
        if name.startswith(EVAL) and name not in USUAL - {"eval_accuracy"}:
            figures[name] = _last(evaluation, name)
    figures |= {
        "tokens": _last(training, "tokens"),
        "tokens_per_second": speed(training),
        "seconds": _number(summary.get("seconds")),
        "peak_memory_bytes": _number(summary.get("peak_memory_bytes")),
        "parameters": _number(summary.get("parameters")),
        "trainable": _number(summary.get("trainable")),
    }
    return figures


def _last(lines: list[dict], name: str) -> float | None:
    return _number(lines[-1].get(name)) if lines else None


def _number(value: Any) -> float | None:
    """The number, None for what is none: the file may be anybody's."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return finite(value) if is_number and not math.isnan(value) else None
