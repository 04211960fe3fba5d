"""Contrastive preference optimisation, and SimPO, which is one of its losses."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft.objectives import pairs, ranges
from jaxpeft.objectives.objective import Objective
from jaxpeft.objectives.pairs import Answers, Numbers, Terms

Kind = Literal["sigmoid", "hinge", "ipo"]


def cpo(
    *,
    beta: float = 0.1,
    loss_type: Kind = "sigmoid",
    label_smoothing: float = 0.0,
    cpo_alpha: float = 1.0,
) -> Objective:
    """Contrastive preference optimisation (Xu et al., 2024), without a reference.

    DPO's losses of h = log p(chosen) - log p(rejected), and cpo_alpha times the
    cross-entropy of the chosen answers' tokens. With ipo, h is of means a token.

    Args:
        beta: the factor of h.
        loss_type: sigmoid, hinge or ipo, see `dpo`.
        label_smoothing: the share of pairs whose order is taken to be wrong.
        cpo_alpha: the weight of the cross-entropy.

    Raises:
        InputError: a number is out of its range.
    """
    ranges.positive(beta=beta)
    ranges.at_least_zero(cpo_alpha=cpo_alpha)
    ranges.smoothing(label_smoothing, loss_type, ("sigmoid",))

    def rule(answers: Answers, against: Array, numbers: Numbers) -> Terms:
        beta = numbers["beta"]
        logps = _means(answers) if loss_type == "ipo" else answers.logps
        difference = logps[:, 0] - logps[:, 1]
        if loss_type == "sigmoid":
            losses = smoothed(beta * difference, label_smoothing)
        elif loss_type == "hinge":
            losses = jax.nn.relu(1 - beta * difference)
        else:
            losses = (difference - 1 / (2 * beta)) ** 2
        return Terms(losses, beta * logps, nll=numbers["cpo_alpha"], logps=logps)

    return pairs.objective(rule, {"beta": beta, "cpo_alpha": cpo_alpha})


def simpo(
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> Objective:
    """Simple preference optimisation (Meng et al., 2024), without a reference.

    -log sigmoid(beta m(chosen) - beta m(rejected) - gamma), m the mean log-probability
    of an answer's token.

    Args:
        beta: the factor of the means; the paper has 2 to 10.
        gamma: the margin that the chosen answer is to be ahead by.
        label_smoothing: the share of pairs whose order is taken to be wrong.
        sft_weight: by what the cross-entropy of the chosen answers' tokens is
            multiplied before it is added.

    Raises:
        InputError: a number is out of its range.
    """
    ranges.positive(beta=beta)
    ranges.at_least_zero(gamma=gamma, sft_weight=sft_weight)
    ranges.smoothing(label_smoothing, "simpo", ("simpo",))

    def rule(answers: Answers, against: Array, numbers: Numbers) -> Terms:
        beta, means = numbers["beta"], _means(answers)
        ahead = beta * (means[:, 0] - means[:, 1]) - numbers["gamma"]
        losses = smoothed(ahead, label_smoothing)
        return Terms(losses, beta * means, nll=numbers["sft_weight"], logps=means)

    numbers = {"beta": beta, "gamma": gamma, "sft_weight": sft_weight}
    return pairs.objective(rule, numbers)


def smoothed(ahead: Array, label_smoothing: Any) -> Array:
    """-log sigmoid of a lead, a share of the pairs taken the other way round.

    Args:
        ahead: (pairs,).
        label_smoothing: the share.
    """
    right = jax.nn.log_sigmoid(ahead) * (1 - label_smoothing)
    return -right - jax.nn.log_sigmoid(-ahead) * label_smoothing


def _means(answers: Answers) -> Array:
    return answers.logps / jnp.maximum(answers.lengths, 1.0)
