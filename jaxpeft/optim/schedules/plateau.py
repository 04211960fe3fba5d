"""A learning rate that an evaluation loss lowers: torch's ReduceLROnPlateau.

The rate's factor lives in the optimizer's state, so that checkpoints carry it and a
resumed run goes on exactly: `scale_by_plateau` comes after an optimizer and multiplies
its updates by the factor; `observe` takes in the value of an evaluation, between steps.
Scaling the updates is scaling the rate for every optimizer whose update is linear in
it, weight decay included; all of ours are, but for those that average parameters.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpeft import tree
from jaxpeft.optim.leaves import without_boxes
from jaxpeft.optim.schedules import settings as wrong

Mode = Literal["min", "max"]
ThresholdMode = Literal["rel", "abs"]


@runtime_checkable
class Observing(Protocol):
    """The state of what evaluations steer, a NamedTuple of arrays."""

    def observed(self, value: Array) -> Any:
        """The state after an evaluation, of the same shapes and dtypes.

        Args:
            value: () float32, what the evaluation gave.
        """


@runtime_checkable
class Scaling(Observing, Protocol):
    """The state of a transformation that multiplies the updates.

    Attributes:
        factor: () float32, what the updates are multiplied by.
    """

    factor: Any


@jax.tree_util.register_static
@dataclass(frozen=True)
class Improvement:
    """What counts as a value better than the best so far; the same in torch.

    Attributes:
        mode: whether a lower value ("min") or a higher one ("max") is better.
        threshold: by how much at least a better value is better.
        threshold_mode: how the threshold is meant, as a share of the best value ("rel")
            or as such ("abs").
    """

    mode: str
    threshold: float
    threshold_mode: str

    def problems(self) -> list[str]:
        """What is wrong with the settings; empty texts where nothing is."""
        return [
            wrong.choice("mode", self.mode, ("min", "max")),
            wrong.least("threshold", self.threshold, 0),
            wrong.choice("threshold_mode", self.threshold_mode, ("rel", "abs")),
        ]

    @property
    def worst(self) -> float:
        """The best value before there is one."""
        return math.inf if self.mode == "min" else -math.inf

    def better(self, value: Array, best: Array) -> Array:
        """Whether a value is better than the best one; a NaN never is.

        Args:
            value: () float32, the newest value.
            best: () float32, the best value so far.
        """
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            bound = best * (1 + sign * self.threshold)
        else:
            bound = best + sign * self.threshold
        return value < bound if self.mode == "min" else value > bound


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Plateau:
    improvement: Improvement
    factor: float
    patience: int
    cooldown: int
    min_lr: float
    eps: float
    learning_rate: float

    @property
    def lowest(self) -> float:
        """The lowest factor of the rate."""
        return self.min_lr / self.learning_rate

    @property
    def least_change(self) -> float:
        """No smaller change of the factor is made."""
        return self.eps / self.learning_rate

    def problems(self) -> list[str]:
        """What is wrong with the settings; empty texts where nothing is."""
        return [
            *rate_problems(self.learning_rate, self.min_lr),
            factor_problem(self.factor),
            wrong.least("patience", self.patience, 0),
            wrong.least("cooldown", self.cooldown, 0),
            wrong.least("eps", self.eps, 0),
            *self.improvement.problems(),
        ]


class PlateauState(NamedTuple):
    """The state of `scale_by_plateau`; its settings are no arrays and are not saved.

    Attributes:
        settings: what `scale_by_plateau` was told.
        factor: () float32, what the updates are multiplied by.
        best: () float32, the best value so far.
        bad: () int32, evaluations in a row that were no better.
        cooling: () int32, evaluations to come that do not count as bad.
    """

    settings: _Plateau
    factor: Array
    best: Array
    bad: Array
    cooling: Array

    def observed(self, value: Array) -> "PlateauState":
        """The state after an evaluation.

        Args:
            value: () float32, what the evaluation gave, usually a loss.
        """
        s = self.settings
        better = s.improvement.better(value, self.best)
        cooling = self.cooling > 0
        bad = jnp.where(better | cooling, 0, self.bad + 1)
        reduce = bad > s.patience
        lower = jnp.maximum(self.factor * s.factor, s.lowest)
        take = reduce & (self.factor - lower > s.least_change)
        return PlateauState(
            s,
            factor=jnp.where(take, lower, self.factor),
            best=jnp.where(better, value, self.best),
            bad=jnp.where(reduce, 0, bad),
            cooling=jnp.where(reduce, s.cooldown, self.cooling - cooling),
        )


def scale_by_plateau(
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: ThresholdMode = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
    mode: Mode = "min",
    *,
    learning_rate: float = 1.0,
) -> optax.GradientTransformation:
    """Multiplies updates by a factor that falls when `observe` sees no improvement.

    More than `patience` evaluations in a row that are not better than the best one
    multiply it by `factor`; the `cooldown` evaluations after that do not count. It is
    torch's ReduceLROnPlateau, to the rounding of float32 (torch: float64).

    State: two float32 and two int32 scalars, whatever the parameters.

    Args:
        factor: what a reduction multiplies by, above 0 and below 1.
        patience: evaluations in a row that change nothing yet, 0 or more.
        threshold: by how much a better value is better, 0 or more.
        threshold_mode: how the threshold is meant, as a share of the best value ("rel")
            or as such ("abs").
        cooldown: evaluations after a reduction that do not count, 0 or more.
        min_lr: the lowest learning rate, 0 or more and below `learning_rate`.
        eps: no smaller change of the learning rate is made, 0 or more.
        mode: whether the value should fall ("min") or rise ("max").
        learning_rate: the optimizer's own, without the factor, above 0.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings = _Plateau(
        Improvement(mode, threshold, threshold_mode),
        factor,
        patience,
        cooldown,
        min_lr,
        eps,
        learning_rate,
    )
    wrong.refuse(*settings.problems())

    def init(params: Any) -> Any:
        return PlateauState(
            settings,
            factor=jnp.ones((), jnp.float32),
            best=jnp.full((), settings.improvement.worst, jnp.float32),
            bad=jnp.zeros((), jnp.int32),
            cooling=jnp.zeros((), jnp.int32),
        )

    return optax.GradientTransformation(init, scale_by_factor)


