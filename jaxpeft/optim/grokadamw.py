"""GrokAdamW: AdamW that amplifies slow gradients (Cognitive Computations, 2024)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import (
    Context,
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
    """State of one tensor, float32 and shaped like it.

    Attributes:
        mu: the moving average of the amplified gradients.
        nu: the moving average of their squares.
        slow: the moving average of the gradients themselves.
    """

    mu: Array
    nu: Array
    slow: Array


class Losses(NamedTuple):
    """The last losses that the optimizer was told of, () float32; nan: none yet.

    Attributes:
        train: the training loss.
        eval: the evaluation loss.
    """

    train: Array
    eval: Array

    def observed(self, value: Array) -> "Losses":
        """The losses after an evaluation, see `plateau.observe`.

        Args:
            value: () float32, the evaluation loss.
        """
        return self._replace(eval=value)

    def signal(self) -> Array:
        """By which part the evaluation loss exceeds the training one, (), 0 to 1."""
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
    """The rule of `grokadamw`, which explains the arguments."""

    def init(p: Array, place: Place) -> GrokState:
        return GrokState(jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p))

    def update(
        g: Array, state: GrokState, p: Array, ctx: Context
    ) -> tuple[Array, GrokState]:
        if not is_zero(gradient_clipping):
            norm = jnp.sqrt(jnp.sum(jnp.square(g)))
            factor = jnp.minimum(1.0, gradient_clipping / (norm + 1e-6))
            if isinstance(gradient_clipping, jax.Array):
                factor = jnp.where(gradient_clipping == 0, 1.0, factor)
            g = g * factor
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
        """The settings of every leaf; the layers of a stack number from 0.

        Args:
            params: the tree of parameters.
        """
        return [
            replace(t, index=0 if t.stacked else _layer(t.place.name))
            for t in super().tensors(params)
        ]


def _layer(name: str) -> int:
    match = _LAYER.fullmatch(name)
    return int(match.group(1)) if match else 0


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
    gives both, where transformers' Trainer gives none. State: m, v and e in float32, 12
    bytes a parameter.

    i numbers the tensors in the order of the flattened tree, each layer of a stack on
    its own: another order gives another course, and a torch model's parameters come in
    another one. So it is in the reference, grokadamw 0.1.2, with two odd effects that
    two options remove. The momentum of the twentieth tensor is almost none: see
    `index`. And the bias correction of all is that of b1, so that late tensors begin
    with steps of up to 10 times the rate: see `corrected_bias`.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of the first tensor's m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        alpha_init: the decay of e while the signal is 0, from 0 to below 1.
        lamb: the weight of e in the amplified gradient, 0 or more.
        gamma: the share by which the decay of m falls from one tensor to the next, from
            0 to below 1.
        grokking_signal_decay_rate: how fast the decay of e falls with the signal, 0 or
            more.
        gradient_clipping: the norm that each tensor's gradient is clipped to; 0: none.
        index: what i numbers. "tensor": the tensors. "layer": i is the number of the
            layer, and 0 outside of layers.
        corrected_bias: whether the bias correction of a tensor is its own, 1 - b_i**t.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once, among them b1 or gamma
            outside of [0, 1).
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
