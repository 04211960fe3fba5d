"""Supervised fine-tuning: the next token's cross-entropy over what is to be learned."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxpeft import kernel, models
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import token_loss
from jaxpeft.objectives.objective import Loss, Micro, Objective
from jaxpeft.objectives.token_loss import TokenSums


def sft() -> Objective:
    """Next-token cross-entropy in nats, the mean over a step's supervised tokens."""
    return Objective(
        loss=loss,
        sums=sums,
        report=report,
        in_words=in_words,
        from_hidden=from_hidden,
    )


def loss(params: Any, held: Any, micro: Micro, model: ModelConfig, key: Array) -> Loss:
    """The summed token losses of a micro-batch, and its number of supervised tokens.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        micro: `tokens`, `targets`, `positions` and `supervised`, (batch, seq) each, and
            `segments` where rows are packed.
        model: the hyperparameters.
        key: for dropout.
    """
    params = kernel.with_dropout(params, key)
    hidden = last_hidden(params, micro, model)
    return from_hidden(hidden, models.head(params, model), micro)


def from_hidden(
    hidden: Float[Array, "batch seq hidden"], head: Any, micro: Micro
) -> Loss:
    """The same as `loss`, of the last hidden states and a head.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (hidden, vocab).
        micro: `targets` and `supervised`, (batch, seq) each.
    """
    mask = micro["supervised"]
    nll = token_loss.nll_sum(hidden, head, micro["targets"], mask)
    return Loss(nll, jnp.sum(mask).astype(jnp.float32))


def sums(params: Any, held: Any, batch: Micro, model: ModelConfig) -> TokenSums:
    """Loss and accuracy of a batch, summed over its supervised tokens.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        batch: as for `loss`.
        model: the hyperparameters.
    """
    hidden = last_hidden(params, batch, model)
    head = models.head(params, model)
    return token_loss.token_sums(hidden, head, batch["targets"], batch["supervised"])


def report(totals: tuple[float, float, float]) -> dict[str, float]:
    """The means over all supervised tokens.

    Args:
        totals: a `TokenSums` of the whole data set, as numbers.

    Returns:
        `eval_loss` in nats per token, `eval_perplexity`, exp of it, `eval_accuracy`,
            the share of tokens whose logit is the largest, and `eval_tokens`.
    """
    nll, correct, count = totals
    mean = nll / count
    return {
        "eval_loss": mean,
        "eval_perplexity": math.exp(min(mean, 700.0)),
        "eval_accuracy": correct / count,
        "eval_tokens": int(count),
    }


def in_words(report: Mapping[str, float]) -> str:
    """Loss and token accuracy in a few words.

    Args:
        report: what `report` returns.
    """
    return (
        f"loss {report['eval_loss']:.4f}, token accuracy {report['eval_accuracy']:.1%}"
    )


def last_hidden(
    params: Any, batch: Micro, model: ModelConfig
) -> Float[Array, "batch seq hidden"]:
    """The model's last hidden states of a batch of rows.

    Args:
        params: of the whole model, adapters in.
        batch: `tokens` and `positions`, (batch, seq) each, and perhaps `segments`.
        model: the hyperparameters.
    """
    return models.hidden_states(
        params,
        batch["tokens"],
        model,
        positions=batch["positions"],
        segments=batch.get("segments"),
    )
