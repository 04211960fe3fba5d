"""The files that a run leaves in its directory, from its first step to its page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpeft import config, hf, replacing, tree
from jaxpeft.assembly import summary
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.run import Run
from jaxpeft.devices import cluster
from jaxpeft.diagnose import findings
from jaxpeft.report import plots, run_page
from jaxpeft.rundir import environment, outcome, sinks
from jaxpeft.rundir.files import (
    ADAPTER,
    CONFIG,
    METRICS,
    MODEL,
    PLOT,
    PREDICTIONS,
    SKIPPED,
    read_lines,
    write_lines,
)
from jaxpeft.rundir.metrics import MetricsFile


def begin(run: Run, first: int, fingerprint: Mapping[str, str]) -> None:
    """Writes the configuration, and what the remaining steps are made with.

    Args:
        run: the run.
        first: how many steps are taken already.
        fingerprint: see `Run.fingerprint`.
    """
    replacing.write_text(run.output / CONFIG, config.to_yaml(run.cfg))
    write_skipped(run, anew=not first)
    for path in (run.output / PREDICTIONS).glob("*.jsonl"):
        if path.stem.isdigit() and int(path.stem) > first:
            path.unlink()  # of steps that are to come
    if first < run.steps:
        surroundings = environment.collect(
            seed=run.cfg.seed,
            deterministic=run.cfg.deterministic,
            fingerprint=fingerprint,
        )
        environment.record(run.output / environment.ENVIRONMENT, surroundings, first)


def write_skipped(run: Run, *, anew: bool) -> None:
    """Writes the rows of a run's data that were left out: source, place and reason.

    Args:
        run: the run.
        anew: whether nothing is known that an earlier start met in streamed data.
    """
    path = run.output / SKIPPED
    known = read_lines(path) if run.cfg.data.streaming and not anew else []
    data = [run.batches, *([run.evaluation] if run.evaluation else [])]
    rows = [
        {"source": source.path, **row._asdict()}
        for one in data
        for source in one.summary().sources
        for row in source.skipped
    ]
    # Training and evaluation data may be of the same file.
    once = {tuple(row.values()): row for row in (*known, *rows)}
    write_lines(path, list(once.values()))


def open_metrics(
    run: Run, resumed_at: int | None, evaluates_again: bool = False
) -> MetricsFile:
    """The run's `metrics.jsonl` and its sinks; of several processes one has them.

    Args:
        run: the run.
        resumed_at: the step to continue after; None: the run begins anew.
        evaluates_again: whether the evaluation after that step is still to come.
    """
    if not cluster.is_primary():
        return MetricsFile(None, resumed_at)
    settings = run.cfg.model_dump(mode="json")
    also = sinks.open_all(run.cfg.training.report_to, run.output, settings, resumed_at)
    return MetricsFile(run.output / METRICS, resumed_at, also, evaluates_again)


def predictions(output: Path, step: int) -> Path:
    """Where the answers of an evaluation are written, and their scores.

    Args:
        output: the run directory.
        step: after which it was made.
    """
    return output / PREDICTIONS / f"{step}.jsonl"


def write_trained(run: Run, trained: Any) -> str:
    """Writes the adapter or the model that a run trained.

    Every process takes part; the first one writes.

    Args:
        run: the run.
        trained: its trainable parameters.

    Returns:
        The name of the folder in the run directory.
    """
    if gives_a_model(run.cfg.adapter):
        whole = tree.combine(trained, run.frozen)
        hf.save(whole, run.output / MODEL, run.base.cfg, base=run.base.directory)
        if cluster.is_primary():
            run.base.copy_companions(run.output / MODEL)
        return MODEL
    # What the other processes hold of it comes first: the first writes it alone.
    trained_here = jax.tree.map(tree.to_host, trained)
    params = tree.combine(trained_here, run.frozen)
    if cluster.is_primary():
        hf.save_adapter(params, run.output / ADAPTER, run.base.cfg, base=run.base.name)
    return ADAPTER


def conclude(
    run: Run,
    trained: Any,
    answers: Sequence[tuple[str, str, str]],
    *,
    steps: int,
    seconds: float,
) -> list[str]:
    """Writes plot, samples, summary and page of a run that has ended.

    Args:
        run: the run.
        trained: its trainable parameters.
        answers: of the trained model, see `samples.answers`.
        steps: how many it took.
        seconds: how long they took.

    Returns:
        Remarks about the run, the most important first.
    """
    if run.cfg.data.streaming:
        write_skipped(run, anew=False)
    parameters, trainable = summary.parameter_counts(
        tree.combine(trained, run.frozen), trained
    )
    outcome.keep_after(run.output, answers)
    outcome.keep_summary(
        run.output,
        steps=steps,
        seconds=seconds,
        parameters=parameters,
        trainable=trainable,
        stopped_early=steps < run.steps,
    )
    return show(run.output)


def show(output: Path) -> list[str]:
    """Draws the plot of a run and writes its page, at any time of its life.

    Args:
        output: the run directory.

    Returns:
        Remarks about the run, the most important first.
    """
    plots.plot_losses(output / METRICS, output / PLOT, str(output))
    remarks = list(map(str, findings.of_run(output)))
    run_page.write_run(output, remarks)
    return remarks
