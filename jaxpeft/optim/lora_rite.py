"""LoRA-RITE: Adam with matrices, that does not see how a product is split."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.devices.one_by_one import one_by_one
from jaxpeft.optim.adamw import adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.pairs import PairRule, Two
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    RuleTransformation,
    at_factor,
    debias,
    transformation,
)


class LoRARiteState(NamedTuple):
    """State of one factor (d, r) beside another (n, r), float32.

    Attributes:
        mu: the moving average of its directions, (d, k) with k = min(n, r).
        covariance: the moving average of its gradients' second moments, (k, k).
        basis: of its own columns at the last update, (d, min(d, r)).
    """

    mu: Array
    covariance: Array
    basis: Array


class _Factor(NamedTuple):
    """A factor split into an orthonormal basis and what gives it its size."""

    basis: Array  # (d, k)
    inverse: Array  # the pseudoinverse of the triangle, (r, k)


def _split(p: Array) -> _Factor:
    basis, triangle = jnp.linalg.qr(p)
    largest = max(triangle.shape) * jnp.finfo(jnp.float32).eps
    return _Factor(basis, jnp.linalg.pinv(triangle, rtol=largest))


def lora_rite_rule(
    b1: float | Array,
    b2: float | Array,
    eps: float | Array,
    clip_unmagnified_grad: float | Array | None,
    skip_unmagnified_rms: float | Array | None,
) -> PairRule:
    """The rule of `lora_rite`, which explains the arguments, for two factors."""

    def init(p: Array, other: tuple[int, ...]) -> LoRARiteState:
        (d, r), n = p.shape, other[0]
        k = min(n, r)
        return LoRARiteState(
            jnp.zeros((d, k)), jnp.zeros((k, k)), jnp.zeros((d, min(d, r)))
        )

    def unmagnified(g: Array, other: _Factor) -> Array:
        """The gradient in the other factor's basis, whose size is left out of it."""
        g = g @ other.inverse
        if skip_unmagnified_rms is None:
            return g
        rms = jnp.sqrt(jnp.mean(jnp.square(g)))
        return jnp.where(rms > skip_unmagnified_rms, 0.0, g)

    def measure(g: Two, p: Two) -> Array:
        a, b = map(one_by_one(_split), p)
        squares = (jnp.square(unmagnified(g[0], b)), jnp.square(unmagnified(g[1], a)))
        return sum(map(jnp.sum, squares), jnp.zeros(()))

    def update(g: Two, state: Two, p: Two, ctx: Two, norm: Any) -> tuple[Two, Two]:
        factors = tuple(map(one_by_one(_split), p))
        short = 1.0
        if clip_unmagnified_grad is not None:
            over = norm > clip_unmagnified_grad
            short = jnp.where(over, clip_unmagnified_grad / jnp.where(over, norm, 1), 1)
        new, states = [], []
        for i, j in ((0, 1), (1, 0)):
            x, mu, covariance = _side(
                short * unmagnified(g[i], factors[j]),
                state[i],
                p[i],
                factors[j],
                state[j].basis,
                ctx[i],
                (b1, b2, eps),
            )
            new.append(x)
            states.append(LoRARiteState(mu, covariance, factors[i].basis))
        return (new[0], new[1]), (states[0], states[1])

    return PairRule(init, update, None if clip_unmagnified_grad is None else measure)


def _side(
    g: Array,
    state: LoRARiteState,
    p: Array,
    other: _Factor,
    old: Array,
    ctx: Context,
    numbers: tuple[float | Array, float | Array, float | Array],
) -> tuple[Array, Array, Array]:
    """The new factor, its new average and its new covariance.

    Args:
        g: its gradient, unmagnified and clipped, (d, k).
        state: its state.
        p: the factor.
        other: the other factor.
        old: the other's basis at the last update.
        ctx: its context.
        numbers: b1, b2 and eps.
    """
    b1, b2, eps = numbers
    turn = other.basis.T @ old
    decay1, decay2 = _unbiased(b1, ctx.t), _unbiased(b2, ctx.t)
    moved = turn @ state.covariance @ turn.T
    fresh = g.T @ g / g.shape[0]
    covariance = decay2 * moved + (1 - decay2) * fresh
    covariance = (covariance + covariance.T) / 2
    values, vectors = one_by_one(jnp.linalg.eigh)(covariance)
    root = jnp.sqrt(jnp.maximum(values, 0)) + eps
    # Where both are zero, so is the gradient.
    scales = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
    direction = g @ ((vectors * scales) @ vectors.T)
    mu = decay1 * (state.mu @ turn.T) + (1 - decay1) * direction
    new = ctx.decayed(p) - ctx.learning_rate * (mu @ other.inverse.T)
    return new, mu, covariance


def _unbiased(beta: float | Array, t: Array) -> Array:
    """The decay of an average that needs no correction: 0 at the first update."""
    return beta * debias(beta, t - 1) / debias(beta, t)


@in_range
def lora_rite(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clip_unmagnified_grad: float | None = 1.0,
    skip_unmagnified_rms: float | None = 1.0,
    adam_learning_rate_factor: float = 1.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Adam with a matrix for second moment, in bases that both factors of LoRA give.

        a = Q_a R_a,  b^T = Q_b R_b (QR);  g = g_a R_b^+  (of b: g_b^T R_a^+)
        P = Q_b^T Q_b', by the basis of the last update
        V <- b2 P V P^T + (1 - b2) g^T g / rows,  u = g V^(-1/2)
        M <- b1 M P^T + (1 - b1) u
        a <- a (1 - rate * weight_decay) - rate M R_b^(+T), and b likewise

    Averages have corrected decays instead of corrections, b (1 - b^(t-1)) / (1 - b^t).
    For any invertible r x r matrix T, a T and T^-1 b make the same course of the
    product a b. A gradient whose root mean square, in its basis, is above
    `skip_unmagnified_rms` counts as zero, and all of them together are clipped to the
    norm `clip_unmagnified_grad`; `max_grad_norm`, which clips before and by the factors
    as they are, would make the split matter: leave it null.

    From Yen et al., 2024, arXiv 2410.20625, and equal to the authors' code for torch
    (`lora_rite.py`) with its defaults; their correction for what leaves the subspace,
    which is off there by default, is not offered, and tiny eigenvalues that rounding
    makes negative count as zero.

    State: of a factor M, V and Q in float32, about 8 bytes a parameter. a and b are the
    leaves of such names side by side; others get AdamW.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of M, from 0 to below 1.
        b2: the decay of V, from 0 to below 1.
        eps: what is added to the roots of V's eigenvalues, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        clip_unmagnified_grad: the norm that all gradients in their bases are clipped
            to; None: they are not.
        skip_unmagnified_rms: the root mean square above which one counts as zero; None:
            none does.
        adam_learning_rate_factor: AdamW's rate over the common one, 0 or more.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    alone = at_factor(adamw_rule(b1, b2, 1e-8), adam_learning_rate_factor)
    pair = lora_rite_rule(b1, b2, eps, clip_unmagnified_grad, skip_unmagnified_rms)
    return transformation(
        alone._replace(pair=pair),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
