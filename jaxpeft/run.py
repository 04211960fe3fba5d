"""A run before its first step: everything that it works with, and nothing written."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax

from jaxpeft import (
    adapters,
    console,
    data,
    hf,
    kernel,
    models,
    optim,
    session,
    sharding,
    summary,
    tree,
)
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.fused import make_fused_train_step
from jaxpeft.generation import generate
from jaxpeft.step import TrainState, TrainStep, make_train_step

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
        session.check_batches(cfg, self.mesh)
        fused = fused_backward(cfg)
        self.base = session.open_base(cfg.model)
        session.check_length(cfg, self.base)
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
        self.steps = cfg.training.max_steps or steps_in(
            epochs, self.batches.steps_per_epoch
        )
        sections = cfg.optimizer.model_dump(), cfg.schedule.model_dump()
        made = optim.make_parts(*sections, self.steps)
        if made.scale is not None and cfg.training.eval_steps is None:
            raise InputError(
                f"schedule.name: found {cfg.schedule.name!r}; it follows the "
                "evaluation loss, and nothing is evaluated: set data.eval and "
                "training.eval_steps"
            )
        self.schedule = made.rate
        self.leafwise = optim.leafwise(made, cfg.optimizer.name) if fused else None
        self.tx = made.optimizer if fused else made.chain()
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
        opt_state = sharding.of_state(
            self.mesh, state.opt_state, self.trainable, placed
        )
        where = jax.tree.map(lambda _: whole, state)
        where = where.replace(params=placed, opt_state=opt_state)
        return jax.device_put(state, where)

    def train_step(self) -> TrainStep:
        """The step that the configuration describes, to be jitted."""
        if self.leafwise is None:
            return make_train_step(self.base.cfg, self.tx)
        limit = self.cfg.optimizer.max_grad_norm
        return make_fused_train_step(self.base.cfg, self.leafwise, limit)

    def view(self, state: TrainState) -> Any:
        """The trainable parameters to evaluate and to keep: averaged ones, if any."""
        return optim.evaluation_params(state.opt_state, state.params)

    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must share with the one that was saved."""
        settings = self.cfg.model_dump()
        settings.pop("output_dir")
        settings.pop("mesh")
        settings.pop("data")  # its effect is the batches' own fingerprint
        for section, keys in NOT_IDENTITY.items():
            for key in keys:
                settings[section].pop(key)
        state = jax.eval_shape(self.tx.init, self.trainable)
        if self.evaluation is not None and optim.observes(state):
            # What is evaluated, and when, then decides what the steps compute.
            settings["training"]["eval_steps"] = self.cfg.training.eval_steps
            settings["evaluation"] = self.evaluation.fingerprint
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


def fused_backward(cfg: RunConfig) -> bool:
    """Whether layers are updated inside the backward pass.

    Raises InputError where that was asked for and cannot be.
    """
    wanted, full = cfg.training.fused_backward, cfg.adapter.method == session.FULL
    if wanted is None:
        wanted = full and cfg.optimizer.name in optim.FUSED
    if not wanted:
        return False
    parts = cfg.training.gradient_accumulation_steps
    problems = []
    if not full:
        problems.append(
            f"training.fused_backward: found true with adapter.method "
            f"{cfg.adapter.method!r}; an adapter's gradients are small: remove it, or "
            "use method full"
        )
    if parts > 1:
        problems.append(
            f"training.gradient_accumulation_steps: found {parts}; a backward pass "
            "that updates each layer as it goes has no gradients to add up: use 1 with "
            "a smaller batch_size, or training.fused_backward: false"
        )
    if problems:
        raise InputError(*problems)
    return True


def shardings(params: Any, cfg: models.ModelConfig, mesh: jax.sharding.Mesh) -> Any:
    """Where each leaf of `params` lies: adapters follow the weight that they adapt."""
    specs = dict(tree.walk(models.param_specs(cfg)))
    axes = {
        name: kernel.axes_of(value, specs[name].axes)
        for name, value in tree.walk(params)
    }
    return sharding.of(mesh, tree.replace(params, axes), params)


def steps_in(epochs: float, steps_per_epoch: float) -> int:
    """The steps that so many epochs take, a last one begun being taken whole.

    Rounded first: 0.7 epochs of 10 steps are 7, not the 8 of 7.000000000000001.
    """
    return max(1, math.ceil(round(epochs * steps_per_epoch, 6)))


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
    if run.leafwise is not None:
        console.say("each layer is updated inside the backward pass")
    elif run.cfg.optimizer.name in optim.FUSED:
        console.say(
            f"{run.cfg.optimizer.name} updates after the whole backward pass here; it "
            "saves memory with adapter.method full and no accumulation"
        )
    console.say(
        f"steps: {run.steps} of {run.cfg.training.batch_size} sequences, "
        f"{run.batches.epoch(run.steps):.2f} epochs"
    )
