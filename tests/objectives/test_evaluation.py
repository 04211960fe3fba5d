"""Evaluation: token-weighted means of sums from batches of unequal weight."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.objectives import sft
from jaxpeft.objectives.evaluation import figures
from jaxpeft.objectives.token_loss import TokenSums


def sums(nll, correct, count):
    return TokenSums(*(jnp.float32(x) for x in (nll, correct, count, count)))


def losses(parts):
    return figures(sft(), parts)


def test_means_are_over_tokens_not_batches():
    found = losses(iter([sums(10.0, 3, 4), sums(1.0, 0, 1), sums(0.0, 0, 0)]))
    assert found["eval_loss"] == pytest.approx(11 / 5)
    assert found["eval_perplexity"] == pytest.approx(np.exp(11 / 5))
    assert found["eval_accuracy"] == pytest.approx(3 / 5)
    assert found["eval_tokens"] == 5 and isinstance(found["eval_tokens"], int)


def test_many_batches_lose_no_precision():
    found = losses([sums(1e6 + 1, 0, 1)] * 4000)
    assert found["eval_loss"] == 1e6 + 1


def test_a_huge_loss_has_a_perplexity():
    assert np.isfinite(losses([sums(1e6, 0, 1)])["eval_perplexity"])


def test_a_loss_that_is_not_a_number_is_reported_as_such():
    assert np.isnan(losses([sums(np.nan, 0, 2)])["eval_loss"])
