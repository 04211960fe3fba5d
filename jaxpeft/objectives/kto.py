"""Kahneman-Tversky optimisation: single answers that are wanted or not."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32

from jaxpeft import kernel
from jaxpeft.data.preference import LABELLED
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import answers, ranges
from jaxpeft.objectives import reference as references
from jaxpeft.objectives.objective import (
    REFERENCE,
    Loss,
    Micro,
    Objective,
    row_shapes,
)
from jaxpeft.objectives.reference import Reference, Wanted, logps


class Scores(NamedTuple):
    """What a micro-batch of labelled answers comes to.

    Attributes:
        losses: of each answer.
        rewards: beta times the log-ratio of each answer.
        logps: its summed log-probability.
        kl: how far the model is from the reference, 0 or more.
        wanted: whether it is an answer that is wanted.
        other: whether it is one that is not; neither is padding.
    """

    losses: Float32[Array, " rows"]
    rewards: Float32[Array, " rows"]
    logps: Float32[Array, " rows"]
    kl: Float32[Array, ""]
    wanted: Bool[Array, " rows"]
    other: Bool[Array, " rows"]


def kto(
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reference: Wanted = "auto",
    precompute_reference: bool = False,
    continues: bool = False,
    base_trains: bool = False,
) -> Objective:
    """Kahneman-Tversky optimisation (Ethayarajh et al., 2024): answers with a label.

    With h = log p/q of an answer, p of the model, q of the reference, and z the mean of
    log p/q over prompts with the answer of another one, 0 at least and without a
    gradient:

        wanted       desirable_weight (1 - sigmoid(beta (h - z)))
        not wanted   undesirable_weight (1 - sigmoid(beta (z - h)))

    z is that of each micro-batch, whose answers go to the prompts next to theirs.

    Args:
        beta: how much a distance from the reference costs.
        desirable_weight: of answers that are wanted.
        undesirable_weight: of the others.
        reference: see `dpo`.
        precompute_reference: see `dpo`; z, which each batch mixes anew, is still
            computed in the step.
        continues: whether an adapter is trained further.
        base_trains: whether the weights of the base train.

    Raises:
        InputError: a number is out of its range, or there is no such reference.
    """
    ranges.positive(
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    kind = references.chosen(reference, continues=continues, base_trains=base_trains)
    before = references.before_training(kind, precompute_reference)
    columns = dict(LABELLED.columns)
    if before is not None:
        columns[REFERENCE] = "float32"
    numbers = {
        "beta": np.float32(beta),
        "desirable_weight": np.float32(desirable_weight),
        "undesirable_weight": np.float32(undesirable_weight),
    }

    def loss(
        params: Any, held: Any, micro: Micro, model: ModelConfig, key: Array
    ) -> Loss:
        against, own_kl = _without_gradient(kind, params, held, micro, model)
        own = logps(kernel.with_dropout(params, key), micro, model)
        return _summed(_scores(own, against, own_kl, micro, held["numbers"]))

    def sums(params: Any, held: Any, batch: Micro, model: ModelConfig) -> Any:
        against, kl = _without_gradient(kind, params, held, batch, model)
        own = logps(params, batch, model)
        return _totals(_scores(own, against, kl, batch, held["numbers"]))

    def keep(params: Any) -> Any:
        return {"numbers": numbers, "reference": references.held(kind, params)}

    load_train, load_eval = answers.loads(LABELLED, answers.both_labels)
    return Objective(
        loss=loss,
        sums=sums,
        report=report,
        in_words=in_words,
        precomputed=before,
        held=keep,
        load_train=load_train,
        load_eval=load_eval,
        least_rows=2,
        batch_shapes=functools.partial(row_shapes, columns=columns),
    )


def _without_gradient(
    kind: Reference, params: Any, held: Any, micro: Micro, model: ModelConfig
) -> tuple[Array, Array]:
    """The reference's log-probabilities, (rows,), and z of the micro-batch, ()."""
    real = jnp.any(micro["supervised"], axis=1)
    others = mismatched(micro)
    fixed = jax.lax.stop_gradient(params)
    of_model = logps(fixed, others, model)
    if kind == "none":
        against, of_reference = jnp.zeros_like(of_model), jnp.zeros_like(of_model)
    else:
        own = references.model(kind, params, held["reference"])
        if REFERENCE in micro:
            against, of_reference = micro[REFERENCE], logps(own, others, model)
        else:
            both = {n: jnp.concatenate([micro[n], others[n]]) for n in others}
            against, of_reference = jnp.split(logps(own, both, model), 2)
    apart = jnp.sum(jnp.where(real, of_model - of_reference, 0.0))
    return against, jnp.maximum(apart / jnp.maximum(jnp.sum(real), 1), 0.0)


