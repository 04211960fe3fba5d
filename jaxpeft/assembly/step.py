"""The training step and the evaluation step: pure functions, jitted by the caller."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpeft import tree
from jaxpeft.assembly import scaling
from jaxpeft.devices import host_memory
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import Objective, sft

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
SFT = sft()


@struct.dataclass
class TrainState:
    """Everything that changes while training, and all that a checkpoint holds.

    Attributes:
        step: () int32, batches consumed.
        params: the trainable tree, `None` where frozen.
        opt_state: the optimizer's state.
        key: the run's random key; each step folds its number into it.
        skipped: () int32, steps so far whose gradient was not finite.
        skipped_in_row: () int32, how many of them were the last ones in a row; those
            that only a too large scale of the loss explains do not count.
        loss_scale: what the loss is multiplied by, in float16; else None.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array
    skipped: Array
    skipped_in_row: Array
    loss_scale: scaling.LossScale | None = None

    @classmethod
    def create(
        cls,
        params: Any,
        tx: optax.GradientTransformation,
        key: Array,
        scales_loss: bool = False,
    ) -> "TrainState":
        """The state before the first step.

        Args:
            params: the trainable tree, `None` where frozen.
            tx: the optimizer.
            key: the run's random key.
            scales_loss: whether its steps scale the loss, as float16 needs it.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            key=key,
            # Arrays of their own: a buffer cannot be donated twice.
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
            loss_scale=scaling.initial() if scales_loss else None,
        )


TrainStep = Callable[[TrainState, "Frozen", Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, "Frozen", Batch], Any]


class Frozen(NamedTuple):
    """The arrays that do not change while training.

    Attributes:
        params: the params tree, `None` where something trains.
        held: what the objective keeps besides, such as a reference.
        rates: (updates,) float32, the learning rate of each update, longer than the
            run; or () where the optimizer itself holds it.
    """

    params: Any
    held: Any = ()
    rates: Any = ()


def make_train_step(
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    objective: Objective = SFT,
) -> TrainStep:
    """The function (state, frozen, batch) -> (state, metrics).

    Batch leaves are (accumulation, batch, ...). The gradient is that of the summed
    losses of all micro-batches, divided once by their summed weights (with sft the
    number of supervised tokens): the same step at any accumulation. A step whose
    gradient is not finite changes nothing but the counters and, where the state has
    one, the scale of the loss.

    The metrics are `loss` (with sft the mean over supervised tokens, nats), `grad_norm`
    (global, before clipping), `update_norm` (global, of what is added to the
    parameters), `weight` (0 where the batch has nothing to learn: then the loss and its
    gradient are 0, and say nothing), `skipped_in_row`, with a scaled loss `loss_scale`
    (that the step was taken with), and those of the objective.

    Args:
        cfg: the model's hyperparameters.
        tx: the optimizer.
        objective: what the step minimises.
    """

    def loss_of(trainable: Any, frozen: Frozen, micro: Batch, key: Array) -> tuple:
        params = tree.combine(trainable, frozen.params)
        loss = objective.loss(params, frozen.held, micro, cfg, key)
        return loss.total, (loss.weight, dict(loss.metrics))

    plain = jax.value_and_grad(loss_of, has_aux=True)
    tx = optax.with_extra_args_support(tx)

    def train_step(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        batch = {**batch, **objective.of_step(batch)}
        step_key = jax.random.fold_in(state.key, state.step)
        scaled, parts = state.loss_scale, batch["tokens"].shape[0]
        gradient = plain
        if scaled is not None:
            gradient = scaling.gradient(loss_of, scaled, parts)

        # Traced once for its shapes and the loop; `inline` leaves no call behind.
        @functools.partial(jax.jit, inline=True)
        def sums_of(index: Array, micro: Batch) -> Any:
            key = jax.random.fold_in(step_key, index)
            (total, rest), grads = gradient(state.params, frozen, micro, key)
            return grads, total, *rest

        def accumulate(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, sums_of(*numbered)), None

        numbers = jnp.arange(parts)
        first = jax.tree.map(lambda x: x[0], (numbers, batch))
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums_of, *first))
        # Sum, then divide once: micro-batches hold unequal numbers of target tokens.
        (grads, total, weight, figures), _ = jax.lax.scan(
            accumulate, zeros, (numbers, batch)
        )
        divisor = jnp.where(weight > 0, weight, 1.0)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        new_state, metrics = _apply(state, tx, grads, total / divisor)
        means = {name: x / n for name, (x, n) in figures.items()}
        return new_state, {**metrics, "weight": weight, **means}

    return train_step


def _apply(
    state: TrainState,
    tx: optax.GradientTransformationExtraArgs,
    grads: Any,
    value: Array,
) -> tuple[TrainState, Metrics]:
    """One update, or none where the loss or the gradient is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(value)
    before = host_memory.brought(state.opt_state)
    updates, opt_state = tx.update(grads, before, state.params, value=value)
    params = optax.apply_updates(state.params, updates)

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    skipped = 1 - finite.astype(jnp.int32)
    in_row = (state.skipped_in_row + 1) * skipped
    scaled, scale = state.loss_scale, {}
    if scaled is not None:
        # That a scale turns out too large is part of the way to find it.
        usual = ~(finite | scaling.is_fault(scaled, value))
        in_row = jnp.where(usual, state.skipped_in_row, in_row)
        scale["loss_scale"] = scaled.scale
        scaled = scaling.after(scaled, finite)
    new_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(chosen, params, state.params),
        opt_state=host_memory.like(
            jax.tree.map(chosen, opt_state, before), state.opt_state
        ),
        key=state.key,
        skipped=state.skipped + skipped,
        skipped_in_row=in_row,
        loss_scale=scaled,
    )
    return new_state, {
        "loss": value,
        "grad_norm": norm,
        "update_norm": chosen(_norm(updates), jnp.zeros((), jnp.float32)),
        "skipped_in_row": in_row,
        **scale,
    }


