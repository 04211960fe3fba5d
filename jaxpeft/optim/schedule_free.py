"""Schedule-Free optimization: averages take the place of decay (Defazio et al., 2024).

Three sequences run side by side: z takes the optimizer's steps, x is the average of z,
and gradients are taken between the two, at y = (1 - b1) z + b1 x. The parameters in
training are y. The state keeps z, and x follows from both: `evaluation_params`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.leaves import without_boxes
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleState,
    RuleTransformation,
    debias,
    transformation,
)


class Scalars(NamedTuple):
    """What all tensors share, each () float32.

    Attributes:
        b1: how far y is from z, a setting that `evaluation_params` reads here.
        weight_sum: the sum of the averaging weights so far.
        lr_max: the highest rate so far.
        scale: the rate of the last update over the learning rate.
        c: the last z's share in the average.
    """

    b1: Array
    weight_sum: Array
    lr_max: Array
    scale: Array
    c: Array


class ScheduleFreeState(NamedTuple):
    """State of one tensor, float32 and shaped like it.

    Attributes:
        z: the sequence that takes the optimizer's steps.
        nu: the moving average of the squares of gradients; None for SGD.
    """

    z: Array
    nu: Array | None


Scale = Callable[[Array], Array]
Direction = Callable[[Array, Any, Array], Array]


def schedule_free_rule(
    b1: float,
    b2: float | None,
    r: float,
    weight_lr_power: float,
    scale: Scale,
    direction: Direction,
) -> Rule:
    """The rule that the three schedule-free optimizers share.

    Args:
        b1: how far y is from z, above 0 and below 1.
        b2: the decay of the average of squares, None for no such average.
        r: the power of t in the averaging weights.
        weight_lr_power: the power of the highest rate so far in them.
        scale: from t to the factor of the learning rate.
        direction: from the gradient, the average of squares and t to the step of z
            without decay.
    """

    def init(p: Array, place: Place) -> ScheduleFreeState:
        # A copy: the parameter's own buffer may be donated beside the state.
        nu = None if b2 is None else jnp.zeros_like(p)
        return ScheduleFreeState(jnp.array(p, copy=True), nu)

    def advance(shared: Scalars, rate: Array, t: Array, extra: Any) -> Scalars:
        factor = scale(t)
        lr_max = jnp.maximum(shared.lr_max, rate * factor)
        weight = jnp.power(t.astype(jnp.float32), r) * jnp.power(
            lr_max, weight_lr_power
        )
        total = shared.weight_sum + weight
        c = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
        own_b1: Any = given_b1 if traced else shared.b1
        return Scalars(own_b1, total, lr_max, factor, c)

    def update(
        g: Array, state: ScheduleFreeState, y: Array, ctx: Context
    ) -> tuple[Array, ScheduleFreeState]:
        rate, c = ctx.learning_rate * ctx.shared.scale, ctx.shared.c
        z, nu = state
        if nu is not None and b2 is not None:
            nu = b2 * nu + (1 - b2) * jnp.square(g)
        step = direction(g, nu, ctx.t)
        if ctx.decays:
            step = step + ctx.weight_decay * y
        y = y + c * (z - y) + (rate * (b1 * (1 - c) - 1)) * step
        return y, ScheduleFreeState(z - rate * step, nu)

    traced = isinstance(b1, jax.Array)
    given_b1 = b1.astype(jnp.float32) if traced else np.float32(b1)
    start = Scalars._make(map(np.float32, (0.0, 0.0, -1.0, 0.0, 0.0)))
    return Rule(init, update, start._replace(b1=given_b1), advance)


@in_range
def schedule_free_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> RuleTransformation:
    """Schedule-Free gradient descent.

        rate_t = rate * min(1, t / warmup_steps)
        w = t**r * max(rate_1, ..., rate_t)**weight_lr_power;  W <- W + w;  c = w / W
        s = g + weight_decay * y
        y <- y + c (z - y) + rate_t (momentum (1 - c) - 1) s
        z <- z - rate_t * s

    The parameters in training are y; evaluate and export `evaluation_params`, and never
    write those back.

    State: z in float32, 4 bytes a parameter, and a few float32 scalars. Equal to
    schedulefree's `SGDScheduleFree`, except that the reference gives z the dtype of the
    parameters and takes fractions for `warmup_steps`: 0.1 there begins with ten times
    the rate. Here they raise InputError.

    Args:
        learning_rate: the rate, which should be constant: the average does the work of
            a decay. A schedule is followed all the same, as the reference follows its
            caller's.
        momentum: how far y is from z, above 0 and below 1.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        warmup_steps: the updates of a linear warmup whose first step is not 0; 0: none.
        r: the power of t in the averaging weights, 0 or more.
        weight_lr_power: the power of the highest rate so far in them, 0 or more.

    Raises:
        InputError: for settings out of their range, all at once; for a momentum that is
            not between 0 and 1, and for `warmup_steps` that are no whole number of 0 or
            more.
    """
    _check("momentum", momentum)
    rule = schedule_free_rule(
        momentum, None, r, weight_lr_power, _warmup(warmup_steps), lambda g, nu, t: g
    )
    return transformation(
        rule, learning_rate, weight_decay=weight_decay, mask=mask, layout=layout
    )


@in_range
def schedule_free_adamw(
    learning_rate: optax.ScalarOrSchedule = 2.5e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> RuleTransformation:
    """Schedule-Free AdamW: `schedule_free_sgd` with the gradient over its history.

        v <- b2 v + (1 - b2) g**2
        s = g / (sqrt(v / (1 - b2**t)) + eps) + weight_decay * y

    and all else as there, b1 for the momentum. State: z and v in float32, 8 bytes a
    parameter. Equal to schedulefree's `AdamWScheduleFree`, with the exceptions named
    there.

    Args:
        learning_rate: the rate, which should be constant, see `schedule_free_sgd`.
        b1: how far y is from z, above 0 and below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        warmup_steps: the updates of a linear warmup whose first step is not 0; 0: none.
        r: the power of t in the averaging weights, 0 or more.
        weight_lr_power: the power of the highest rate so far in them, 0 or more.

    Raises:
        InputError: for settings out of their range, all at once; for a b1 that is not
            between 0 and 1, and for `warmup_steps` that are no whole number of 0 or
            more.
    """
    _check("b1", b1)

    def direction(g: Array, nu: Array, t: Array) -> Array:
        return g / (jnp.sqrt(nu / debias(b2, t)) + eps)

    rule = schedule_free_rule(
        b1, b2, r, weight_lr_power, _warmup(warmup_steps), direction
    )
    return transformation(
        rule, learning_rate, weight_decay=weight_decay, mask=mask, layout=layout
    )


@in_range
def schedule_free_radam(
    learning_rate: optax.ScalarOrSchedule = 2.5e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    silent_sgd_phase: bool = True,
) -> RuleTransformation:
    """Schedule-Free RAdam: AdamW whose early steps are as small as v is uncertain.

        rho = rho_inf - 2 t b2**t / (1 - b2**t),  rho_inf = 2 / (1 - b2) - 1
        rate_t = rate * sqrt((rho - 4) (rho - 2) rho_inf
                             / ((rho_inf - 4) (rho_inf - 2) rho)) where rho > 4

    and all else as in `schedule_free_adamw`; the rectification is the warmup. While rho
    is at most 4, the first 4 updates with the usual b2, only v changes, unless
    `silent_sgd_phase` is off. State: 8 bytes a parameter. Equal to schedulefree's
    `RAdamScheduleFree`, z's dtype excepted.

    Args:
        learning_rate: the rate, which should be constant, see `schedule_free_sgd`.
        b1: how far y is from z, above 0 and below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        r: the power of t in the averaging weights, 0 or more.
        weight_lr_power: the power of the highest rate so far in them, 0 or more.
        silent_sgd_phase: whether only v changes while rho is at most 4; if not, those
            updates are plain gradient steps of the full rate.

    Raises:
        InputError: for settings out of their range, all at once, and for a b1 that is
            not between 0 and 1.
    """
    _check("b1", b1)

    def rectification(t: Array) -> Array:
        return _rectification(t, b2, 0.0 if silent_sgd_phase else 1.0)

    def direction(g: Array, nu: Array, t: Array) -> Array:
        adaptive = g / (jnp.sqrt(nu / debias(b2, t)) + eps)
        return jnp.where(_length(t, b2) > 4, adaptive, g)

    rule = schedule_free_rule(b1, b2, r, weight_lr_power, rectification, direction)
    return transformation(
        rule, learning_rate, weight_decay=weight_decay, mask=mask, layout=layout
    )


def evaluation_params(opt_state: Any, params: Any) -> Any:
    """The averages x = y + (1 - 1 / b1) (z - y): what to evaluate and to export.

    Go on training from y, never from the result: in 16 bits a round trip loses digits
    every time.

    Args:
        opt_state: any state that a schedule-free one is somewhere inside of, as in
            optax.chain, optax.partition or optax.MultiSteps.
        params: y, the tree in training.

    Returns:
        A tree like `params`, in its dtypes. Where there is no schedule-free state, and
            for leaves that it does not train, it holds the params themselves.
    """
    boxes, treedef = jax.tree.flatten(params, is_leaf=tree.is_box)
    leaves = [tree.opened(x) for x in boxes]
    for state in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free):
        if _is_schedule_free(state):
            states = map(without_boxes, treedef.flatten_up_to(state.leaves))
            b1 = tree.opened(state.shared.b1)
            leaves = [_average(y, s, b1) for y, s in zip(leaves, states, strict=True)]
    return treedef.unflatten([tree.boxed(x, box) for x, box in zip(leaves, boxes)])


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, RuleState) and isinstance(node.shared, Scalars)


def _average(y: Array, state: Any, b1: Array) -> Array:
    if not isinstance(state, ScheduleFreeState):  # a leaf that another one trains
        return y
    wide = y.astype(jnp.float32)
    return (wide + (1 - 1 / b1) * (state.z - wide)).astype(y.dtype)


def _warmup(steps: int) -> Scale:
    return lambda t: jnp.minimum(1.0, t.astype(jnp.float32) / max(1, steps))


def _length(t: Array, b2: float) -> Array:
    """rho of `schedule_free_radam`, () float32.

    Its two terms nearly cancel while t is small, and whether it is above 4 decides
    what happens: so it is the sum of what is exact and of x -> 1 - x / (exp(x) - 1),
    from its series where x is small.
    """
    if isinstance(b2, jax.Array):
        log, constant = -jnp.log(b2), _length_constant(1 - b2)
        slope = 2 / log
    else:
        log = -np.log(b2)
        constant = np.float32(2 / (1 - b2) - 1 - 2 / log)
        log, slope = np.float32(log), np.float32(2 / log)
    x = t.astype(jnp.float32) * log
    series = x / 2 - x**2 / 12 + x**4 / 720 - x**6 / 30240
    far = jnp.where(x < 0.5, 1.0, x)
    rest = jnp.where(x < 0.5, series, 1 - far / jnp.expm1(far))
    return constant + slope * rest


def _length_constant(e: Array | float) -> Array:
    """2 / e - 1 + 2 / ln(1 - e), () float32, from its series where e is small."""
    far = jnp.where(e < 0.05, 0.5, e)
    series = e / 6 + e**2 / 12 + 19 * e**3 / 360
    return jnp.where(e < 0.05, series, 2 / far - 1 + 2 / jnp.log(1 - far))


def _rectification(t: Array, b2: float, early: float) -> Array:
    """The rate's factor in RAdam; `early` where the second moment is too young."""
    longest: Any = 2 / (1 - b2) - 1
    longest = longest if isinstance(b2, jax.Array) else np.float32(longest)
    rho = _length(t, b2)
    safe = jnp.where(rho > 4, rho, 5.0)
    square = (safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe)
    return jnp.where(rho > 4, jnp.sqrt(square), early)


def _check(key: str, b1: Any) -> None:
    if is_zero(b1):  # the rest of its range is looked at by `in_range`
        raise InputError(f"optimizer.{key}: found {b1}; must be between 0 and 1")
