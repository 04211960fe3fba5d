"""What objectives share that weigh a chosen answer against a rejected one.

Rows 2i and 2i + 1 of a batch are the chosen and the rejected answer of pair i. A row
without supervised tokens is padding, and so is its pair.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32

from jaxpeft import kernel, models
from jaxpeft.data.preference import PAIRS
from jaxpeft.models import ModelConfig
from jaxpeft.objectives.answers import loads
from jaxpeft.objectives.objective import (
    REFERENCE,
    Loss,
    Micro,
    Objective,
    Precomputed,
    row_shapes,
)
from jaxpeft.objectives.sft import last_hidden
from jaxpeft.objectives.token_logps import token_logps

Numbers = Mapping[str, Any]
PER_TOKEN = "pairs_per_token"  # of the whole step; see `of_step`


class Answers(NamedTuple):
    """What a model makes of a batch of pairs, the chosen answer first.

    Attributes:
        logps: log-probabilities in nats, summed over each answer's tokens.
        lengths: the numbers of those tokens.
        whole: the same sums over all tokens but the first, prompts included; where they
            were not asked for, `logps`.
        lengths_whole: the numbers of those.
        real: whether it is a pair and no padding.
    """

    logps: Float32[Array, "pairs 2"]
    lengths: Float32[Array, "pairs 2"]
    whole: Float32[Array, "pairs 2"]
    lengths_whole: Float32[Array, "pairs 2"]
    real: Bool[Array, " pairs"]


class Terms(NamedTuple):
    """What a batch of pairs adds to a loss and to the log.

    Attributes:
        losses: of each pair.
        rewards: of each answer, the chosen one first.
        figures: further ones of each pair, {name: (pairs,)}.
        nll: by what the mean negative log likelihood of the chosen answers' tokens is
            multiplied before it is added; None: it is not.
        logps: what the log shows as log-probabilities, (pairs, 2), such as means a
            token where the losses are of those; None: the sums.
    """

    losses: Float32[Array, " pairs"]
    rewards: Float32[Array, "pairs 2"]
    figures: Mapping[str, Array] = {}
    nll: Any = None
    logps: Array | None = None


Rule = Callable[[Answers, Array, Numbers], Terms]


def answers_of(hidden: Array, head: Any, micro: Micro, whole: bool = False) -> Answers:
    """What a model makes of a batch of pairs, of its last hidden states.

    Args:
        hidden: (rows, seq, d).
        head: a kernel (d, vocab).
        micro: `targets`, `supervised` and `positions`, (rows, seq) each.
        whole: whether prompts are wanted of the chosen answers, too.
    """
    answer = micro["supervised"]
    counted = answer
    if whole:
        places = jnp.arange(answer.shape[1])
        counted = places < jnp.max(micro["positions"], axis=1, keepdims=True)
        is_chosen = jnp.arange(answer.shape[0])[:, None] % 2 == 0
        counted = answer | (counted & is_chosen)
    logps = token_logps(hidden, head, micro["targets"], counted)

    def sums(x: Array) -> Array:
        return jnp.sum(x, axis=1, dtype=jnp.float32).reshape(-1, 2)

    lengths = sums(answer)
    return Answers(
        sums(jnp.where(answer, logps, 0.0)),
        lengths,
        sums(logps),
        sums(counted),
        jnp.all(lengths > 0, axis=1),
    )


def objective(
    rule: Rule,
    numbers: Mapping[str, float],
    *,
    reference: Callable[[Any, Any, Micro, ModelConfig], Array] | None = None,
    held: Callable[[Any], Any] = lambda params: {},
    precomputed: Precomputed | None = None,
    whole: bool = False,
) -> Objective:
    """The objective that a rule for pairs makes.

    Args:
        rule: (answers, the reference's summed log-probabilities (pairs, 2), numbers) ->
            `Terms`.
        numbers: {name: value} that the rule reads and that may differ between runs of
            one program.
        reference: (params, what `held` keeps, batch, model) -> the reference's (pairs,
            2), without a gradient; None: what was computed before, or zeros.
        held: params -> what the reference keeps of them.
        precomputed: what batches bring along of the reference; None: nothing.
        whole: whether the rule reads `Answers.whole`.
    """

    def terms(answers: Answers, of_reference: Array | None, numbers: Numbers) -> Terms:
        none = jnp.zeros_like(answers.logps)
        return rule(answers, none if of_reference is None else of_reference, numbers)

    def passed(params: Any, micro: Micro, model: ModelConfig) -> Answers:
        hidden = last_hidden(params, micro, model)
        return answers_of(hidden, models.head(params, model), micro, whole)

    def weighed(params: Any, held: Any, micro: Micro, model: ModelConfig) -> Any:
        if reference is None:
            return _brought(micro, precomputed)
        return reference(params, held["reference"], micro, model)

    def loss(
        params: Any, held: Any, micro: Micro, model: ModelConfig, key: Array
    ) -> Loss:
        against = weighed(params, held, micro, model)
        answers = passed(kernel.with_dropout(params, key), micro, model)
        return summed(answers, terms(answers, against, held["numbers"]), micro)

    def from_hidden(hidden: Array, head: Any, micro: Micro) -> Loss:
        answers = answers_of(hidden, head, micro, whole)
        against = _brought(micro, precomputed)
        return summed(answers, terms(answers, against, numbers), micro)

    def sums(params: Any, held: Any, batch: Micro, model: ModelConfig) -> Any:
        against = weighed(params, held, batch, model)
        answers = passed(params, batch, model)
        return totals(answers, terms(answers, against, held["numbers"]))

    def keep(params: Any) -> Any:
        fixed = {name: np.float32(x) for name, x in numbers.items()}
        return {"numbers": fixed, "reference": held(params)}

    load_train, load_eval = loads(PAIRS)
    besides = {} if precomputed is None else {REFERENCE: "float32"}
    columns = {**PAIRS.columns, **besides}
    return Objective(
        loss=loss,
        sums=sums,
        report=report,
        in_words=in_words,
        from_hidden=from_hidden if reference is None else None,
        held=keep,
        of_step=of_step(whole),
        load_train=load_train,
        load_eval=load_eval,
        precomputed=precomputed,
        batch_shapes=functools.partial(row_shapes, columns=columns),
    )


def _brought(micro: Micro, precomputed: Precomputed | None) -> Array | None:
    """The reference's (pairs, 2) that a batch brings along, if it does."""
    return None if precomputed is None else micro[REFERENCE].reshape(-1, 2)