def mismatched(micro: Micro) -> dict[str, Array]:
    """The prompt of each row with the answer of the row before it.

    The first row gets the answer of the last one that is no padding. What does not fit
    into a row's length is cut off.

    Args:
        micro: `tokens` and `supervised`, (rows, seq) each, padding rows last.

    Returns:
        `tokens`, `targets`, `supervised` and `positions`, (rows, seq) each.

    Raises:
        InputError: there is one row.
    """
    tokens, answer = micro["tokens"], micro["supervised"]
    rows, seq = tokens.shape
    if rows < 2:
        raise InputError(
            "training.batch_size: a micro-batch has 1 row; kto weighs answers against "
            "those of other prompts beside them: give batch_size 2 for each of the "
            "gradient_accumulation_steps, or more"
        )
    real = jnp.any(answer, axis=1)
    number = jnp.arange(rows)
    before = jnp.where(number == 0, jnp.maximum(jnp.sum(real) - 1, 0), number - 1)
    # A supervised place predicts the next: the answer begins after the first of them.
    begins = jnp.argmax(answer, axis=1)
    ends = seq - jnp.argmax(answer[:, ::-1], axis=1)  # one past the last of them
    places = jnp.arange(seq)
    # The place in the other row that a place after the prompt is filled from.
    source = places - begins[:, None] + begins[before][:, None]
    inside = jnp.clip(source, 0, seq - 1)
    follows = (places >= begins[:, None]) & (places < seq - 1)
    goes_on = follows & (source < ends[before][:, None]) & real[:, None]

    def taken(x: Array) -> Array:
        return jnp.take_along_axis(x[before], inside, axis=1)

    # Of the last prompt token on, what is predicted is the other answer's.
    targets = jnp.where(follows, taken(micro["targets"]), micro["targets"])
    later = places > begins[:, None]
    stays = later & (source <= ends[before][:, None]) & real[:, None]
    return {
        "tokens": jnp.where(later, taken(tokens), tokens),
        "targets": targets,
        "supervised": goes_on & taken(answer),
        "positions": jnp.where(~later | stays, places, 0).astype(jnp.int32),
    }


def _scores(
    logps: Array, against: Array, kl: Array, micro: Micro, numbers: Mapping[str, Any]
) -> Scores:
    real = jnp.any(micro["supervised"], axis=1)
    wanted, beta = micro["label"] > 0.5, numbers["beta"]
    ratios = logps - against
    ahead = beta * jnp.where(wanted, ratios - kl, kl - ratios)
    weights = jnp.where(
        wanted, numbers["desirable_weight"], numbers["undesirable_weight"]
    )
    losses = weights * jax.nn.sigmoid(-ahead)
    return Scores(losses, beta * ratios, logps, kl, wanted & real, ~wanted & real)


def _summed(scores: Scores) -> Loss:
    """The loss of a micro-batch: sums over its answers."""
    real = scores.wanted | scores.other
    count = _count(real)
    figures = {}
    for name, side in (("chosen", scores.wanted), ("rejected", scores.other)):
        figures[f"rewards/{name}"] = (_sum(scores.rewards, side), _count(side))
        figures[f"logps/{name}"] = (_sum(scores.logps, side), _count(side))
    (chosen, n), (rejected, m) = figures["rewards/chosen"], figures["rewards/rejected"]
    both = (n > 0) & (m > 0)
    apart = chosen / jnp.maximum(n, 1.0) - rejected / jnp.maximum(m, 1.0)
    figures |= {
        "rewards/margins": (jnp.where(both, apart * count, 0.0), both * count),
        "kl": (scores.kl * count, count),
    }
    return Loss(_sum(scores.losses, real), count, figures)


def _totals(scores: Scores) -> dict[str, Any]:
    loss = _summed(scores)
    return {"loss": (loss.total, loss.weight), **loss.metrics}


def report(totals: Mapping[str, Any]) -> dict[str, float]:
    """The means over all answers.

    Args:
        totals: {name: (sum, weight)} over the whole data set.

    Returns:
        `eval_loss`, `eval_kl`, `eval_rewards/...`, `eval_logps/...` and `eval_answers`;
            of answers of one label alone no figures of the other, and no margin.
    """
    means = {f"eval_{name}": x / n for name, (x, n) in totals.items() if n}
    means.pop("eval_rewards/margins", None)
    sides = [f"eval_rewards/{name}" for name in ("chosen", "rejected")]
    if all(side in means for side in sides):
        chosen, rejected = (means[side] for side in sides)
        means["eval_rewards/margins"] = chosen - rejected
    return {**means, "eval_answers": int(totals["loss"][1])}


def in_words(report: Mapping[str, float]) -> str:
    """Loss and margin in a few words.

    Args:
        report: what `report` returns.
    """
    margin = report.get("eval_rewards/margins")
    beside = (
        "answers of one label alone"
        if margin is None
        else f"wanted answers rewarded by {margin:.4f} more than the others"
    )
    return f"loss {report['eval_loss']:.4f}, {beside}"


def _sum(x: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, x, 0.0))


def _count(where: Array) -> Array:
    return jnp.sum(where).astype(jnp.float32)
