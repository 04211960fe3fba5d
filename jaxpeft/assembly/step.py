"""The training step and the evaluation step: pure functions, jitted by the caller."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpeft import kernel, models, tree
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import token_loss as loss
from jaxpeft.objectives.token_loss import TokenSums

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
    """Everything that changes while training, and all that a checkpoint holds.

    step: () int32, batches consumed. params: the trainable tree, `None` where frozen.
    key: the run's random key; each step folds its number into it. skipped and
    skipped_in_row: () int32, steps whose gradient was not finite.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array
    skipped: Array
    skipped_in_row: Array

    @classmethod
    def create(
        cls, params: Any, tx: optax.GradientTransformation, key: Array
    ) -> "TrainState":
        """The state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            key=key,
            # Arrays of their own: a buffer cannot be donated twice.
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
        )


TrainStep = Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any, Batch], TokenSums]


def make_train_step(cfg: ModelConfig, tx: optax.GradientTransformation) -> TrainStep:
    """The function (state, frozen, batch) -> (state, metrics).

    Batch leaves are (accumulation, batch, seq). The gradient is that of the summed
    token losses of all micro-batches, divided once by the number of supervised
    tokens: the same step at any accumulation. A step whose gradient is not finite
    changes nothing but the counters.

    Metrics: `loss` (mean over supervised tokens, nats), `grad_norm` (global, before
    clipping), `update_norm` (global, of what is added to the parameters),
    `supervised` (tokens), `skipped_in_row`.
    """

    def token_loss(
        trainable: Any, frozen: Any, micro: Batch, key: Array
    ) -> tuple[Array, Array]:
        params = kernel.with_dropout(tree.combine(trainable, frozen), key)
        hidden = models.hidden_states(
            params,
            micro["tokens"],
            cfg,
            positions=micro["positions"],
            segments=micro.get("segments"),
        )
        head, mask = models.head(params, cfg), micro["supervised"]
        nll = loss.nll_sum(hidden, head, micro["targets"], mask)
        return nll, jnp.sum(mask).astype(jnp.float32)

    gradient = jax.value_and_grad(token_loss, has_aux=True)
    tx = optax.with_extra_args_support(tx)

    def train_step(
        state: TrainState, frozen: Any, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(state.key, state.step)

        def accumulate(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            index, micro = numbered
            key = jax.random.fold_in(step_key, index)
            (nll, count), grads = gradient(state.params, frozen, micro, key)
            return jax.tree.map(jnp.add, total, (grads, nll, count)), None

        zero = jnp.zeros((), jnp.float32)
        start = (jax.tree.map(jnp.zeros_like, state.params), zero, zero)
        parts = batch["tokens"].shape[0]
        # Sum, then divide once: micro-batches hold unequal numbers of target tokens.
        (grads, nll, count), _ = jax.lax.scan(
            accumulate, start, (jnp.arange(parts), batch)
        )
        count = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        return _apply(state, tx, grads, nll / count, count)

    return train_step


def _apply(
    state: TrainState,
    tx: optax.GradientTransformationExtraArgs,
    grads: Any,
    value: Array,
    count: Array,
) -> tuple[TrainState, Metrics]:
    """One update, or none where the loss or the gradient is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(value)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=value)
    params = optax.apply_updates(state.params, updates)

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    skipped = 1 - finite.astype(jnp.int32)
    in_row = (state.skipped_in_row + 1) * skipped
    new_state = TrainState(
        step=state.step + 1,
        params=jax.tree.map(chosen, params, state.params),
        opt_state=jax.tree.map(chosen, opt_state, state.opt_state),
        key=state.key,
        skipped=state.skipped + skipped,
        skipped_in_row=in_row,
    )
    return new_state, {
        "loss": value,
        "grad_norm": norm,
        "update_norm": chosen(_norm(updates), jnp.zeros((), jnp.float32)),
        "supervised": count,
        "skipped_in_row": in_row,
    }


def _norm(updates: Any) -> Array:
    return optax.tree.norm(jax.tree.map(lambda u: u.astype(jnp.float32), updates))


def make_eval_step(cfg: ModelConfig) -> EvalStep:
    """The function (trainable, frozen, batch) -> sums over the supervised tokens.

    Batch leaves are (batch, seq). Nothing drops, nothing is kept but three sums.
    """

    def eval_step(trainable: Any, frozen: Any, batch: Batch) -> TokenSums:
        params = tree.combine(trainable, frozen)
        hidden = models.hidden_states(
            params,
            batch["tokens"],
            cfg,
            positions=batch["positions"],
            segments=batch.get("segments"),
        )
        head = models.head(params, cfg)
        return loss.token_sums(hidden, head, batch["targets"], batch["supervised"])

    return eval_step
