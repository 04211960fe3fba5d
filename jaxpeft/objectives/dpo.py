"""Direct preference optimisation, and its neighbours that differ in one line."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft.models import ModelConfig
from jaxpeft.objectives import pairs, ranges
from jaxpeft.objectives import reference as references
from jaxpeft.objectives.objective import Micro, Objective
from jaxpeft.objectives.pairs import Answers, Numbers, Terms
from jaxpeft.objectives.reference import Reference, Wanted

Kind = Literal["sigmoid", "hinge", "ipo", "robust"]
SMOOTHED = ("sigmoid", "robust")


def dpo(
    *,
    beta: float = 0.1,
    loss_type: Kind = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    reference: Wanted = "auto",
    precompute_reference: bool = False,
    continues: bool = False,
    base_trains: bool = False,
) -> Objective:
    """Direct preference optimisation (Rafailov et al., 2023): chosen over rejected.

    With h = log(p/q)(chosen) - log(p/q)(rejected), p of the model, q of the reference:

        sigmoid   -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)
        robust    (-(1 - s) log sigmoid(beta h) + s log sigmoid(-beta h)) / (1 - 2s)
        hinge     max(0, 1 - beta h)
        ipo       (h' - 1 / (2 beta))^2, h' of log-probabilities a token

    Args:
        beta: how much a distance from the reference costs.
        loss_type: which of the four.
        label_smoothing: s, the share of pairs whose order is taken to be wrong.
        sft_weight: by what the cross-entropy of the chosen answers' tokens is
            multiplied before it is added.
        reference: adapter_off, the base; start, the model before the first step, such
            as the adapter of `adapter.init_from`; none, for which log q is 0; auto,
            start where there is such an adapter or the base trains, else adapter_off.
        precompute_reference: whether the reference's log-probabilities are computed
            once, before the first step, and kept for later starts.
        continues: whether an adapter is trained further.
        base_trains: whether the weights of the base train.

    Raises:
        InputError: a number is out of its range, or there is no such reference.
    """
    ranges.positive(beta=beta)
    ranges.at_least_zero(sft_weight=sft_weight)
    ranges.smoothing(label_smoothing, loss_type, SMOOTHED)
    kind = references.chosen(reference, continues=continues, base_trains=base_trains)

    before = references.before_training(kind, precompute_reference)
    in_step = kind != "none" and before is None

    def rule(answers: Answers, against: Array, numbers: Numbers) -> Terms:
        ratios = answers.logps - against
        losses = loss(
            loss_type, ratios, answers.lengths, numbers["beta"], label_smoothing
        )
        return Terms(losses, numbers["beta"] * ratios, nll=numbers["sft_weight"])

    return pairs.objective(
        rule,
        {"beta": beta, "sft_weight": sft_weight},
        reference=functools.partial(logps_of, kind) if in_step else None,
        held=functools.partial(references.held, kind if in_step else "none"),
        precomputed=before,
    )


def loss(
    loss_type: Kind, ratios: Array, lengths: Array, beta: Any, label_smoothing: float
) -> Array:
    """The loss of each pair.

    Args:
        loss_type: which loss.
        ratios: log-probabilities less the reference's, (pairs, 2), the chosen first.
        lengths: tokens in each answer, (pairs, 2).
        beta: see `dpo`.
        label_smoothing: see `dpo`.

    Returns:
        (pairs,) float32.
    """
    if loss_type == "ipo":
        ratios = ratios / jnp.maximum(lengths, 1.0)
    difference = ratios[:, 0] - ratios[:, 1]
    if loss_type == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if loss_type == "hinge":
        return jax.nn.relu(1 - beta * difference)
    right = -jax.nn.log_sigmoid(beta * difference) * (1 - label_smoothing)
    wrong = -jax.nn.log_sigmoid(-beta * difference) * label_smoothing
    if loss_type == "robust":
        return (right - wrong) / (1 - 2 * label_smoothing)
    return right + wrong


def logps_of(
    kind: Reference, params: Any, held: Any, micro: Micro, model: ModelConfig
) -> Array:
    """The summed log-probabilities of a reference, (pairs, 2), without dropout.

    Args:
        kind: which reference.
        params: as they train, adapters in, and without keys of dropout.
        held: what the reference keeps.
        micro: the batch.
        model: the hyperparameters.
    """
    own = references.model(kind, params, held)
    return references.logps(own, micro, model).reshape(-1, 2)
