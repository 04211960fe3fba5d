"""How a run updates what trains: optimizer, schedule and the step that uses them."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import adapters, objectives, optim
from jaxpeft.assembly import adapter, configuration
from jaxpeft.assembly.fused import make_fused_train_step
from jaxpeft.assembly.step import (
    Batch,
    Frozen,
    Metrics,
    TrainState,
    TrainStep,
    make_train_step,
)
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import Objective
from jaxpeft.optim.rule import Leafwise

# Tables of rates have a power of two of entries, and no fewer than these (64 KiB), so
# that range tests and runs of other lengths are the same program.
SHORTEST_TABLE = 1 << 14


@dataclass(frozen=True)
class Updates:
    """The way in which a run updates what trains.

    Attributes:
        parts: what the configuration says of the optimizer.
        tx: the transformation that makes and advances the optimizer's state.
        leafwise: the same for one tensor at a time, where layers are updated inside the
            backward pass; else None.
        rate: the learning rate of each step.
        max_grad_norm: the global norm that gradients are clipped to, or None.
        follows_evaluation: whether the schedule wants evaluation losses.
        steps: how many the run takes.
    """

    parts: optim.Parts
    tx: optax.GradientTransformation
    leafwise: Leafwise | None
    rate: optax.Schedule
    max_grad_norm: float | None
    follows_evaluation: bool
    steps: int

    @functools.cached_property
    def rates(self) -> np.ndarray | tuple[()]:
        """What `Frozen.rates` has to be for the step of `train_step`.

        As an argument of the step the rates are no part of its program, which a range
        test, a run and its resumption, and a run at another rate then share.
        """
        rule = self.parts.leafwise
        if rule is None:
            return ()
        size = max(SHORTEST_TABLE, 1 << self.steps.bit_length())
        counts = jnp.minimum(jnp.arange(size), self.steps)
        rate = rule.learning_rate
        if not callable(rate):
            return np.full(size, rate, np.float32)
        return np.asarray(jax.jit(jax.vmap(rate))(counts), np.float32)

    def train_step(self, model: ModelConfig, objective: Objective) -> TrainStep:
        """The step (state, frozen, batch) -> (state, metrics), to be jitted.

        Args:
            model: the hyperparameters of the base.
            objective: what the step minimises.
        """
        rule = self.parts.leafwise
        if rule is None:
            return make_train_step(model, self.tx, objective)

        def train_step(
            state: TrainState, frozen: Frozen, batch: Batch
        ) -> tuple[TrainState, Metrics]:
            tuned = rule.tuned(lambda count: frozen.rates[count], rule.weight_decay)
            take = self._tuned_step(tuned, model, objective)
            return take(state, frozen, batch)

        return train_step

    def _tuned_step(self, rule: Leafwise, model: Any, objective: Any) -> TrainStep:
        if self.leafwise is not None:
            return make_fused_train_step(model, rule, self.max_grad_norm, objective)
        parts = self.parts._replace(optimizer=rule.transformation())
        return make_train_step(model, parts.chain(), objective)


def updates(cfg: RunConfig, steps: int, rate: optax.Schedule | None = None) -> Updates:
    """The optimizer, schedule and step that a configuration names.

    Args:
        cfg: the configuration.
        steps: how many the run takes.
        rate: the learning rate of each step, in place of the schedule's.

    Raises:
        InputError: where optimizer, schedule and method do not go together.
    """
    _check_factors(cfg)
    fused = fused_backward(cfg)
    optimizer = {**cfg.optimizer.model_dump(), "learning_rate": learning_rate(cfg)}
    parts = optim.make_parts(optimizer, _schedule(cfg), steps, rate)
    return Updates(
        parts=parts,
        tx=parts.optimizer if fused else parts.chain(),
        leafwise=optim.leafwise(parts, cfg.optimizer.name) if fused else None,
        rate=parts.rate,
        max_grad_norm=cfg.optimizer.max_grad_norm,
        follows_evaluation=parts.scale is not None,
        steps=steps,
    )


def _schedule(cfg: RunConfig) -> dict[str, Any]:
    """The schedule's keys: one that follows evaluations knows which way is better."""
    keys = cfg.schedule.model_dump()
    training, wants = cfg.training, "mode" in optim.SCHEDULES.keys(cfg.schedule.name)
    if not wants or not training.prefers_greater:
        return keys
    if keys.get("mode", "max") != "max":
        raise InputError(
            f"schedule.mode: found {keys['mode']!r} beside "
            f"training.metric_for_best_model {training.metric_for_best_model!r}, of "
            "which the higher is the better one; leave it out"
        )
    return {**keys, "mode": "max"}


