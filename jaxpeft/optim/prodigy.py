"""Prodigy: AdamW that estimates its own learning rate (Mishchenko & Defazio, 2023)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.explicit import placed
from jaxpeft.optim.leaves import check_real, decaying
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import debias


class State(NamedTuple):
    """The state of `optax.contrib.prodigy`, and how often it was asked for a step.

    Attributes:
        exp_avg: m, like the parameters, float32.
        exp_avg_sq: v, likewise.
        grad_sum: s, likewise.
        params0: the parameters at the start, likewise.
        estim_lr: d, () float32.
        numerator_weighted: r, () float32.
        count: () int32, the steps that changed anything: the t of the corrections.
        asked: () int32, all steps: where a schedule stands.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    params0: Any
    estim_lr: Array
    numerator_weighted: Array
    count: Array
    asked: Array


@in_range
def prodigy(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float | None = None,
    eps: float = 1e-8,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    weight_decay: float = 0.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose rate is `learning_rate` times an estimate d of the way to go.

        m <- b1 m + (1 - b1) d g,  v <- b2 v + (1 - b2) (d g)**2
        r <- b3 r + rate d / d0 d <g, p0 - p>,  s <- b3 s + rate d / d0 d g
        d' = max(d, d_coef r / sum|s|)
        p <- p - rate d weight_decay p - rate d m / (sqrt(v) + d' eps),  d <- d'

    State: m, v, s and the start p0 in float32, 16 bytes a parameter, and scalars. One d
    for the whole tree, so all gradients are needed at once: this is no rule, and does
    not go with a fused backward pass.

    It is `optax.contrib.prodigy`, equal to prodigyopt's Prodigy with its defaults;
    optax alone always corrects the bias, decays every leaf, keeps state in the dtype of
    the parameters, and turns to nan where all gradients so far were zero, or the rate
    was. Here, as in prodigyopt, a step without either changes nothing but where the
    schedule stands. `growth_rate` and `slice_p` are not offered.

    Args:
        learning_rate: the factor of d, a number or a schedule. Leave it at 1 and scale
            d by `d_coef`; a schedule goes from 1 downwards.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        b3: the decay of r and s, from 0 to below 1; None for sqrt(b2).
        eps: what is added, times d', to the root of v, 0 or more.
        d0: where d starts, above 0.
        d_coef: what multiplies the estimate, above 0.
        weight_decay: the factor of the decay in the formulas; 0: none.
        use_bias_correction: whether the rate is multiplied by
            sqrt(1 - b2**t) / (1 - b1**t).
        safeguard_warmup: whether the rate is left out of s.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.

    Raises:
        InputError: for settings out of their range, all at once.
    """

    def plain_rate(state: State) -> Array:
        step = state.asked
        given = learning_rate(step) if callable(learning_rate) else learning_rate
        return jnp.asarray(given, jnp.float32)

    def rate(state: State) -> Array:
        factor = _correction(b1, b2, state.count + 1) if use_bias_correction else 1.0
        return plain_rate(state) * factor

    def inner(rate: Callable[[Any], Array]) -> optax.GradientTransformation:
        settings = (b3, eps, d0, d_coef, 0.0, safeguard_warmup)
        return optax.contrib.prodigy(rate, (b1, b2), *settings)

    def step(updates: Any, state: State, params: Any) -> tuple[Any, Any]:
        # optax multiplies by a correction of its own.
        own = _correction_of_optax(b1, b2, state.count + 1)
        return _step(inner(lambda _: rate(state) / own), updates, state, params)

    def init(params: Any) -> State:
        check_real(params)
        return _start(inner(jnp.ones_like), params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "prodigy needs the parameters: update(grads, state, params)"
            )
        params = _float32(params)
        updates, new = placed(
            step, lambda: (params, state), _float32(updates), state, params
        )
        if not is_zero(weight_decay):
            shrink = rate(state) * state.estim_lr * weight_decay
            updates = jax.tree.map(
                lambda u, p, decays: u - shrink * p if decays else u,
                updates,
                params,
                decaying(mask, params),
            )
        return _unless_idle(plain_rate(state), updates, state, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _start(tx: optax.GradientTransformation, params: Any) -> State:
    # Arrays of their own: a buffer cannot be donated twice.
    own = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    made: Any = tx.init(own)
    return State(*made, asked=jnp.zeros((), jnp.int32))


def _step(
    tx: optax.GradientTransformation, updates: Any, state: State, params: Any
) -> tuple[Any, State]:
    """A step of optax's, on the part of the state that is its own."""
    *kept, asked = state
    own: Any = optax.contrib.ProdigyState(*kept)
    changes = tx.update(updates, own, params)
    new: Any = changes[1]
    return changes[0], State(*new, asked=asked)


def _unless_idle(
    rate: Array, updates: Any, state: State, new: State
) -> tuple[Any, State]:
    """No step where no gradient was seen yet, 0 / 0, or the rate is zero."""
    idle = (optax.tree.norm(new.grad_sum, ord=1) == 0) | (rate == 0)
    new = jax.tree.map(lambda old, new: jnp.where(idle, old, new), state, new)
    new = new._replace(asked=optax.safe_increment(state.asked))
    return jax.tree.map(lambda u: jnp.where(idle, 0.0, u), updates), new


def _correction(b1: float, b2: float, t: Array) -> Array:
    return jnp.sqrt(debias(b2, t)) / debias(b1, t)


def _correction_of_optax(b1: float, b2: float, t: Array) -> Array:
    """The same as optax computes it, so that a division by it leaves no error."""
    return (1 - b2**t) ** 0.5 / (1 - b1**t)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
