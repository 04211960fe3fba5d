"""GrokAdamW: AdamW that amplifies slow gradients (Cognitive Computations, 2024)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Layout,
    Leafwise,
    Place,
    Rule,
    RuleTransformation,
    Tensor,
    debias,
    transformation,
)

_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\..*")


class GrokState(NamedTuple):
    """State of one tensor, float32 and shaped like it."""

    mu: Array
    nu: Array
    slow: Array  # the moving average of its gradients


class Losses(NamedTuple):
    """The last losses that the optimizer was told of, () float32; nan: none yet."""

    train: Array
    eval: Array

    def observed(self, value: Array) -> "Losses":
        """The losses after an evaluation, see `plateau.observe`."""
        return self._replace(eval=value)

    def signal(self) -> Array:
        """By which part the evaluation loss exceeds the training loss, 0 to 1."""
        larger = jnp.maximum(self.train, self.eval)  # nan where either one is missing
        gap = jnp.maximum(0.0, self.eval - self.train)
        return jnp.where(larger > 0, gap / jnp.where(larger > 0, larger, 1.0), 0.0)


def grokadamw_rule(
    b1: float,
    b2: float,
    eps: float,
    alpha_init: float,
    lamb: float,
    gamma: float,
    grokking_signal_decay_rate: float,
    gradient_clipping: float,
    corrected_bias: bool = False,
) -> Rule:
    """The rule of `grokadamw`."""

    def init(p: Array, place: Place) -> GrokState:
        return GrokState(jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p))

    def update(
        g: Array, state: GrokState, p: Array, ctx: Context
    ) -> tuple[Array, GrokState]:
        if gradient_clipping > 0:
            norm = jnp.sqrt(jnp.sum(jnp.square(g)))
            g = g * jnp.minimum(1.0, gradient_clipping / (norm + 1e-6))
        decay = -grokking_signal_decay_rate * ctx.shared.signal()
        alpha = alpha_init * jnp.exp(decay)
        slow = alpha * state.slow + (1 - alpha) * g
        g = g + lamb * slow
        own_b1 = b1 * (1 - gamma) ** ctx.index
        mu = own_b1 * state.mu + (1 - own_b1) * g
        nu = b2 * state.nu + (1 - b2) * jnp.square(g)
        first = debias(b1, ctx.t)
        if corrected_bias:
            first = -jnp.expm1(ctx.t * jnp.log(jnp.asarray(own_b1, jnp.float32)))
        rate = ctx.learning_rate * jnp.sqrt(debias(b2, ctx.t)) / first
        p = ctx.decayed(p) - rate * (mu / (jnp.sqrt(nu) + eps))
        return p, GrokState(mu, nu, slow)

    def advance(
        last: Losses, rate: Array, t: Array, extra: Mapping[str, Any]
    ) -> Losses:
        train = extra.get("train_loss", extra.get("value"))
        given = (train, extra.get("eval_loss"))
        return Losses(
            *(
                old if new is None else jnp.asarray(new, jnp.float32)
                for old, new in zip(last, given)
            )
        )

    unknown = jnp.full((), jnp.nan, jnp.float32)
    return Rule(init, update, Losses(unknown, unknown), advance)


class LayerIndexed(Leafwise):
    """A rule whose tensors have the numbers of their layers, 0 outside of layers."""

    def tensors(self, params: Any) -> list[Tensor]:
        """The settings of every leaf; the layers of a stack number from 0."""
        return [
            replace(t, index=0 if t.stacked else _layer(t.place.name))
            for t in super().tensors(params)
        ]


def _layer(name: str) -> int:
    found = _LAYER.fullmatch(name)
    return int(found.group(1)) if found else 0


@in_range
def grokadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    alpha_init: float = 0.98,
    lamb: float = 2.0,
    gamma: float = 0.1,
    grokking_signal_decay_rate: float = 0.1,
    gradient_clipping: float = 1.0,
    index: Literal["tensor", "layer"] = "tensor",
    corrected_bias: bool = False,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """AdamW on the gradient plus `lamb` times its moving average.

        g <- g min(1, gradient_clipping / (|g| + 1e-6)) of each tensor; 0: no clipping
        alpha = alpha_init exp(-grokking_signal_decay_rate G)
        e <- alpha e + (1 - alpha) g,  h = g + lamb e
        m <- b_i m + (1 - b_i) h,  b_i = b1 (1 - gamma)**i,  v <- b2 v + (1 - b2) h**2
        p <- p (1 - rate * weight_decay)
        p <- p - rate sqrt(1 - b2**t) / (1 - b1**t) m / (sqrt(v) + eps)

    The signal G is max(0, eval - train) / max(eval, train) of the losses that `update`
    takes as `train_loss` (or `value`) and `eval_loss`, or `observe` as the latter; each
    stays until another comes, and until both have come G is 0. The training command
    gives both, where transformers' Trainer gives none. State: m, v and e in float32,
    12 bytes a parameter.

    i numbers the tensors in the order of the flattened tree, each layer of a stack on
    its own: another order gives another course, and a torch model's parameters come
    in another one. So it is in the reference, grokadamw 0.1.2, with two odd effects
    that two options remove. The momentum of the twentieth tensor is almost none; with
    `index="layer"` i is the number of the layer, and 0 outside of layers. And the bias
    correction of all is that of b1, so that late tensors begin with steps of up to 10
    times the rate; with `corrected_bias` it is 1 - b_i**t.

    Raises InputError for b1 or gamma outside of [0, 1).
    """
    rule = grokadamw_rule(
        b1,
        b2,
        eps,
        alpha_init,
        lamb,
        gamma,
        grokking_signal_decay_rate,
        gradient_clipping,
        corrected_bias,
    )
    return transformation(
        rule,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
        kind=LayerIndexed if index == "layer" else Leafwise,
    )