def of_step(whole: bool) -> Callable[[Micro], dict[str, Array]]:
    """What a batch gets of all micro-batches of its step: the pairs for each token.

    A mean over the step's tokens is added to a mean over its pairs with it, however the
    batch is cut for accumulation.

    Args:
        whole: whether the tokens of prompts count.
    """

    def added(batch: Micro) -> dict[str, Array]:
        answer = batch["supervised"]  # (parts, rows, seq)
        chosen = jnp.sum(answer[:, ::2], axis=-1)
        real = (chosen > 0) & jnp.any(answer[:, 1::2], axis=-1)
        tokens = jnp.max(batch["positions"][:, ::2], axis=-1) if whole else chosen
        count = jnp.sum(jnp.where(real, tokens, 0))
        ratio = jnp.sum(real) / jnp.maximum(count, 1)
        return {PER_TOKEN: jnp.full(answer.shape[0], ratio, jnp.float32)}

    return added


def summed(answers: Answers, terms: Terms, micro: Micro) -> Loss:
    """The loss of a micro-batch: sums over its pairs.

    Args:
        answers: of the model that trains.
        terms: what they add to the loss.
        micro: has `PER_TOKEN`, which `of_step` added.
    """
    real, count = answers.real, _count(answers.real)
    total = _sum(terms.losses, real)
    if terms.nll is not None:
        nll = -_sum(answers.whole[:, 0], real)
        total += terms.nll * nll * micro[PER_TOKEN]
    figures = {
        name: (_sum(x, real), count) for name, x in _figures(answers, terms).items()
    }
    if terms.nll is not None:
        figures["nll_loss"] = (nll, _sum(answers.lengths_whole[:, 0], real))
    return Loss(total, count, figures)


def totals(answers: Answers, terms: Terms) -> dict[str, Any]:
    """The sums over the pairs of a batch that `report` divides.

    Args:
        answers: of the model that is evaluated.
        terms: what they add to the loss.
    """
    real = answers.real
    figures = {n: _sum(x, real) for n, x in _figures(answers, terms).items()}
    nll = terms.nll is not None
    return {
        "loss": _sum(terms.losses, real),
        "pairs": _count(real),
        "figures": figures,
        # The factor is a number of the run, which the mean over batches leaves alone.
        "nll": -_sum(answers.whole[:, 0], real) * terms.nll if nll else jnp.zeros(()),
        "tokens": _sum(answers.lengths_whole[:, 0], real),
    }


def report(totals: Mapping[str, Any]) -> dict[str, float]:
    """The means over all pairs.

    Args:
        totals: those of `totals` over the whole data set, as numbers.

    Returns:
        `eval_loss`, `eval_rewards/...`, `eval_logps/...` and further figures of the
            objective, and `eval_pairs`.
    """
    pairs, tokens = totals["pairs"], max(totals["tokens"], 1.0)
    figures = {f"eval_{name}": x / pairs for name, x in totals["figures"].items()}
    loss = totals["loss"] / pairs + totals["nll"] / tokens
    return {"eval_loss": loss, **figures, "eval_pairs": int(pairs)}


def in_words(report: Mapping[str, float]) -> str:
    """Loss, accuracy and margin in a few words.

    Args:
        report: what `report` returns.
    """
    return (
        f"loss {report['eval_loss']:.4f}, the chosen answer preferred in "
        f"{report['eval_rewards/accuracies']:.1%} of pairs, by "
        f"{report['eval_rewards/margins']:.4f} on average"
    )


def _figures(answers: Answers, terms: Terms) -> dict[str, Array]:
    chosen, rejected = terms.rewards[:, 0], terms.rewards[:, 1]
    logps = answers.logps if terms.logps is None else terms.logps
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
        "longer/rewarded": _longer_share(answers.lengths, chosen - rejected),
        "longer/chosen": _longer_share(answers.lengths, jnp.ones_like(chosen)),
        **terms.figures,
    }


def _longer_share(lengths: Array, ahead: Array) -> Array:
    """Whether the longer answer is ahead: 1 or 0, and a half where there is none.

    Args:
        lengths: tokens in each answer, (pairs, 2), the chosen one first.
        ahead: by how much the chosen one is ahead, (pairs,).
    """
    return (1 + jnp.sign(lengths[:, 0] - lengths[:, 1]) * jnp.sign(ahead)) / 2


def _sum(x: Array, real: Array) -> Array:
    return jnp.sum(jnp.where(real, x, 0.0))


def _count(real: Array) -> Array:
    return jnp.sum(real).astype(jnp.float32)
