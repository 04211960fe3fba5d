"""Training from the first step, or the one to continue from, to the adapter."""

import contextlib
import functools
import time
from pathlib import Path
from typing import Any

from jaxpeft import console, data, tree
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import TrainState
from jaxpeft.assembly.summary import describe
from jaxpeft.config import RunConfig
from jaxpeft.devices import cluster, determinism
from jaxpeft.devices.compiled import Compiled
from jaxpeft.diagnose import findings
from jaxpeft.errors import InputError
from jaxpeft.lr_find import auto
from jaxpeft.lr_find.ramp import FILES
from jaxpeft.objectives import evaluation
from jaxpeft.rundir import outcome, sinks
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.rundir.files import ADAPTER, METRICS, MODEL, PLOT, REPORT
from jaxpeft.rundir.lock import LOCK, RunLock
from jaxpeft.rundir.metrics import read_metrics
from jaxpeft.train import hooks, results, samples, watch
from jaxpeft.train.interrupt import SIGNALS, Interrupt, Watchdog
from jaxpeft.train.loop import fit
from jaxpeft.train.progress import make_progress
from jaxpeft.train.stopping import Stopping

CHECKPOINTS = "checkpoints"


def train(cfg: RunConfig, *, resume: str = "auto") -> None:
    """Trains as `cfg` says, continuing where the output directory holds a checkpoint.

    resume: "auto"; "never", which demands an empty or absent directory; "anyway",
    which continues although configuration, data or base have changed.
    Raises InputError, NumericsError or Preempted, which the command turns into its
    exit code.
    """
    if cfg.deterministic:
        determinism.require()
    cluster.require_same(
        dict(tree.walk(cfg.model_dump(mode="json"))),
        "start all with the same configuration",
    )
    sinks.require(cfg.training.report_to)
    check_output(Path(cfg.output_dir), resume)
    resumes = any((Path(cfg.output_dir) / CHECKPOINTS).glob("[0-9]*"))
    # Before any of them can write there.
    cluster.wait_for_all("output_dir checked")
    run, found = auto.open_run(cfg, resumes)
    cfg = run.cfg
    fingerprint = run.fingerprint()
    cluster.require_same(fingerprint, "give all the same files")
    describe(run)
    primary = cluster.is_primary()
    with (
        RunLock(run.output) if primary else contextlib.nullcontext(),
        Checkpoints(
            run.output / CHECKPOINTS,
            save_total_limit=cfg.training.save_total_limit,
            fingerprint=fingerprint,
        ) as checkpoints,
        Interrupt(() if cluster.is_shared() else SIGNALS) as interrupt,
        Watchdog(cfg.training.watchdog_seconds) as watchdog,
    ):
        watchdog.pet(hooks.SAVE_GRACE)
        state = run.initial_state()
        restored = checkpoints.restore(state, check_fingerprint=resume != "anyway")
        state, extra = restored or (state, {})
        first = int(state.step)
        if primary:
            results.begin(run, first, fingerprint)
            if found is not None:
                found.write(run.output, str(run.output))
        steps = _Steps(run, first, extra, checkpoints, interrupt, watchdog)
        state = steps.take_all(state)
        checkpoints.wait()
        kept = steps.kept(state)
    _finish(run, state, kept, steps.stopping, steps.seconds)


