"""The course of a run, or of several at once: open, restore, step, evaluate, save.

A run alone is the case of one: `train` is its beginning and its end, and a sweep brings
another program and other words.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpeft import console, tree
from jaxpeft.assembly.summary import describe
from jaxpeft.config import RunConfig
from jaxpeft.devices import cluster, determinism, termination
from jaxpeft.diagnose import findings
from jaxpeft.errors import NumericsError
from jaxpeft.generate import scoring
from jaxpeft.generate.scoring import Scoring
from jaxpeft.lr_find import auto
from jaxpeft.rundir import sinks
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.rundir.files import CHECKPOINTS, METRICS, PLOT, REPORT
from jaxpeft.rundir.lock import RunLock
from jaxpeft.rundir.metrics import read_metrics
from jaxpeft.train import hooks, output, results, samples, steering
from jaxpeft.train.evaluating import Evaluate
from jaxpeft.train.loop import Moment, fit
from jaxpeft.train.program import Alone, Program
from jaxpeft.train.progress import Progress, make_progress
from jaxpeft.train.standing import (
    DONE,
    EVALUATION_DUE,
    Standing,
    active,
    repeated,
    stand_all,
)
from jaxpeft.train.watch import Watch
from jaxpeft.train.watchdog import Watchdog


class Guards(NamedTuple):
    """The guards of a course, which keep it safe.

    Attributes:
        checkpoints: what it saves.
        watchdog: ends it when it hangs.
        grace: seconds from SIGTERM to its end.
    """

    checkpoints: Checkpoints
    watchdog: Watchdog
    grace: int


class Ended(NamedTuple):
    """The end of a course.

    Attributes:
        standings: how each run stands.
        seconds: since its first step, in all starts.
    """

    standings: list[Standing]
    seconds: float


def train(
    cfg: RunConfig,
    *,
    resume: str = "auto",
    metrics: Sequence[str] = (),
    until: int | None = None,
) -> None:
    """Trains as `cfg` says, continuing where the output directory holds a checkpoint.

    Args:
        cfg: the configuration.
        resume: "auto"; "never", which demands an empty or absent directory; "anyway",
            which continues although configuration, data or base have changed.
        metrics: those that the command line names, see `metrics.made`.
        until: the step after which it pauses: it saves, and writes no adapter yet.
            None: it goes to its end.

    Raises:
        InputError: where what was given is wrong.
        NumericsError: where the loss or the gradient stays not finite.
        Preempted: where it was asked to stop, and has saved.
    """
    _check(cfg, resume)
    resumes = any((Path(cfg.output_dir) / CHECKPOINTS).glob("[0-9]*"))
    # Before any of them can write there.
    cluster.wait_for_all("output_dir checked")
    run, chosen = auto.open_run(cfg, resumes)
    fingerprint = run.fingerprint()
    cluster.require_same(fingerprint, "give all the same files")
    describe(run)
    scores = scoring.of_run(run, metrics)
    steering.check(run, scores)
    if scores is not None:
        console.say(f"evaluations also score {scores.summary()}")

    def begin(first: int) -> None:
        lock.begin()
        results.begin(run, first, fingerprint)
        if chosen is not None:
            chosen.write(run.output, str(run.output))

    primary = cluster.is_primary()
    lock = RunLock(run.output)
    with (
        lock if primary else contextlib.nullcontext(),
        guarded(run.output / CHECKPOINTS, run.cfg, fingerprint) as guards,
    ):
        guards.watchdog.pet(hooks.SAVE_GRACE)
        program = Alone(run)
        ended = follow(
            program,
            guards,
            make_progress,
            begin=begin if primary else lambda first: None,
            give_up=_raise,
            anyway=resume == "anyway",
            scoring=scores,
            until=until,
        )
    if not ended.standings[0].runs or until is None:
        _finish(program, ended)


@contextlib.contextmanager
def guarded(
    folder: Path,
    cfg: RunConfig,
    fingerprint: dict[str, str],
    save_total_limit: int | None = None,
) -> Iterator[Guards]:
    """The guards of a course whose checkpoints stand in `folder`.

    Args:
        folder: of the checkpoints.
        cfg: says how many are kept, and how long a hang may last.
        fingerprint: what a continued course must share with the one that was saved.
        save_total_limit: how many checkpoints are kept, in place of the
            configuration's.
    """
    training = cfg.training
    limit = save_total_limit or training.save_total_limit
    with (
        Checkpoints(
            folder, save_total_limit=limit, fingerprint=fingerprint
        ) as checkpoints,
        termination.listening(cluster if cluster.is_shared() else None),
        Watchdog(training.watchdog_seconds) as watchdog,
    ):
        yield Guards(checkpoints, watchdog, training.termination_grace_seconds)


def follow(
    program: Program,
    guards: Guards,
    show: Callable[[int, int], Progress],
    *,
    begin: Callable[[int], None],
    give_up: Callable[[Standing, str], None],
    anyway: bool = False,
    scoring: Scoring | None = None,
    until: int | None = None,
    start: Callable[[], tuple[Any, dict[str, Any]] | None] = lambda: None,
) -> Ended:
    """Takes the steps of a program's runs, from the first, or the one to continue from.

    Args:
        program: their steps, before the first one.
        guards: see `guarded`.
        show: (steps, steps taken) -> the display.
        begin: called with the steps taken before anything else is written.
        give_up: called with a run whose steps are not finite, and what was seen.
        anyway: continue although the fingerprint differs.
        scoring: asks for answers at evaluations and scores them, or None.
        until: the step after which it pauses, to be gone on with; None: the last.
        start: asked where there is no checkpoint yet, for what the program saves and
            the note of a checkpoint to go on from; None: it begins.

    Returns:
        How each run stands, and the seconds that it took. `program.trained` is then
            what each has trained.
    """
    checkpoints, watchdog, grace = guards
    restored = checkpoints.restore(program.saved, check_fingerprint=not anyway)
    program.saved, note = restored or start() or (program.saved, {})
    first, last = program.done, until or program.runs[0].steps
    begin(first)
    known = repeated(program.runs, note, first)
    due = bool(note.get(EVALUATION_DUE)) and known is None
    standings = stand_all(program.runs, note, first, due)
    display = show(last, first)
    program.begin(display.note)
    log, evaluate, save = _hooks(program, standings, display, guards, note, scoring)
    try:
        if note:
            again = evaluate if due else []
            for hook in evaluate if known else ():
                hook.heed(first, known or ())
            goes_on = bool(active(standings).any())
            continues = goes_on and first < last or bool(again)
            display.note(_restored(first, continues, goes_on and until is not None))
            for hook in again:  # it was interrupted
                hook(Moment(first, {}, ()))
        else:
            _before_first(program, evaluate, watchdog)
        limit = program.runs[0].cfg.training.max_nonfinite_steps
        abort = hooks.Abort(standings, give_up, limit=limit, last=last)
        log.restart()
        with termination.holding(grace):
            try:
                fit(
                    program,
                    standings,
                    [abort, log, *evaluate, *_watch(standings, display), save],
                    last=last,
                    before_compiling=lambda: watchdog.pet(hooks.SAVE_GRACE),
                )
            except termination.Asked as asked:
                save.stop(asked, first, any(hook.is_due for hook in evaluate))
            if until is not None and program.done > first:
                save.pause()
            checkpoints.wait()
    finally:
        display.close()
        for standing in standings:
            standing.file.close()
    if until is None or not active(standings).any():
        _settle(program, standings, checkpoints)
    return Ended(standings, log.seconds)


def _before_first(
    program: Program, evaluate: Sequence[Evaluate], watchdog: Watchdog
) -> None:
    """What is measured and answered before anything is learned."""
    if program.runs[0].cfg.training.eval_on_start:
        for hook in evaluate:
            hook.run(0)
    samples.before(program, watchdog)


def _restored(first: int, continues: bool, pauses: bool) -> str:
    """What is said of a start after step `first`."""
    if continues:
        return f"continuing after step {first}"
    if pauses:
        return f"paused after step {first}"
    return f"finished after step {first}: nothing is left to train"


def _hooks(
    program: Program,
    standings: Sequence[Standing],
    display: Progress,
    guards: Guards,
    note: Mapping[str, Any],
    scoring: Scoring | None,
) -> tuple[hooks.Log, list[Evaluate], hooks.Save]:
    """The log, the evaluation if there is something to evaluate on, and the saves."""
    checkpoints, watchdog, _ = guards
    training, last = program.runs[0].cfg.training, program.runs[0].steps
    log = hooks.Log(
        *(program, standings, display),
        every=training.logging_steps,
        last=last,
        seconds=note.get("seconds", 0.0),
    )
    evaluate = Evaluate(
        *(program, standings, log, display, watchdog),
        every=training.eval_steps,
        last=last,
        scoring=scoring,
    )
    save = hooks.Save(
        *(program, standings, log, checkpoints, watchdog),
        every=training.save_steps,
        last=last,
        keeps_best=training.keeps_best,
    )
    evaluates = program.runs[0].evaluation is not None
    return log, [evaluate] if evaluates else [], save


def _settle(
    program: Program, standings: Sequence[Standing], checkpoints: Checkpoints
) -> None:
    """After the last step: how each run ended, and which parameters are its result."""
    for one in standings:
        one.status = DONE if one.runs else one.status
    keeps = program.runs[0].cfg.training.keeps_best
    best = [one.stopping.best_step if keeps else None for one in standings]
    program.settle(best, checkpoints)


def _watch(standings: Sequence[Standing], display: Progress) -> list[Watch]:
    """The hook that says what is new in the findings of a run alone, or none."""
    if len(standings) > 1 or not cluster.is_primary():
        return []
    cfg = standings[0].run.cfg
    training = cfg.training
    return [
        Watch(
            standings[0].run.output / METRICS,
            findings.Settings.of(cfg),
            display.note,
            every=training.eval_steps or 10 * training.logging_steps,
        )
    ]


def _raise(standing: Standing, seen: str) -> None:
    raise NumericsError(seen)


def _finish(program: Alone, ended: Ended) -> None:
    """Writes what the run learned, plot and report; says what came of it."""
    run, state = program.run, program.saved
    trained, stopping = program.trained(0), ended.standings[0].stopping
    result = results.write_trained(run, trained)
    answers, digest = samples.answers(run, trained), tree.digest(state)
    if not cluster.is_primary():
        return
    steps = int(state.step)
    remarks = results.conclude(
        run, trained, answers, steps=steps, seconds=ended.seconds
    )
    samples.say_after(answers)
    _, evaluations = read_metrics(run.output / METRICS)
    if evaluations:
        losses = [line["eval_loss"] for line in evaluations]
        before = f"{losses[0]:.4f} before, " if evaluations[0]["step"] == 0 else ""
        console.say(f"evaluation loss: {before}{losses[-1]:.4f} after")
    written = steps if program.kept is None else int(program.kept.step)
    if run.cfg.training.keeps_best and stopping.best_step == written:
        best = "highest" if stopping.greater else "lowest"
        console.say(
            f"{best} evaluation {stopping.name}: {stopping.best:.4f} after step "
            f"{written}, whose {result} is written"
        )
    for remark in remarks[:1]:
        console.say(remark)  # jaxpeft diagnose tells the others
    if int(state.skipped):
        console.warn(f"{int(state.skipped)} steps had no finite gradient: skipped")
    console.say(f"state after step {steps}: {digest}")
    made = ((result, result), ("plot", PLOT), ("metrics", METRICS))
    for name, path in (*made, ("report", REPORT)):
        console.say(f"{name + ':':<9}{run.output / path}")


def _check(cfg: RunConfig, resume: str) -> None:
    """Checks what can be before anything is opened; the same in every process."""
    if cfg.deterministic:
        determinism.require()
    cluster.require_same(
        dict(tree.walk(cfg.model_dump(mode="json"))),
        "start all with the same configuration",
    )
    sinks.require(cfg.training.report_to)
    output.check(Path(cfg.output_dir), resume)
