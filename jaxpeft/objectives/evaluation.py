"""Loss, perplexity and accuracy over a data set, from sums that are streamed."""

import math
from collections.abc import Iterable

import jax
import numpy as np

from jaxpeft.objectives.token_loss import TokenSums


def losses(sums: Iterable[TokenSums]) -> dict[str, float]:
    """The means over all supervised tokens of the batches.

    `eval_loss` in nats per token, `eval_perplexity` = exp of it, `eval_accuracy`
    (share of tokens whose logit is the largest), `eval_tokens`.
    """
    # All batches are started before the first result is waited for.
    nll, correct, count = (
        math.fsum(float(np.asarray(jax.device_get(value))) for value in values)
        for values in zip(*list(sums))
    )
    loss = nll / count
    return {
        "eval_loss": loss,
        "eval_perplexity": math.exp(min(loss, 700.0)),
        "eval_accuracy": correct / count,
        "eval_tokens": int(count),
    }