def scale_by_factor(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """The update of a transformation whose state has a factor: the state stays.

    Args:
        updates: the tree of updates, whose dtypes stay.
        state: a `Scaling`.
        params: not used.

    Returns:
        (the updates times the factor, the state).
    """
    scaled = jax.tree.map(lambda u: (u * state.factor).astype(u.dtype), updates)
    return scaled, state


def observe(opt_state: Any, value: ArrayLike, loss: ArrayLike | None = None) -> Any:
    """The optimizer state after an evaluation gave `value`, usually a loss.

    What multiplies the updates, a schedule, follows the value; an optimizer that looks
    at evaluations wants the loss in any case.

    It looks for states that evaluations steer anywhere in `opt_state` and leaves all
    else untouched, the very same arrays. Shapes, dtypes and shardings stay, so that a
    compiled step goes on with the result. Works inside `jit` too.

    Args:
        opt_state: the state of any optimizer.
        value: (), what the evaluation gave.
        loss: (), its loss; None: the value is the loss.
    """
    loss = value if loss is None else loss

    def seen(node: Any) -> Any:
        if not isinstance(node, Observing):
            return node
        return _observed(node, value if isinstance(node, Scaling) else loss)

    return jax.tree.map(
        seen, opt_state, is_leaf=lambda node: isinstance(node, Observing)
    )


def observes(opt_state: Any) -> bool:
    """Whether evaluations steer anything in an optimizer's state.

    Args:
        opt_state: the state; shapes in place of arrays do.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda n: isinstance(n, Observing))
    return any(isinstance(node, Observing) for node in nodes)


def rate_factor(opt_state: Any) -> Array:
    """What evaluations have made of the learning rate, () float32: 1.0 without them.

    Args:
        opt_state: the state of any optimizer.
    """
    factor = jnp.ones((), jnp.float32)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda n: isinstance(n, Scaling))
    for node in nodes:
        if isinstance(node, Scaling):
            factor = factor * tree.opened(node.factor)
    return factor


def _observed(state: Any, value: ArrayLike) -> Any:
    """The state after an evaluation, in the boxes that it is in (see `tree.is_box`)."""
    new = _new(without_boxes(state), value)
    return jax.tree.map(
        lambda old, x: tree.boxed(x, old), state, new, is_leaf=tree.is_box
    )


def _new(state: Any, value: ArrayLike) -> Any:
    if any(isinstance(x, Tracer) for x in [value, *jax.tree.leaves(state)]):
        return state.observed(jnp.asarray(value, jnp.float32))
    # From the host, so that it goes wherever the state is.
    new = _observed_on_device(state, np.asarray(value, np.float32))
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), new, state)


@jax.jit
def _observed_on_device(state: Any, value: Array) -> Any:
    return state.observed(value)


def rate_problems(learning_rate: float, min_lr: float) -> list[str]:
    """What is wrong with a rate to scale and its lowest value; empty if nothing is.

    Args:
        learning_rate: the optimizer's own, without a factor.
        min_lr: the lowest rate.
    """
    low = wrong.least("min_lr", min_lr, 0)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        rate = (
            f"optimizer.learning_rate: found {learning_rate!r}; must be a number above "
            "0, for evaluations to change it"
        )
        return [rate, low]
    if not low and min_lr >= learning_rate:
        low = (
            f"schedule.min_lr: found {min_lr!r}; must be below "
            f"optimizer.learning_rate, which is {learning_rate!r}: set schedule.min_lr"
        )
    return [low]


def factor_problem(factor: float) -> str:
    """What is wrong with the factor of a reduction, which must lower the rate.

    Args:
        factor: what a reduction multiplies the rate by.

    Returns:
        A message, empty where nothing is wrong.
    """
    if factor >= 1:
        return f"schedule.factor: found {factor!r}; must be below 1"
    return wrong.positive("factor", factor)