class _Steps:
    """The steps of a run, from a restored state or the first one to the last."""

    def __init__(
        self,
        run: Run,
        first: int,
        extra: dict[str, Any],
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        watchdog: Watchdog,
    ):
        training = run.cfg.training
        self.run, self.first, self.resumed = run, first, bool(extra)
        self.watchdog, self.checkpoints = watchdog, checkpoints
        self.stopping = Stopping(
            training.early_stopping_patience, training.early_stopping_threshold
        )
        self.stopping.restore(extra)
        self._earlier, self._start = extra.get("seconds", 0.0), time.monotonic()
        self.progress = make_progress(run.steps, first)
        self.file = results.open_metrics(run, first if self.resumed else None)
        note, mesh = self.progress.note, run.mesh
        self.step = Compiled(run.train_step(), "step", note, carries=True, mesh=mesh)
        self.eval_step = Compiled(run.eval_step(), "evaluation", note, mesh=mesh)
        self.log = hooks.Log(
            self.file,
            self.progress,
            run.updates.rate,
            run.batches.epoch,
            every=training.logging_steps,
            last=run.steps,
            tokens=extra.get("tokens", 0),
        )
        self.evaluate = self._evaluation_hook() if run.evaluation else None
        self.save = hooks.Save(
            checkpoints,
            self._position,
            functools.partial(_asked_to_stop, interrupt),
            watchdog,
            self.stopping,
            every=training.save_steps,
            last=run.steps,
            keeps_best=training.keeps_best,
        )

    def take_all(self, state: TrainState) -> TrainState:
        """Takes them; says what the untrained model does where they begin anew."""
        limit = self.run.cfg.training.max_nonfinite_steps
        abort = hooks.abort_on_nonfinite(limit, self.run.steps)
        evaluate = [self.evaluate] if self.evaluate else []
        watch = [self._watch()] if cluster.is_primary() else []
        try:
            if self.resumed:
                ended = self.stopping.exhausted or self.first == self.run.steps
                self.progress.note(
                    f"finished after step {self.first}: nothing is left to train"
                    if ended
                    else f"continuing after step {self.first}"
                )
            else:
                self._before(state)
            if self.stopping.exhausted:
                return state  # it had stopped early, and was saved
            self.log.restart()
            return fit(
                self._take,
                state,
                self.run.batches.iterate(self.first),
                [abort, self.log, *evaluate, *watch, self.save],
                first=self.first,
                last=self.run.steps,
            )
        finally:
            self.progress.close()
            self.file.close()

    @property
    def seconds(self) -> float:
        """The time that the run has taken since its first step, in all its starts."""
        return self._earlier + time.monotonic() - self._start

    def _take(self, state: TrainState, batch: data.Batch) -> tuple[TrainState, Any]:
        micro = self.run.micro_batches(batch)
        if self.step.is_new(micro):
            self.watchdog.pet(hooks.SAVE_GRACE)
        start, compiled = time.monotonic(), self.step.seconds
        result = self.step(state, self.run.fixed, micro)
        if self.step.seconds > compiled:
            self.log.paused(time.monotonic() - start)
        return result

    def _before(self, state: TrainState) -> None:
        if self.evaluate is not None:
            self.evaluate.run(0, state)
        answers = samples.answers(self.run, self.run.view(state))
        if cluster.is_primary():
            outcome.keep_before(self.run.output, answers)
        for prompt, _, answer in answers:
            console.say(f"before training\n  prompt: {_short(prompt)}")
            console.say(f"  answer: {_short(answer)}")

    def _watch(self) -> watch.Watch:
        training = self.run.cfg.training
        return watch.Watch(
            self.run.output / METRICS,
            findings.Settings.of(self.run.cfg),
            self.progress.note,
            every=training.eval_steps or 10 * training.logging_steps,
        )

    def _position(self) -> dict[str, Any]:
        """What a checkpoint notes beside the state."""
        return {
            "tokens": self.log.tokens,
            "seconds": self.seconds,
            **self.stopping.position(),
        }

    def _evaluation_hook(self) -> hooks.Evaluate:
        return hooks.Evaluate(
            self._losses,
            self.file,
            self.log,
            self.progress,
            self.stopping,
            every=self.run.cfg.training.eval_steps,
            last=self.run.steps,
        )

    def kept(self, state: TrainState) -> TrainState:
        """The state whose parameters are the run's result: the last, or the best."""
        best = self.stopping.best_step
        if not self.run.cfg.training.keeps_best or best in (None, int(state.step)):
            return state
        found = self.checkpoints.restore_step(best, state)
        if found is None:
            console.warn("the parameters of the last step are written in its place")
        return found or state

    def _losses(self, state: TrainState) -> dict[str, float]:
        self.watchdog.pet(hooks.SAVE_GRACE)
        trainable = self.run.view(state)
        batches = map(self.run.on_devices, self.run.evaluation or ())
        sums = (self.eval_step(trainable, self.run.fixed, b) for b in batches)
        return evaluation.figures(self.run.objective, sums)


def _finish(
    run: Run, state: TrainState, kept: TrainState, stopping: Stopping, seconds: float
) -> None:
    """Writes what the state `kept` learned, plot and report; says what came of it."""
    trained = run.view(kept)
    result = results.write_trained(run, trained)
    answers, digest = samples.answers(run, trained), tree.digest(state)
    if not cluster.is_primary():
        return
    remarks = results.conclude(
        run, trained, answers, steps=int(state.step), seconds=seconds
    )
    for prompt, reference, answer in answers:
        console.say(f"after training\n  prompt: {_short(prompt)}")
        console.say(f"  answer: {_short(answer)}\n  reference: {_short(reference)}")
    _, evaluations = read_metrics(run.output / METRICS)
    if evaluations:
        losses = [line["eval_loss"] for line in evaluations]
        console.say(f"evaluation loss: {losses[0]:.4f} before, {losses[-1]:.4f} after")
    if run.cfg.training.keeps_best and stopping.best_step == int(kept.step):
        console.say(
            f"lowest evaluation loss: {stopping.best:.4f} after step "
            f"{int(kept.step)}, whose {result} is written"
        )
    for remark in remarks[:1]:
        console.say(remark)  # jaxpeft diagnose tells the others
    if int(state.skipped):
        console.warn(f"{int(state.skipped)} steps had no finite gradient: skipped")
    console.say(f"state after step {int(state.step)}: {digest}")
    made = ((result, result), ("plot", PLOT), ("metrics", METRICS))
    for name, path in (*made, ("report", REPORT)):
        console.say(f"{name + ':':<9}{run.output / path}")


def check_output(output: Path, resume: str) -> None:
    """Raises InputError where the directory does not allow what was asked for."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output_dir: {str(output)!r} is a file; name a directory")
    if not output.is_dir():
        return
    ours = {LOCK, *FILES}  # a range test there is no run
    found = [entry.name for entry in output.iterdir() if entry.name not in ours]
    if found and resume == "never":
        raise InputError(
            f"output_dir: {str(output)!r} is not empty, and --resume never starts over "
            "only in an empty directory; choose another one, or empty it yourself"
        )
    trained = [name for name in (ADAPTER, MODEL) if name in found]
    if trained and CHECKPOINTS not in found:
        raise InputError(
            f"output_dir: {str(output)!r} holds a trained {trained[0]} and no "
            "checkpoint to continue from; training would overwrite it: choose another "
            "directory"
        )


def _asked_to_stop(interrupt: Interrupt, step: int) -> str:
    """Why to stop after this step; empty if nobody asked."""
    if cluster.is_shared():
        return "SIGTERM" if cluster.preempted(step) else ""
    return interrupt.signal.name if interrupt.signal else ""


def _short(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
