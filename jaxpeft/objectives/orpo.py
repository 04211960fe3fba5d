"""Odds ratio preference optimisation: fine-tuning and preference in one loss."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpeft.objectives import pairs, ranges
from jaxpeft.objectives.objective import Objective
from jaxpeft.objectives.pairs import Answers, Numbers, Terms


def orpo(*, beta: float = 0.1) -> Objective:
    """Odds ratio preference optimisation (Hong et al., 2024), without a reference.

    With m the mean log-probability of an answer's token and odds = e^m / (1 - e^m):
    the cross-entropy of the chosen answer and its prompt, less beta log sigmoid(log
    odds(chosen) - log odds(rejected)).

    Args:
        beta: the weight of the odds ratio, the paper's lambda.

    Raises:
        InputError: a number is out of its range.
    """
    ranges.positive(beta=beta)
    return pairs.objective(rule, {"beta": beta}, whole=True)


def rule(answers: Answers, against: Array, numbers: Numbers) -> Terms:
    """The terms of a batch of pairs.

    Args:
        answers: of the model.
        against: nothing that is looked at.
        numbers: `beta`.
    """
    means = answers.logps / jnp.maximum(answers.lengths, 1.0)
    odds = means - _log1mexp(means)
    difference = odds[:, 0] - odds[:, 1]
    ratio = jax.nn.log_sigmoid(difference)
    figures = {"log_odds_ratio": ratio, "log_odds_chosen": difference}
    beta = numbers["beta"]
    return Terms(-beta * ratio, beta * means, figures, nll=1.0, logps=means)


def _log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 - e^x) for x < 0, exact at both ends (Mächler, 2012)."""
    x = jnp.minimum(x, -jnp.finfo(x.dtype).tiny)
    near = x > -jnp.log(2.0)
    # The branch that is not taken has a finite slope, too.
    small, large = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
