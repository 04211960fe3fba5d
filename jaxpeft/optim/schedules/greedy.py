"""A learning rate that goes up while an evaluation loss falls: transformers' GreedyLR.

See `jaxpeft.optim.schedules.plateau` for how it is driven.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.schedules import settings as wrong
from jaxpeft.optim.schedules.plateau import (
    Improvement,
    Mode,
    ThresholdMode,
    factor_problem,
    rate_problems,
    scale_by_factor,
)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Greedy:
    improvement: Improvement
    factor: float
    patience: int
    cooldown: int
    warmup: int
    min_lr: float
    max_lr: float
    eps: float
    window_size: int
    reset_start: int
    learning_rate: float

    @property
    def lowest(self) -> float:
        """The lowest factor of the rate."""
        return self.min_lr / self.learning_rate

    @property
    def highest(self) -> float:
        """The highest factor of the rate."""
        return self.max_lr / self.learning_rate

    @property
    def least_change(self) -> float:
        """No smaller change of the factor is made."""
        return self.eps / self.learning_rate

    def problems(self) -> list[str]:
        """What is wrong with the settings; empty texts where nothing is."""
        highest = wrong.positive("max_lr", self.max_lr)
        if not highest and self.max_lr < self.learning_rate:
            highest = (
                f"schedule.max_lr: found {self.max_lr!r}; must be at least "
                f"optimizer.learning_rate, which is {self.learning_rate!r}"
            )
        return [
            *rate_problems(self.learning_rate, self.min_lr),
            highest,
            factor_problem(self.factor),
            wrong.least("patience", self.patience, 0),
            wrong.least("cooldown", self.cooldown, 0),
            wrong.least("warmup", self.warmup, 0),
            wrong.least("eps", self.eps, 0),
            wrong.least("window_size", self.window_size, 1),
            wrong.least("reset_start", self.reset_start, 0),
            *self.improvement.problems(),
        ]


class GreedyState(NamedTuple):
    """The state of `scale_by_greedy`; its settings are no arrays and are not saved.

    Attributes:
        settings: what `scale_by_greedy` was told.
        factor: () float32, what the updates are multiplied by.
        best: () float32, the best value so far.
        good: () int32, evaluations in a row that were better.
        bad: () int32, evaluations in a row that were not better.
        cooling: () int32, evaluations to come that do not count, after a reduction.
        warming: () int32, evaluations to come that do not count, after an increase.
        resets_in: () int32, reductions at the lowest rate before all begins anew.
        window: (n,) float32, the newest values, the oldest one first.
        seen: () int32, how many of them there are.
    """

    settings: _Greedy
    factor: Array
    best: Array
    good: Array
    bad: Array
    cooling: Array
    warming: Array
    resets_in: Array
    window: Array
    seen: Array

    def observed(self, value: Array) -> "GreedyState":
        """The state after an evaluation.

        Args:
            value: () float32, what the evaluation gave, usually a loss.
        """
        s, state = self.settings, self._remember(value)
        value = jnp.sum(state.window) / state.seen.astype(jnp.float32)
        cooling, warming = self.cooling > 0, self.warming > 0
        counts = ~(cooling | warming)
        better = s.improvement.better(value, self.best)
        good = jnp.where(counts & better, self.good + 1, 0)
        bad = jnp.where(counts & ~better, self.bad + 1, 0)
        more, less = good > s.patience, bad > s.patience
        state = state._replace(
            best=jnp.where(counts & better, value, self.best),
            good=jnp.where(more, 0, good),
            bad=jnp.where(less, 0, bad),
            cooling=jnp.where(less, s.cooldown, self.cooling - cooling),
            warming=jnp.where(more, s.warmup, self.warming - warming),
        )
        return state._increased(more)._reduced(less)

    def _remember(self, value: Array) -> "GreedyState":
        size = self.window.shape[0]
        window = jnp.concatenate([self.window[1:], value[None]])
        return self._replace(window=window, seen=jnp.minimum(self.seen + 1, size))

    def _increased(self, now: Array) -> "GreedyState":
        s = self.settings
        higher = jnp.minimum(self.factor / s.factor, s.highest)
        take = now & (higher - self.factor > s.least_change)
        return self._replace(
            factor=jnp.where(take, higher, self.factor),
            resets_in=jnp.where(now, s.reset_start, self.resets_in),
        )

    def _reduced(self, now: Array) -> "GreedyState":
        s = self.settings
        lower = jnp.maximum(self.factor * s.factor, s.lowest)
        take = now & (self.factor - lower > s.least_change)
        factor = jnp.where(take, lower, self.factor)
        at_lowest = now & (factor <= jnp.float32(s.lowest))
        resets_in = self.resets_in - at_lowest
        reset = at_lowest & (resets_in <= 0)
        # The cooldown after a reduction comes after a reset too, as in transformers.
        return self._replace(
            factor=jnp.where(reset, 1.0, factor),
            best=jnp.where(reset, s.improvement.worst, self.best),
            resets_in=jnp.where(reset, s.reset_start, resets_in),
            window=jnp.where(reset, 0.0, self.window),
            seen=jnp.where(reset, 0, self.seen),
        )


def scale_by_greedy(
    mode: Mode = "min",
    factor: float = 0.95,
    patience: int = 10,
    threshold: float = 1e-6,
    threshold_mode: ThresholdMode = "abs",
    cooldown: int = 0,
    warmup: int = 0,
    min_lr: float = 1e-3,
    max_lr: float = 1.0,
    eps: float = 1e-8,
    smooth: bool = False,
    window_size: int = 50,
    reset_start: int = 500,
    *,
    learning_rate: float = 1.0,
) -> optax.GradientTransformation:
    """Multiplies updates by a factor that rises when `observe` sees improvement.

    More than `patience` better evaluations in a row divide it by `factor`, more than
    that many others multiply it: transformers' GreedyLR (arXiv:2512.14527), to the
    rounding of float32, except that a NaN leaves the window of `smooth` in time, and
    that `min_lr` must be below the rate; the default, transformers' own, seldom is.
    State: two float32 and six int32 scalars, and the window.

    Args:
        mode: whether the value should fall ("min") or rise ("max").
        factor: what a reduction multiplies by, above 0 and below 1.
        patience: evaluations in a row that change nothing yet, 0 or more.
        threshold: by how much a better value is better, 0 or more.
        threshold_mode: how the threshold is meant, as such ("abs") or as a share of the
            best value ("rel").
        cooldown: evaluations after a reduction that do not count, 0 or more.
        warmup: evaluations after an increase that do not count, 0 or more.
        min_lr: the lowest learning rate, 0 or more and below `learning_rate`.
        max_lr: the highest learning rate, at least `learning_rate`.
        eps: no smaller change of the learning rate is made, 0 or more.
        smooth: whether the mean of the newest values is judged instead of each.
        window_size: how many newest values `smooth` takes the mean of, 1 or more.
        reset_start: reductions at the lowest rate before all begins anew, 0 or more.
        learning_rate: the optimizer's own, without the factor, above 0.

    Raises:
        InputError: for settings that make no sense, all at once.
    """
    settings = _Greedy(
        Improvement(mode, threshold, threshold_mode),
        factor,
        patience,
        cooldown,
        warmup,
        min_lr,
        max_lr,
        eps,
        window_size,
        reset_start,
        learning_rate,
    )
    wrong.refuse(*settings.problems())

    def init(params: Any) -> Any:
        return GreedyState(
            settings,
            factor=jnp.ones((), jnp.float32),
            best=jnp.full((), settings.improvement.worst, jnp.float32),
            **{name: jnp.zeros((), jnp.int32) for name in _COUNTS},
            resets_in=jnp.full((), reset_start, jnp.int32),
            window=jnp.zeros(window_size if smooth else 1, jnp.float32),
        )

    return optax.GradientTransformation(init, scale_by_factor)


_COUNTS = ("good", "bad", "cooling", "warming", "seen")
