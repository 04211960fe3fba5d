"""The page of a run: its figures, curves, samples, configuration and environment."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.report import page, wording
from jaxpeft.report.charts import run_charts
from jaxpeft.rundir.files import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    REPORT,
    SAMPLES,
    SUMMARY,
    finite,
    read_json,
)
from jaxpeft.rundir.metrics import best_evaluation, read_metrics, unit_of_loss
from jaxpeft.rundir.sweep_files import DROPPED, SWEEP

SAMPLE_PARTS = ("prompt", "reference", "before", "after")


def write_run(directory: Path, findings: Sequence[str] = ()) -> Path:
    """Writes `report.html` into a run's directory, at any time of its life.

    Args:
        directory: the run directory.
        findings: what a diagnosis says of the run, a sentence each.

    Returns:
        The path of the page.

    Raises:
        InputError: the directory is not that of a run.
    """
    directory = Path(directory)
    config = directory / CONFIG
    if not config.is_file() and not (directory / METRICS).is_file():
        raise InputError(
            f"{str(directory)!r} holds neither {CONFIG} nor {METRICS}; name the "
            "output_dir of a run"
        )
    training, evaluation = read_metrics(directory / METRICS)
    summary = _object(read_json(directory / SUMMARY))
    target, whole = directory / REPORT, directory.resolve()
    row = _point(whole)
    point = str(row.get("name", ""))
    page.write(
        target,
        "run.html",
        title=f"{whole.name}: {point}" if point else whole.name,
        of_sweep=os.path.relpath(_sweep(whole) / REPORT, whole) if point else "",
        state=_dropped(row) or _state(summary, training, evaluation),
        headlines=_headlines(summary, training, evaluation),
        findings=list(findings),
        samples=_samples(read_json(directory / SAMPLES)),
        figures=wording.rows(summary, unit_of_loss([*training, *evaluation])),
        environment=wording.rows(_object(read_json(directory / ENVIRONMENT))),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        charts=[chart.data() for chart in run_charts(training, evaluation)],
    )
    return target


def _sweep(run: Path) -> Path:
    """Where the sweep would be that a run directory is a point of."""
    return run.parent.parent


def _point(run: Path) -> dict[str, Any]:
    """What a sweep says of the point that a run directory is; {} if it is none."""
    rows = _object(read_json(_sweep(run) / SWEEP)).get("points", [])
    relative = run.relative_to(_sweep(run)).as_posix()
    return next((row for row in rows if row.get("directory") == relative), {})


def _dropped(row: dict[str, Any]) -> str:
    """Where and why a sweep dropped the point; "" if it did not."""
    return f"dropped {row.get('why')}" if row.get("status") == DROPPED else ""


def _state(summary: dict, training: list[dict], evaluation: list[dict]) -> str:
    """Whether the run has ended, in a few words."""
    if summary:
        return "stopped early" if summary.get("stopped_early") else "finished"
    if not training and not evaluation:
        return "no step logged yet"
    return f"not finished: step {last_step(training, evaluation):,} logged so far"


def last_step(training: list[dict], evaluation: list[dict]) -> int:
    """The last step with a line in the metrics, 0 if there is none."""
    return max((int(line["step"]) for line in training + evaluation), default=0)


def _headlines(
    summary: dict, training: list[dict], evaluation: list[dict]
) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures that a reader looks for first."""
    shown = [("steps", f"{last_step(training, evaluation):,}", "optimizer updates")]
    unit = unit_of_loss([*training, *evaluation])
    if training:
        shown.append(("training loss", _loss(training[-1]["loss"]), unit))
    if evaluation:
        last = _loss(evaluation[-1]["eval_loss"])
        first = _loss(evaluation[0]["eval_loss"])
        remark = f"from {first}, {unit}"
        shown.append(("evaluation loss", last, remark))
    best = best_evaluation(evaluation)
    if best is not None:
        step, loss = best
        shown.append(("best evaluation", _loss(loss), f"at step {step:,}"))
    if "tokens_per_second" in summary:
        value = summary["tokens_per_second"]
        shown.append(("speed", wording.figure(value, "count"), "tokens per second"))
    if "seconds" in summary:
        shown.append(("time", wording.figure(summary["seconds"], "seconds"), "in all"))
    if "peak_memory_bytes" in summary:
        value = wording.figure(summary["peak_memory_bytes"], "bytes")
        remark = f"of the {summary.get('peak_memory_of', 'process')}"
        shown.append(("peak memory", value, remark))
    if summary.get("parameters"):
        share = summary.get("trainable", 0) / summary["parameters"]
        value = wording.figure(summary.get("trainable", 0), "count")
        shown.append(("trainable", value, f"{share:.2%} of the parameters"))
    return shown


def _loss(value: float) -> str:
    known = finite(value)
    return "not finite" if known is None else f"{known:.4f}"


def _samples(content: Any) -> list[dict[str, str | None]]:
    """The samples, each with all of its parts; None for one that is not there yet."""
    rows = content if isinstance(content, list) else []
    return [{part: row.get(part) for part in SAMPLE_PARTS} for row in rows]


def _object(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}
