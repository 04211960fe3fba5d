"""A run before its first step: everything that it works with, and nothing written."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import jax

from jaxpeft import config, data, hardware, hf, optim, tree
from jaxpeft.assembly import configuration, heads, precision, precomputed, updates
from jaxpeft.assembly.adapter import add_adapter, check_adapter
from jaxpeft.assembly.base import check_length, open_base
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.assembly.places import (
    check_batches,
    check_offload,
    check_together,
    make_places,
)
from jaxpeft.assembly.step import (
    EvalStep,
    Frozen,
    TrainState,
    TrainStep,
    make_eval_step,
)
from jaxpeft.config import RunConfig
from jaxpeft.config.training import LOSS
from jaxpeft.data import sources
from jaxpeft.devices import host_memory, sharding
from jaxpeft.errors import InputError


class Run:
    """Everything that a run works with, prepared without writing anything.

    Args:
        cfg: the configuration.
        like: a run of the same model and data, made with `shares`: its weights and
            examples serve this one too, which may differ in its seed, adapter and
            optimizer.
        shares: whether to remember the weights for such runs.

    Attributes:
        cfg: the configuration, its `model.dtype` and labels settled.
        output: the directory that the run writes into.
        mesh: its devices.
        parts: the micro-batches of a step (`gradient_accumulation_steps`).
        objective: what it minimises.
        base: the model and its tokenizer.
        batches: the training data.
        evaluation: the evaluation data, or None.
        steps: how many steps it takes.
        updates: the optimizer, the schedule and the step that uses them.
        tx: the optimizer's transformation.
        rates: the learning rates of its updates, as the step wants them.
        key: the random key of its steps.
        weights: the base's weights with `shares`, else None.
        of_base: true for the arrays that are the base's own; only of runs that share
            them.
        places: where its arrays lie on the mesh.
        held: what the objective keeps frozen besides the base.
        trainable: the parameters that train, None where one is frozen.
        frozen: the others, None where one trains.

    Raises:
        InputError: for whatever is wrong with the configuration, the model, the data or
            the adapter.
    """

    def __init__(self, cfg: RunConfig, like: "Run | None" = None, shares: bool = False):
        self.mesh = sharding.make_mesh(**cfg.mesh.model_dump())
        check_offload(cfg, self.mesh)
        cfg = precision.settled(cfg, hardware.of_mesh(self.mesh))
        cfg = configuration.settled(cfg)
        self.cfg, self.output = cfg, Path(cfg.output_dir)
        self.parts = cfg.training.gradient_accumulation_steps
        micro = cfg.training.batch_size // self.parts
        check_batches(cfg, self.mesh)
        self.objective = configuration.objective(cfg)
        updates.fused_backward(cfg)  # its complaints need neither model nor data
        self._open(micro) if like is None else self._take_over(like)
        check_adapter(self.base, cfg.adapter)
        epochs = cfg.training.num_epochs or 1.0
        self.steps = cfg.training.max_steps or steps_in(
            epochs, self.batches.steps_per_epoch
        )
        self._update_by(updates.updates(cfg, self.steps))
        if self.updates.follows_evaluation and cfg.training.eval_steps is None:
            raise InputError(
                f"schedule.name: found {cfg.schedule.name!r}; it follows the "
                "evaluation loss, and nothing is evaluated: set data.eval and "
                "training.eval_steps"
            )
        adapter_key, self.key = jax.random.split(jax.random.key(cfg.seed))
        weights: Any = self.base.load(self.mesh) if like is None else like.weights
        self.weights = weights if shares else None
        params = add_adapter(weights, cfg.adapter, self.base.cfg, adapter_key)
        if shares or like is not None:
            own = set(map(id, jax.tree.leaves(weights)))
            # True for the arrays that are the base's own, the same in all such runs.
            self.of_base = jax.tree.map(lambda x: id(x) in own, params)
        scales = self.base.scales_loss
        self.places = make_places(
            params, self.base.cfg, self.mesh, self.tx, scales, cfg.optimizer.offload
        )
        params = sharding.put(params, self.places.params)
        if like is None and (wanted := self.objective.precomputed) is not None:
            given = precomputed.Given(cfg, self.base, self.mesh, wanted, params)
            self.batches = given.of_training(self.batches)
            self.evaluation = given.of_evaluation(self.evaluation)
        self.held = sharding.with_numbers(self.objective.held(params), self.mesh)
        self.trainable, self.frozen = tree.partition(params, self.places.mask)

    def _open(self, micro: int) -> None:
        """Opens the model and reads the data."""
        cfg = self.cfg
        try:
            self.base = heads.fitted(open_base(cfg.model), self.objective.head)
            check_length(cfg, self.base)
        except InputError as error:
            raise InputError(*error.problems, *_missing(cfg)) from None
        vocabulary = self.base.cfg.vocab_size
        self.batches = self.objective.load_train(
            cfg.data,
            self.base.tokenizer,
            batch_size=cfg.training.batch_size,
            seed=cfg.seed,
            vocab_size=vocabulary,
        )
        check_together(cfg, self.mesh, self.batches.examples.together)
        self.evaluation = self.objective.load_eval(
            cfg.data,
            self.base.tokenizer,
            batch_size=cfg.data.eval_batch_size or micro,
            vocab_size=vocabulary,
        )
        own = sharding.own_rows
        self.batches.wanted = own(self.mesh, cfg.training.batch_size, self.parts)
        if self.evaluation is not None:
            self.evaluation.wanted = own(self.mesh, self.evaluation.batch_size)
        if self.evaluation is not None and cfg.training.eval_max_examples is not None:
            most = cfg.training.eval_max_examples
            self.evaluation = self.evaluation.at_most(most)

    def _take_over(self, like: "Run") -> None:
        self.base, self.evaluation = like.base, like.evaluation
        self.batches = like.batches
        if self.cfg.seed != like.cfg.seed:
            self.batches = like.batches.reseeded(self.cfg.seed)

    def at_rate(self, learning_rate: float) -> "Run":
        """The same run, its arrays shared, with another learning rate."""
        run = copy.copy(self)
        run.cfg = self.cfg.at_rate(learning_rate)
        run._update_by(updates.updates(run.cfg, run.steps))
        params = tree.combine(run.trainable, run.frozen)
        scales = run.base.scales_loss
        offloads = run.cfg.optimizer.offload
        run.places = make_places(
            params, run.base.cfg, run.mesh, run.tx, scales, offloads
        )
        return run

    def _update_by(self, ways: updates.Updates) -> None:
        self.updates, self.tx, self.rates = ways, ways.tx, self.rates_of(ways)

    def rates_of(self, ways: updates.Updates) -> Any:
        """What `Frozen.rates` is for a way to update, on the mesh."""
        whole = sharding.replicated(self.mesh)
        return sharding.put(ways.rates, jax.tree.map(lambda _: whole, ways.rates))

    def initial_state(self) -> TrainState:
        """The state before the first step, on the mesh; takes over the adapters."""

        def create(trainable: Any) -> TrainState:
            scales = self.base.scales_loss
            return TrainState.create(trainable, self.tx, self.key, scales)

        # Compiled: each device makes its own part, of which no other holds a copy.
        compiled = jax.jit(create, out_shardings=self.places.state, donate_argnums=0)
        return compiled(self.trainable)

    def view(self, state: TrainState) -> Any:
        """The trainable parameters to evaluate and to keep: averaged ones, if any.

        Args:
            state: of this run.
        """
        opt_state = host_memory.brought(state.opt_state)
        return optim.evaluation_params(opt_state, state.params)

    @property
    def fixed(self) -> Frozen:
        """The arrays that the steps are given and leave as they are."""
        return Frozen(self.frozen, self.held, self.rates)

    def train_step(self) -> TrainStep:
        """The run's step (state, fixed, batch) -> (state, metrics), to be jitted."""
        return self.updates.train_step(self.base.cfg, self.objective)

    def eval_step(self) -> EvalStep:
        """The step (trainable, fixed, batch) -> the objective's sums, to be jitted."""
        return make_eval_step(self.base.cfg, self.objective)

    def fingerprint(self) -> dict[str, str]:
        """The settings, data and base that a resumed run must share with the saved one.

        Returns:
            `config`, `data` and `base`, each as text to compare.
        """
        state = jax.eval_shape(self.tx.init, self.trainable)
        # What is evaluated, and when, then decides what the steps compute.
        steering = self.evaluation is not None and optim.observes(state)
        settings = config.identity(self.cfg, TABLES, steering)
        if self.evaluation is not None and steering:
            settings["evaluation"] = self.evaluation.fingerprint
        if self.cfg.training.figure != LOSS:
            # What answers were compared by: the best so far is one of those.
            settings["answers"] = self.cfg.evaluation.model_dump(mode="json")
        return {
            "config": json.dumps(settings, sort_keys=True),
            "data": self.batches.fingerprint,
            "base": hf.fingerprint(self.base.directory),
        }

    def on_devices(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A batch on the mesh; segments only where they say something."""
        return sharding.placed(batch, self.mesh, segments=self.cfg.data.packing)

    def micro_batches(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A training batch cut for accumulation, (parts, batch / parts, seq)."""
        cut = {n: x.reshape(self.parts, -1, *x.shape[1:]) for n, x in batch.items()}
        return self.on_devices(cut)


def _missing(cfg: RunConfig) -> list[str]:
    """What is wrong with the names of the data's files; none of them is opened."""
    problems = []
    for source in (*cfg.data.train, *(cfg.data.eval or ())):
        try:
            sources.found(sources.source_of(source))
        except InputError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def steps_in(epochs: float, steps_per_epoch: float) -> int:
    """The steps that so many epochs take, a last one begun being taken whole.

    The product is rounded first: 0.7 epochs of 10 steps are 7, not the 8 of
    7.000000000000001.

    Args:
        epochs: passes over the data.
        steps_per_epoch: of one pass, which need not be whole.
    """
    return max(1, math.ceil(round(epochs * steps_per_epoch, 6)))
