"""Supervised fine-tuning: the next token's cross-entropy over what is to be learned."""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from pydantic import Field

from jaxpeft import kernel, models
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import token_loss
from jaxpeft.objectives.objective import Loss, Micro, Objective
from jaxpeft.objectives.token_loss import NLL, Form, TokenSums

Share = Annotated[float, Field(ge=0, lt=1)]
Alpha = Annotated[float, Field(gt=0)]


def sft(
    loss_type: Literal["nll", "dft"] = "nll",
    label_smoothing: Share = 0.0,
    neftune_noise_alpha: Alpha | None = None,
) -> Objective:
    """Next-token cross-entropy in nats, the mean over a step's supervised tokens.

    Where tokens weigh unlike (`weights` of a micro-batch), it is the weighted mean. An
    evaluation reports the cross-entropy itself, whatever of it is minimised.

    Args:
        loss_type: nll, or dft for dynamic fine-tuning (Wu et al., 2025): the loss of a
            token times its probability, through which no gradient goes.
        label_smoothing: e of `(1 - e) * nll + e * mean(-log p)`, the mean being over
            the vocabulary; as transformers' label_smoothing_factor.
        neftune_noise_alpha: how large the noise is that the embeddings get in training
            (NEFTune; Jain et al., 2023), about 5; null: none.

    Raises:
        InputError: where a loss is to be of both kinds.
    """
    dynamic = loss_type == "dft"
    if dynamic and label_smoothing:
        raise InputError(
            f"objective.label_smoothing: found {label_smoothing:g} beside loss_type "
            "dft, which weighs each token by its probability; use 0, or loss_type nll"
        )
    form = Form(label_smoothing, dynamic)
    return Objective(
        loss=functools.partial(loss, form=form, noise=neftune_noise_alpha),
        sums=sums,
        report=report,
        in_words=in_words,
        from_hidden=functools.partial(from_hidden, form=form),
        embedding_noise=neftune_noise_alpha,
    )


def loss(
    params: Any,
    held: Any,
    micro: Micro,
    model: ModelConfig,
    key: Array,
    form: Form = NLL,
    noise: float | None = None,
) -> Loss:
    """The summed token losses of a micro-batch, and its number of supervised tokens.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        micro: `tokens`, `targets`, `positions` and `supervised`, (batch, seq) each,
            `segments` where rows are packed, and `weights` where tokens weigh unlike,
            of which then the sum is.
        model: the hyperparameters.
        key: for dropout and noise.
        form: what a token's loss is.
        noise: the alpha of the noise on the embeddings; None: none.
    """
    params = kernel.with_dropout(params, key)
    noisy = params if noise is None else models.with_noise(params, noise, key)
    hidden = last_hidden(noisy, micro, model)
    return from_hidden(hidden, models.head(params, model), micro, form)


def from_hidden(
    hidden: Float[Array, "batch seq hidden"], head: Any, micro: Micro, form: Form = NLL
) -> Loss:
    """The same as `loss`, of the last hidden states and a head.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (hidden, vocab).
        micro: `targets` and `supervised`, (batch, seq) each, and perhaps `weights`.
        form: what a token's loss is.
    """
    mask, weights = micro["supervised"], micro.get("weights")
    nll: Any = token_loss.nll_sum(hidden, head, micro["targets"], mask, weights, form)
    counted = mask if weights is None else jnp.where(mask, weights, 0.0)
    return Loss(nll, jnp.sum(counted).astype(jnp.float32))


def sums(params: Any, held: Any, batch: Micro, model: ModelConfig) -> TokenSums:
    """Loss and accuracy of a batch, summed over its supervised tokens.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        batch: as for `loss`.
        model: the hyperparameters.
    """
    return token_loss.token_sums(
        last_hidden(params, batch, model),
        models.head(params, model),
        batch["targets"],
        batch["supervised"],
        batch.get("weights"),
    )


def report(totals: tuple[float, float, float, float]) -> dict[str, float]:
    """The means over all supervised tokens, each by its weight.

    Args:
        totals: a `TokenSums` of the whole data set, as numbers.

    Returns:
        `eval_loss` in nats per token, `eval_perplexity`, exp of it, `eval_accuracy`,
            the share of tokens whose logit is the largest, and `eval_tokens`.
    """
    nll, correct, weight, count = totals
    mean = nll / weight
    return {
        "eval_loss": mean,
        "eval_perplexity": math.exp(min(mean, 700.0)),
        "eval_accuracy": correct / weight,
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