def _check_factors(cfg: RunConfig) -> None:
    """Raises InputError for an optimizer made for LoRA where no LoRA trains."""
    name, method = cfg.optimizer.name, cfg.adapter.method
    if optim.OPTIMIZERS[name].factors and not adapters.TABLE[method].factors:
        raise InputError(
            f"optimizer.name: found {name!r} with adapter.method {method!r}; it "
            "updates the a and b of a LoRA together, and there are none: use method "
            "lora, or another optimizer, such as adamw"
        )


def learning_rate(cfg: RunConfig) -> float:
    """The schedule's highest rate, at the batch size of the run."""
    training, given = cfg.training, cfg.optimizer.learning_rate
    reference = training.lr_reference_batch_size
    if reference is None:
        return given
    rule, size = training.lr_scaling, training.batch_size
    return optim.scaled_rate(given, rule, size, reference)


def scaling_line(cfg: RunConfig) -> str | None:
    """A line on how the batch size changed the learning rate; None if it did not."""
    training, given = cfg.training, cfg.optimizer.learning_rate
    if training.lr_scaling == "none":
        return None
    ratio = f"{training.batch_size} / {training.lr_reference_batch_size}"
    factor = f"sqrt({ratio})" if training.lr_scaling == "sqrt" else ratio
    return f"learning rate: {given:.4g} x {factor} = {learning_rate(cfg):.4g}"


def rate_warning(cfg: RunConfig, rate: optax.Schedule, steps: int) -> str | None:
    """A line about a rate by which hardly anything is learned; None for all others.

    It is 0 at every step, or a small factor on what an optimizer finds by itself.

    Args:
        cfg: the configuration.
        rate: the learning rate of each step, from 0.
        steps: how many the run takes.
    """
    row, given = optim.OPTIMIZERS[cfg.optimizer.name], learning_rate(cfg)
    usual = row.defaults.get("learning_rate", 1.0)
    if row.finds_rate and 0 < given < usual / 10:
        return (
            f"optimizer.learning_rate: {given:g} multiplies the rate that "
            f"{cfg.optimizer.name} finds by itself; leave it out, for {usual:g}"
        )
    if np.asarray(rate(jnp.int32(steps - 1))) != 0:
        return None  # the usual case, without a look at all of them
    if np.asarray(jax.vmap(rate)(jnp.arange(steps))).any():
        return None
    if given:
        remedy = (
            f"the warmup is all of the {steps} steps: set schedule.warmup_steps=0, or "
            "train longer"
        )
    else:
        remedy = "set optimizer.learning_rate, whose default is 2e-4"
    return f"the learning rate is 0 at every step, so that nothing is learned; {remedy}"


def fused_backward(cfg: RunConfig) -> bool:
    """Whether layers are updated inside the backward pass.

    Raises:
        InputError: where that was asked for and cannot be.
    """
    wanted, full = cfg.training.fused_backward, adapter.trains_all(cfg.adapter)
    of_hidden = configuration.objective(cfg).from_hidden is not None
    if wanted is None:
        wanted = full and of_hidden and optim.OPTIMIZERS[cfg.optimizer.name].fused
    if not wanted:
        return False
    parts = cfg.training.gradient_accumulation_steps
    problems = []
    if adapter.gives_a_model(cfg.adapter) and not full:
        problems.append(
            "training.fused_backward: found true where a part of the model trains; it "
            "goes down through layers that all do: remove it, or let everything train"
        )
    elif not full:
        problems.append(
            f"training.fused_backward: found true with adapter.method "
            f"{cfg.adapter.method!r}; an adapter's gradients are small: remove it, or "
            "use method full"
        )
    if not of_hidden:
        way = ", or set objective.precompute_reference: true"
        problems.append(
            "training.fused_backward: found true with objective.name "
            f"{cfg.objective.name!r}, which needs more than one pass through the "
            f"model: remove it{way * _one_pass_is_enough(cfg)}"
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


def _one_pass_is_enough(cfg: RunConfig) -> bool:
    """Whether a step needs one pass alone once its reference is computed before."""
    key, section = "precompute_reference", cfg.objective
    if key not in objectives.OBJECTIVES.parameters(section.choice):
        return False
    section = section.model_copy(update={key: True})
    try:
        made = configuration.objective(cfg.model_copy(update={"objective": section}))
    except InputError:  # there is no reference, or nothing can be computed before
        return False
    return made.from_hidden is not None
