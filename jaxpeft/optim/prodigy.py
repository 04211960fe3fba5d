"""Prodigy: AdamW that estimates its own learning rate (Mishchenko & Defazio, 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.explicit import placed
from jaxpeft.optim.leaves import check_real, decaying
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import debias


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
    the parameters, and turns to nan where all gradients so far were zero (here, as in
    prodigyopt, such a step changes nothing). `growth_rate` and `slice_p` are not
    offered.

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

    def rate(count: Any) -> Array:
        given = learning_rate(count) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(given, jnp.float32)
        t = count + 1
        return rate * _correction(b1, b2, t) if use_bias_correction else rate

    def uncorrected(count: Any) -> Array:
        # optax multiplies by a correction of its own.
        return rate(count) / _correction_of_optax(b1, b2, count + 1)

    inner = optax.contrib.prodigy(
        uncorrected, (b1, b2), b3, eps, d0, d_coef, 0.0, safeguard_warmup
    )

    def init(params: Any) -> Any:
        check_real(params)
        # Arrays of their own: a buffer cannot be donated twice.
        return inner.init(
            jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "prodigy needs the parameters: update(grads, state, params)"
            )
        params = _float32(params)
        updates, new = placed(
            inner.update, lambda: (params, state), _float32(updates), state, params
        )
        if not is_zero(weight_decay):
            shrink = rate(state.count) * state.estim_lr * weight_decay
            updates = jax.tree.map(
                lambda u, p, decays: u - shrink * p if decays else u,
                updates,
                params,
                decaying(mask, params),
            )
        return _unless_idle(updates, state, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _unless_idle(updates: Any, state: Any, new: Any) -> tuple[Any, Any]:
    """No step while all gradients so far were zero: nothing to estimate from, 0 / 0."""
    idle = optax.tree.norm(new.grad_sum, ord=1) == 0
    new = jax.tree.map(lambda old, new: jnp.where(idle, old, new), state, new)
    return jax.tree.map(lambda u: jnp.where(idle, 0.0, u), updates), new


def _correction(b1: float, b2: float, t: Array) -> Array:
    return jnp.sqrt(debias(b2, t)) / debias(b1, t)


def _correction_of_optax(b1: float, b2: float, t: Array) -> Array:
    """The same as optax computes it, so that a division by it leaves no error."""
    return (1 - b2**t) ** 0.5 / (1 - b1**t)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