def _norm(updates: Any) -> Array:
    return optax.tree.norm(jax.tree.map(lambda u: u.astype(jnp.float32), updates))


def make_loss(
    cfg: ModelConfig, objective: Objective = SFT
) -> Callable[[Any, Frozen, Array, Array, Batch], tuple[Array, Array]]:
    """The function (trainable, frozen, key, step, batch) -> (loss, weight).

    The two are those of the metrics of a training step (see `make_train_step`) with
    these parameters, the state's key and this number, also where something drops. No
    gradient is computed.

    Args:
        cfg: the model's hyperparameters.
        objective: what a step minimises.
    """

    def loss(
        trainable: Any, frozen: Frozen, key: Array, step: Array, batch: Batch
    ) -> tuple[Array, Array]:
        params = tree.combine(trainable, frozen.params)
        batch = {**batch, **objective.of_step(batch)}
        step_key = jax.random.fold_in(key, step)

        def sums_of(numbered: tuple[Array, Batch]) -> tuple[Array, Array]:
            index, micro = numbered
            own = jax.random.fold_in(step_key, index)
            found = objective.loss(params, frozen.held, micro, cfg, own)
            return found.total, found.weight

        numbers = jnp.arange(batch["tokens"].shape[0])
        totals, weights = jax.lax.map(sums_of, (numbers, batch))
        weight = weights.sum()
        return totals.sum() / jnp.where(weight > 0, weight, 1.0), weight

    return loss


def make_eval_step(cfg: ModelConfig, objective: Objective = SFT) -> EvalStep:
    """The function (trainable, frozen, batch) -> the objective's sums over the batch.

    Batch leaves are (batch, ...). Nothing drops, and nothing is kept but the sums.

    Args:
        cfg: the model's hyperparameters.
        objective: what is evaluated.
    """

    def eval_step(trainable: Any, frozen: Frozen, batch: Batch) -> Any:
        params = tree.combine(trainable, frozen.params)
        return objective.sums(params, frozen.held, batch, cfg)

    return eval_step
