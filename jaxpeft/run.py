"""A training run from its configuration to the adapter: what `train` does."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from jaxpeft import (
    adapters,
    config,
    console,
    data,
    evaluation,
    hf,
    hooks,
    kernel,
    models,
    optim,
    plots,
    session,
    sharding,
    summary,
    tree,
)
from jaxpeft.checkpoint import Checkpoints
from jaxpeft.compiled import Compiled
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.generation import generate
from jaxpeft.interrupt import Interrupt, Watchdog
from jaxpeft.loop import fit
from jaxpeft.progress import Progress, make_progress
from jaxpeft.run_lock import LOCK, RunLock
from jaxpeft.session import ADAPTER, CONFIG, Base
from jaxpeft.step import TrainState, make_eval_step, make_train_step

CHECKPOINTS, METRICS, PLOT = "checkpoints", "metrics.jsonl", "loss.png"
SAMPLE_TOKENS = 96  # of an answer shown before and after training

# Changing these does not make it another run: they decide where, how often and how
# long it works, not what it computes.
NOT_IDENTITY = {
    "model": ("path", "remat"),
    "training": (
        "logging_steps",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "samples",
        "watchdog_seconds",
    ),
}


class Run:
    """Everything a run works with, prepared without writing anything.

    Raises InputError for whatever is wrong with the configuration, the model, the data
    or the adapter.
    """

    def __init__(self, cfg: RunConfig):
        self.cfg, self.output = cfg, Path(cfg.output_dir)
        self.mesh = sharding.make_mesh(**cfg.mesh.model_dump())
        self.parts = cfg.training.gradient_accumulation_steps
        micro = cfg.training.batch_size // self.parts
        sharding.check_batch(micro, self.mesh, "training.batch_size")
        self.base = session.open_base(cfg.model)
        check_length(cfg, self.base)
        session.check_adapter(self.base, cfg.adapter)
        vocabulary = self.base.cfg.vocab_size
        self.batches = data.load_train(
            cfg.data,
            self.base.tokenizer,
            batch_size=cfg.training.batch_size,
            seed=cfg.seed,
            vocab_size=vocabulary,
        )
        self.evaluation = data.load_eval(
            cfg.data,
            self.base.tokenizer,
            batch_size=cfg.data.eval_batch_size or micro,
            vocab_size=vocabulary,
        )
        epochs = cfg.training.num_epochs or 1.0
        self.steps = cfg.training.max_steps or math.ceil(
            epochs * self.batches.steps_per_epoch
        )
        optimizer, schedule = (s.model_dump() for s in (cfg.optimizer, cfg.schedule))
        self.tx = optim.make(optimizer, schedule, self.steps)
        self.schedule = optim.make_schedule(
            cfg.optimizer.learning_rate, schedule, self.steps
        )
        adapter_key, self.key = jax.random.split(jax.random.key(cfg.seed))
        params = self.base.load(self.mesh)
        params = session.add_adapter(params, cfg.adapter, self.base.cfg, adapter_key)
        self.shardings = shardings(params, self.base.cfg, self.mesh)
        params = jax.device_put(params, self.shardings)
        self.mask = adapters.trainable_mask(params)
        self.trainable, self.frozen = tree.partition(params, self.mask)

    def initial_state(self) -> TrainState:
        """The state before the first step, on the mesh; takes over the adapters."""
        state = TrainState.create(self.trainable, self.tx, self.key)
        whole = sharding.replicated(self.mesh)
        placed, _ = tree.partition(self.shardings, self.mask)
        opt_state = optax.tree.map_params(
            self.tx,
            lambda _, where: where,
            state.opt_state,
            placed,
            transform_non_params=lambda _: whole,
        )
        where = jax.tree.map(lambda _: whole, state)
        where = where.replace(params=placed, opt_state=opt_state)
        return jax.device_put(state, where)

    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must share with the one that was saved."""
        settings = self.cfg.model_dump()
        settings.pop("output_dir")
        settings.pop("mesh")
        settings.pop("data")  # its effect is the batches' own fingerprint
        for section, keys in NOT_IDENTITY.items():
            for key in keys:
                settings[section].pop(key)
        text = json.dumps(settings, sort_keys=True)
        return {
            "config": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "data": self.batches.fingerprint,
            "base": hf.fingerprint(self.base.directory),
        }

    def on_devices(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A batch on the mesh; segments only where they say something."""
        names = set(batch) - (set() if self.cfg.data.packing else {"segments"})
        return sharding.put_batch({name: batch[name] for name in names}, self.mesh)

    def micro_batches(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A training batch cut for accumulation, (parts, batch / parts, seq)."""
        cut = {n: x.reshape(self.parts, -1, x.shape[-1]) for n, x in batch.items()}
        return self.on_devices(cut)

    def answers(self, trainable: Any) -> list[tuple[str, str, str]]:
        """(prompt, reference, answer) for the first evaluation examples."""
        source = self.evaluation or self.batches
        tokenizer, room = self.base.tokenizer, self.base.cfg.max_position_embeddings
        shown = []
        for index in range(min(self.cfg.training.samples, len(source.examples))):
            prompt, reference = source.examples.question(index)
            if len(prompt) < 2 or len(prompt) + SAMPLE_TOKENS > room:
                continue
            answer = generate(
                tree.combine(trainable, self.frozen),
                self.base.cfg,
                [prompt],
                max_new_tokens=SAMPLE_TOKENS,
                stop=hf.stop_ids(self.base.directory, tokenizer),
            )[0]
            texts = (tokenizer.decode(t) for t in (reference, answer))
            prompt_text = tokenizer.decode(prompt, skip_special_tokens=True)
            shown.append((prompt_text, *texts))
        return shown


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
            _evaluator(run, progress),
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
    abort = hooks.abort_on_nonfinite(training.max_nonfinite_steps)
    try:
        if extra:
            progress.note(f"continuing after step {first}")
        else:
            _before(run, state, evaluate)
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


def _evaluator(run: Run, progress: Progress) -> Callable[[Any], dict[str, float]]:
    """The function from the trainable tree to the losses over the evaluation data."""
    step = Compiled(make_eval_step(run.base.cfg), "evaluation", progress.note)

    def evaluate(trainable: Any) -> dict[str, float]:
        batches = map(run.on_devices, run.evaluation or ())
        return evaluation.losses(step(trainable, run.frozen, b) for b in batches)

    return evaluate


def shardings(params: Any, cfg: models.ModelConfig, mesh: jax.sharding.Mesh) -> Any:
    """Where each leaf of `params` lies: adapters follow the weight that they adapt."""
    specs = dict(tree.walk(models.param_specs(cfg)))
    axes = {
        name: kernel.axes_of(value, specs[name].axes)
        for name, value in tree.walk(params)
    }
    return sharding.of(mesh, tree.replace(params, axes), params)


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


def check_length(cfg: RunConfig, base: Base) -> None:
    """Raises InputError where examples could be longer than the model's context."""
    context = base.cfg.max_position_embeddings
    if cfg.data.max_length > context:
        raise InputError(
            f"data.max_length: found {cfg.data.max_length}; the model's context is "
            f"{context} tokens (config.json: max_position_embeddings)"
        )


def describe(run: Run) -> None:
    """Says what is about to happen: parameters, memory, data, steps."""
    console.say(f"model: {run.cfg.model.path} ({run.base.cfg.model_type})")
    params = tree.combine(run.trainable, run.frozen)
    for line in summary.parameter_table(params, run.trainable):
        console.say(line)
    opt_state = jax.eval_shape(run.tx.init, run.trainable)
    console.say(summary.memory_line(run.frozen, run.trainable, opt_state))
    if run.base.cfg.activation_dtype:
        console.say(
            f"computing in float32: on a CPU that is faster than {run.base.dtype}, "
            "which only the stored weights have"
        )
    for line in summary.data_lines("training", run.batches.summary()):
        console.say(line)
    if run.evaluation is not None:
        for line in summary.data_lines("evaluation", run.evaluation.summary()):
            console.say(line)
    console.say(
        f"steps: {run.steps} of {run.cfg.training.batch_size} sequences, "
        f"{run.batches.epoch(run.steps):.2f} epochs"
    )


def _short(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
