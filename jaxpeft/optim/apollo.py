"""APOLLO: a gradient scaled as Adam in a random low rank would (Zhu et al., 2024)."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.projection import (
    LateAdam,
    Projector,
    Targets,
    project,
    projected,
    random_projector,
    reduced_axis,
    svd_projector,
)
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
)

# By how much the norm of a step may exceed that of the last.
_GROWTH = 1.01


class ApolloState(NamedTuple):
    """State of one projected matrix, float32.

    Attributes:
        mu: (channels, rank), the moving average of the projected gradients.
        nu: (channels, rank), the moving average of their squares.
        norm: (), the norm of the last scaled gradient, 0 before the first.
        projection: (reduced, rank) where it comes from a decomposition, else None.
    """

    mu: Array
    nu: Array
    norm: Array
    projection: Array | None


def apollo_rule(
    adam: LateAdam,
    projector: Projector,
    targets: Targets,
    rank: int,
    scale: float,
    scale_type: Literal["channel", "tensor"],
    limited: bool = True,
    strict: bool = False,
) -> Rule:
    """The rule of `apollo`, whatever its projections come from.

    Args:
        adam: the Adam of the projected gradients, and of the tensors left out.
        projector: where the projections come from.
        targets: which matrices are projected.
        rank: the length that their reduced axis is projected to.
        scale: the factor whose root multiplies the step.
        scale_type: a factor for each channel, or one for the whole tensor.
        limited: whether the growth of the step's norm is limited.
        strict: whether a first norm of zero limits the steps after it, as in the
            reference.
    """

    def init(p: Array, place: Place) -> ApolloState | AdamState:
        if not targets.include(place.name, p.shape):
            return AdamState(jnp.zeros_like(p), jnp.zeros_like(p))
        reduced = reduced_axis(p.shape)
        low = (p.shape[1 - reduced], rank)
        stored = (p.shape[reduced], rank) if projector.stored else None
        return ApolloState(
            jnp.zeros(low, p.dtype),
            jnp.zeros(low, p.dtype),
            jnp.zeros((), p.dtype),
            None if stored is None else jnp.zeros(stored, p.dtype),
        )

    def update(g: Array, state: Any, p: Array, ctx: Context) -> tuple[Array, Any]:
        if isinstance(state, AdamState):
            u, mu, nu = adam.direction(g, *state)
            return adam.moved(p, u, ctx), AdamState(mu, nu)
        projection = projector.projection(g, state.projection, ctx)
        low = project(g, projection)
        u, mu, nu = adam.direction(low, state.mu, state.nu)
        scaled, norm = g * _factors(u, low, g.shape, scale_type), state.norm
        if limited:
            scaled, norm = _limited(scaled, norm, ctx, strict)
        p = adam.moved(p, scaled * scale**0.5, ctx)
        kept = projection if projector.stored else None
        return p, ApolloState(mu, nu, norm, kept)

    return Rule(init, update)


def _factors(u: Array, low: Array, shape: tuple[int, ...], scale_type: str) -> Array:
    """By how much Adam changes the norm, of each channel or of all in one."""
    axis = 1 if scale_type == "channel" else None
    factors = _norm(u, axis) / (_norm(low, axis) + 1e-8)
    if scale_type == "tensor":
        return factors
    return jnp.expand_dims(factors, reduced_axis(shape))


def _limited(
    scaled: Array, last: Array, ctx: Context, strict: bool
) -> tuple[Array, Array]:
    """A scaled gradient whose norm grew by 1 % at most, and that norm."""
    norm = _norm(scaled, None)
    first = ctx.t == 1 if strict else last == 0
    growth = jnp.maximum(norm / (last + 1e-8), _GROWTH) / _GROWTH
    growth = jnp.where(first, 1.0, growth)
    new = norm / growth
    return scaled / growth, new if strict else jnp.where(norm == 0, last, new)


def _norm(x: Array, axis: int | None) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axis))


@in_range
def apollo(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 256,
    scale: float = 1.0,
    scale_type: Literal["channel", "tensor"] = "channel",
    update_proj_gap: int = 200,
    proj: Literal["random", "svd"] = "random",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    disable_nl: bool = False,
    scale_front: bool = False,
    seed: int = 0,
    target_modules: str | list[str] | None = None,
    strict: bool = False,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """The raw gradient, its channels scaled as Adam would scale those of a projection.

        low = g P                                 (channels, rank)
        m <- b1 m + (1 - b1) low,  v <- b2 v + (1 - b2) low**2,  u = m / (sqrt(v) + eps)
        f_j = |u_j| / (|low_j| + 1e-8)            of a channel; "tensor": of the whole
        s = f g / l,  l = max(|f g| / (n + 1e-8), 1.01) / 1.01,  n <- |s|
        p <- p - rate sqrt(1 - b2**t) / (1 - b1**t) sqrt(scale) s
        p <- p - rate weight_decay p

    The channels are the longer side of the matrix, of a square one its outputs (see
    `projection`). There is a new P whenever (t - 1) % update_proj_gap == 0, and the
    moments stay. n limits the growth of the step; at first there is no limit.

    Tensors that are not projected get plain AdamW with these formulas. State: 8 rank
    bytes a channel, and 4 bytes a matrix; a random P is derived from `seed`, the
    tensor's index and the step, not stored; a P of "svd" adds 4 rank bytes for each row
    of the reduced side. Other tensors: 8 bytes a parameter, float32.

    apollo-torch's APOLLOAdamW is the reference, whose random numbers torch draws. A
    deviation: there the first norm is n even where it is zero, and then growth by 1 %
    from 1e-8 freezes the tensor for a thousand steps (LoRA's A, whose first gradient is
    zero). Here norms of zero are passed over; `strict` does as the reference does.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        rank: the columns of P, 1 or more.
        scale: the factor whose root multiplies the step, above 0.
        scale_type: a factor f for each channel, or one for the whole tensor.
        update_proj_gap: the updates that one P serves, 1 or more.
        proj: where P comes from. "random": its entries are N(0, 1) / sqrt(rank). "svd":
            the leading singular vectors of the gradient.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        correct_bias: whether the rate has the two factors 1 - b**t.
        disable_nl: whether the limit on the growth of the step is removed for good.
        scale_front: whether to scale before the limiter, which changes nothing (the
            factor cancels) and is accepted without effect.
        seed: the seed of the random projections.
        target_modules: which matrices are projected, by default all of them (see
            `projection.Targets`).
        strict: whether a first norm of zero counts, as in the reference.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once; at `init` for a rank
            above a targeted matrix's shorter side and for targets that match no matrix.
    """
    targets = Targets(target_modules)
    if proj == "random":
        projector = random_projector(rank, update_proj_gap, seed)
    else:
        projector = svd_projector(rank, update_proj_gap)
    rule = apollo_rule(
        LateAdam(b1, b2, eps, correct_bias),
        projector,
        targets,
        rank,
        scale,
        scale_type,
        limited=not disable_nl,
        strict=strict,
    )
    return projected(
        rule,
        targets,
        rank,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )


@in_range
def apollo_mini(
    learning_rate: optax.ScalarOrSchedule,
    scale: float = 128.0,
    update_proj_gap: int = 200,
    proj: Literal["random", "svd"] = "random",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    disable_nl: bool = False,
    scale_front: bool = False,
    seed: int = 0,
    target_modules: str | list[str] | None = None,
    strict: bool = False,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """`apollo` of rank 1 with one factor for the whole tensor.

    State of a targeted matrix: 8 bytes a channel, about what SGD has; everything else,
    the arguments and errors too, is said at `apollo`. The scale of 128 stands in for
    the ratio that a rank of 1 underestimates.
    """
    return apollo(
        learning_rate,
        rank=1,
        scale=scale,
        scale_type="tensor",
        update_proj_gap=update_proj_gap,
        proj=proj,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        correct_bias=correct_bias,
        disable_nl=disable_nl,
        scale_front=scale_front,
        seed=seed,
        target_modules=target_modules,
        strict=strict,
        mask=mask,
        layout=layout,
    )
