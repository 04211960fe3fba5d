"""Training from the first step, or the one to continue from, to the adapter."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxpeft import config, console, data, evaluation, hf, hooks, plots, tree
from jaxpeft.checkpoint import Checkpoints
from jaxpeft.compiled import Compiled
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.interrupt import Interrupt, Watchdog
from jaxpeft.loop import fit
from jaxpeft.progress import Progress, make_progress
from jaxpeft.run import Run, describe
from jaxpeft.run_lock import LOCK, RunLock
from jaxpeft.session import ADAPTER, CONFIG
from jaxpeft.step import TrainState, make_eval_step, make_train_step

CHECKPOINTS, METRICS, PLOT = "checkpoints", "metrics.jsonl", "loss.png"


def train(cfg: RunConfig, *, resume: str = "auto") -> None:
    """Trains as `cfg` says, continuing where the output directory holds a checkpoint.

    resume: "auto"; "never", which demands an empty or absent directory; "anyway",
    which continues although configuration, data or base have changed.
    Raises InputError, NumericsError or Preempted, which the command turns into its
    exit code.
    """
    check_output(Path(cfg.output_dir), resume)
    run = Run(cfg)
    describe(run)
    with (
        RunLock(run.output),
        Checkpoints(
            run.output / CHECKPOINTS,
            save_total_limit=cfg.training.save_total_limit,
            fingerprint=run.fingerprint(),
        ) as checkpoints,
        Interrupt() as interrupt,
        Watchdog(cfg.training.watchdog_seconds) as watchdog,
    ):
        watchdog.pet(hooks.SAVE_GRACE)
        state = run.initial_state()
        restored = checkpoints.restore(state, check_fingerprint=resume != "anyway")
        state, extra = restored or (state, {})
        (run.output / CONFIG).write_text(config.to_yaml(cfg))
        state = _steps(run, state, extra, checkpoints, interrupt, watchdog)
        checkpoints.wait()
    _finish(run, state)


def _steps(
    run: Run,
    state: TrainState,
    extra: dict[str, Any],
    checkpoints: Checkpoints,
    interrupt: Interrupt,
    watchdog: Watchdog,
) -> TrainState:
    """From the state that was restored, or the first one, to the last step."""
    training, first = run.cfg.training, int(state.step)
    progress = make_progress(run.steps, first)
    file = hooks.MetricsFile(run.output / METRICS, first if extra else None)
    step = Compiled(make_train_step(run.base.cfg, run.tx), "step", progress.note, (0,))
    log = hooks.Log(
        file,
        progress,
        run.schedule,
        run.batches.epoch,
        every=training.logging_steps,
        last=run.steps,
        tokens=extra.get("tokens", 0),
    )
    evaluate = None
    if run.evaluation is not None:
        evaluate = hooks.Evaluate(
            _evaluator(run, progress, watchdog),
            file,
            log,
            progress,
            every=training.eval_steps,
            last=run.steps,
            patience=training.early_stopping_patience,
            best=extra.get("best"),
            waited=extra.get("waited", 0),
        )

    def take(state: TrainState, batch: data.Batch) -> tuple[TrainState, Any]:
        micro = run.micro_batches(batch)
        if step.is_new(micro):
            watchdog.pet(hooks.SAVE_GRACE)
        start, compiled = time.monotonic(), step.seconds
        result = step(state, run.frozen, micro)
        if step.seconds > compiled:
            log.paused(time.monotonic() - start)
        return result

    def position() -> dict[str, Any]:
        best = {"best": evaluate.best, "waited": evaluate.waited} if evaluate else {}
        return {"tokens": log.tokens, **best}

    save = hooks.Save(
        checkpoints,
        position,
        interrupt,
        watchdog,
        every=training.save_steps,
        last=run.steps,
    )
    abort = hooks.abort_on_nonfinite(training.max_nonfinite_steps, run.steps)
    try:
        if extra:
            progress.note(f"continuing after step {first}")
        else:
            _before(run, state, evaluate)
        if evaluate is not None and evaluate.exhausted:
            return state  # it had stopped early, and was saved
        log.restart()
        return fit(
            take,
            state,
            run.batches.iterate(first),
            [abort, log, *([evaluate] if evaluate else []), save],
            first=first,
            last=run.steps,
        )
    finally:
        progress.close()
        file.close()


def _before(run: Run, state: TrainState, evaluate: hooks.Evaluate | None) -> None:
    """What the untrained model does, for comparison."""
    if evaluate is not None:
        evaluate.run(0, state.params)
    for prompt, _, answer in run.answers(state.params):
        console.say(f"before training\n  prompt: {_short(prompt)}")
        console.say(f"  answer: {_short(answer)}")


def _finish(run: Run, state: TrainState) -> None:
    """Writes the adapter and the plot, and says what came of the run."""
    params = tree.combine(state.params, run.frozen)
    hf.save_adapter(params, run.output / ADAPTER, run.base.cfg, base=run.cfg.model.path)
    metrics = run.output / METRICS
    plots.plot_losses(metrics, run.output / PLOT, str(run.output))
    for prompt, reference, answer in run.answers(state.params):
        console.say(f"after training\n  prompt: {_short(prompt)}")
        console.say(f"  answer: {_short(answer)}\n  reference: {_short(reference)}")
    _, evaluations = plots.read_metrics(metrics)
    if evaluations:
        losses = [line["eval_loss"] for line in evaluations]
        console.say(f"evaluation loss: {losses[0]:.4f} before, {losses[-1]:.4f} after")
    if int(state.skipped):
        console.warn(f"{int(state.skipped)} steps had no finite gradient: skipped")
    console.say(f"state after step {int(state.step)}: {tree.digest(state)}")
    for name, path in (("adapter", ADAPTER), ("plot", PLOT), ("metrics", METRICS)):
        console.say(f"{name + ':':<9}{run.output / path}")


def _evaluator(
    run: Run, progress: Progress, watchdog: Watchdog
) -> Callable[[Any], dict[str, float]]:
    """The function from the trainable tree to the losses over the evaluation data."""
    step = Compiled(make_eval_step(run.base.cfg), "evaluation", progress.note)

    def evaluate(trainable: Any) -> dict[str, float]:
        watchdog.pet(hooks.SAVE_GRACE)
        batches = map(run.on_devices, run.evaluation or ())
        return evaluation.losses(step(trainable, run.frozen, b) for b in batches)

    return evaluate


def check_output(output: Path, resume: str) -> None:
    """Raises InputError where the directory does not allow what was asked for."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output_dir: {str(output)!r} is a file; name a directory")
    if not output.is_dir():
        return
    found = [entry.name for entry in output.iterdir() if entry.name != LOCK]
    if found and resume == "never":
        raise InputError(
            f"output_dir: {str(output)!r} is not empty, and --resume never starts over "
            "only in an empty directory; choose another one, or empty it yourself"
        )
    if ADAPTER in found and CHECKPOINTS not in found:
        raise InputError(
            f"output_dir: {str(output)!r} holds a trained adapter and no checkpoint to "
            "continue from; training would overwrite it: choose another directory"
        )


def _short(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
