"""A reward model: a score for an answer, learned from pairs of a better and a worse."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32

from jaxpeft import data, kernel, models
from jaxpeft.data.ranked import MARGIN, RANKED
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import ranges
from jaxpeft.objectives.objective import (
    Head,
    Loss,
    Micro,
    Objective,
    Predictions,
    row_shapes,
)


class Rewards(NamedTuple):
    """What a model makes of a batch of pairs.

    Attributes:
        losses: of each pair.
        rewards: the scores, the chosen answer's first.
        real: whether it is a pair and no padding.
    """

    losses: Float32[Array, " pairs"]
    rewards: Float32[Array, "pairs 2"]
    real: Bool[Array, " pairs"]


def reward(center_rewards_coefficient: float | None = None) -> Objective:
    """A reward model's loss (Bradley and Terry, 1952; Ouyang et al., 2022).

    Of a pair it is -log sigmoid(chosen - rejected - margin), the margin being the
    record's (Touvron et al., 2023), 0 where it has none. As TRL's `RewardTrainer`.

    Args:
        center_rewards_coefficient: c of c (chosen + rejected)^2, which is added so that
            rewards stay about 0 (Eisenstein et al., 2023), such as 0.01; null: nothing.

    Raises:
        InputError: a number is out of its range.
    """
    coefficient = center_rewards_coefficient or 0.0
    ranges.at_least_zero(center_rewards_coefficient=coefficient)
    return Objective(
        loss=functools.partial(loss, coefficient=coefficient),
        sums=functools.partial(sums, coefficient=coefficient),
        report=report,
        in_words=in_words,
        head=Head(1),
        predictions=Predictions(_scores, lines),
        load_train=functools.partial(data.load_train, kind=RANKED),
        load_eval=functools.partial(data.load_eval, kind=RANKED),
        batch_shapes=functools.partial(row_shapes, columns=RANKED.columns),
    )


def loss(
    params: Any,
    held: Any,
    micro: Micro,
    model: ModelConfig,
    key: Array,
    coefficient: float = 0.0,
) -> Loss:
    """The summed losses of a micro-batch, and its number of pairs.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        micro: `tokens`, `positions` and `supervised`, (rows, seq) each, and `margin`,
            (rows,); rows 2i and 2i + 1 are the chosen and the rejected answer.
        model: the hyperparameters.
        key: for dropout.
        coefficient: how much rewards are drawn to 0.
    """
    found = _rewards(kernel.with_dropout(params, key), micro, model, coefficient)
    count = _sum(jnp.ones_like(found.losses), found.real)
    figures = {n: (_sum(x, found.real), count) for n, x in _figures(found).items()}
    return Loss(_sum(found.losses, found.real), count, figures)


def sums(
    params: Any, held: Any, batch: Micro, model: ModelConfig, coefficient: float = 0.0
) -> dict[str, Any]:
    """Loss and figures of a batch, summed over its pairs.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        batch: as for `loss`.
        model: the hyperparameters.
        coefficient: how much rewards are drawn to 0.
    """
    found = _rewards(params, batch, model, coefficient)
    return {
        "loss": _sum(found.losses, found.real),
        "pairs": _sum(jnp.ones_like(found.losses), found.real),
        "figures": {n: _sum(x, found.real) for n, x in _figures(found).items()},
    }


def _rewards(
    params: Any, batch: Micro, model: ModelConfig, coefficient: float
) -> Rewards:
    rewards = models.scores(params, batch, model)[:, 0].reshape(-1, 2)
    margin = batch[MARGIN].reshape(-1, 2)[:, 0]
    losses = -jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1] - margin)
    if coefficient:
        losses += coefficient * jnp.sum(rewards, axis=1) ** 2
    real = jnp.any(batch["supervised"], axis=1).reshape(-1, 2)
    return Rewards(losses, rewards, jnp.all(real, axis=1))


def _figures(found: Rewards) -> dict[str, Array]:
    chosen, rejected = found.rewards[:, 0], found.rewards[:, 1]
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
    }


def _sum(x: Array, real: Array) -> Array:
    return jnp.sum(jnp.where(real, x, 0.0))


def report(totals: Mapping[str, Any]) -> dict[str, float]:
    """The means over all pairs.

    Args:
        totals: those of `sums` over the whole data set, as numbers.

    Returns:
        `eval_loss`, `eval_rewards/...` and `eval_pairs`.
    """
    pairs = totals["pairs"]
    figures = {f"eval_{name}": x / pairs for name, x in totals["figures"].items()}
    return {"eval_loss": totals["loss"] / pairs, **figures, "eval_pairs": int(pairs)}


def in_words(report: Mapping[str, float]) -> str:
    """Loss, accuracy and margin in a few words.

    Args:
        report: what `report` returns.
    """
    return (
        f"loss {report['eval_loss']:.4f}, the chosen answer scored higher in "
        f"{report['eval_rewards/accuracies']:.1%} of pairs, by "
        f"{report['eval_rewards/margins']:.4f} on average"
    )


def _scores(params: Any, batch: Micro, model: ModelConfig) -> Array:
    return models.scores(params, batch, model)[:, 0]


def lines(scores: np.ndarray, batch: Any) -> list[dict[str, float]]:
    """The two scores of each pair.

    Args:
        scores: (rows,), a chosen and a rejected answer's in turns.
        batch: `supervised` (rows, seq); pairs without any are padding.
    """
    pairs = np.asarray(scores).reshape(-1, 2)
    learned = np.asarray(batch["supervised"]).any(axis=1)
    real = np.all(learned.reshape(-1, 2), axis=1).tolist()
    return [
        {"chosen": float(chosen), "rejected": float(rejected)}
        for (chosen, rejected), counts in zip(pairs, real, strict=True)
        if counts
    ]
