"""The programs of several runs over one frozen base, and the arrays that they take.

What is each run's own is stacked along a new first axis, "the points"; what they share
is not.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft import hardware, optim, tree
from jaxpeft.assembly import step
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import Frozen, TrainState
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import Objective
from jaxpeft.optim.rule import Leafwise
from jaxpeft.sweep import padding


@dataclass(frozen=True)
class Tuning:
    """The numbers in which the optimizers of several runs differ, as arrays.

    Attributes:
        parts: the first run's optimizer.
        arrays: `rates`, those of each run's updates stacked, and where they differ
            `decays` (runs,) float32.
    """

    parts: optim.Parts
    arrays: dict[str, Array]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Tuning":
        """The numbers of several runs' optimizers."""
        rules = [_rule(run.updates.parts) for run in runs]
        arrays = {"rates": jnp.stack([jnp.asarray(run.rates) for run in runs])}
        decays = [rule.weight_decay for rule in rules]
        if len(set(decays)) > 1:
            arrays["decays"] = jnp.asarray(decays, jnp.float32)
        return cls(runs[0].updates.parts, arrays)

    def transformation(self, own: dict[str, Array]) -> optax.GradientTransformation:
        """The chain of transformations of one run.

        Args:
            own: the run's numbers: `arrays` without their first axis.
        """
        rule = _rule(self.parts)
        tuned = rule.tuned(
            lambda count: own["rates"][count], own.get("decays", rule.weight_decay)
        )
        return self.parts._replace(optimizer=tuned.transformation()).chain()


def _rule(parts: optim.Parts) -> Leafwise:
    assert parts.leafwise is not None  # as `grid.together` has seen to
    return parts.leafwise


def fixed(runs: Sequence[Run]) -> tuple[Any, Frozen]:
    """The arrays that no step changes: the base's, and each run's own stacked.

    Returns:
        (the params of the base, what is each run's own), with holes in both.
    """

    def parts(run: Run) -> tuple[Any, Frozen]:
        params = tree.combine(run.trainable, run.frozen)
        trains = run.places.mask
        shared = jax.tree.map(lambda of, t: of and not t, run.of_base, trains)
        own = jax.tree.map(lambda of, t: not of and not t, run.of_base, trains)
        theirs = Frozen(tree.partition(params, own)[0], run.held)
        return tree.partition(params, shared)[0], theirs

    return parts(runs[0])[0], stacked([parts(run)[1] for run in runs])


def _whole(own: Frozen, shared: Any) -> Frozen:
    return own._replace(params=tree.combine(own.params, shared))


def stacked(trees: Sequence[Any]) -> Any:
    """The trees as one, with a new first axis, in the structure of the first one.

    Their structures may differ in what files say of an adapter, such as `lora_alpha`,
    and no step looks at. Arrays may differ in a rank: they are padded with zeros.

    Args:
        trees: of arrays.
    """
    leaves = zip(*(jax.tree.leaves(tree) for tree in trees))
    stacks = [jnp.stack(padding.widened(arrays)) for arrays in leaves]
    return jax.tree.unflatten(jax.tree.structure(trees[0]), stacks)


def at(index: Any) -> Callable[[Any], Any]:
    """The function that takes the part of one point from a stacked leaf."""
    return lambda x: x[index]


@jax.jit
def chosen(where: Array, new: Any, old: Any) -> Any:
    """The new values of each point where `where` is true, else the old.

    Args:
        where: (points,) bool.
        new: a stacked tree.
        old: another of the same structure.
    """

    def choose(x: Array, y: Array) -> Array:
        return jnp.where(where.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)


def side_by_side() -> bool:
    """Whether the points are one batch of the step's operations, or take turns in it.

    Where products are bound by memory or by launching them, a batch is faster. On a CPU
    it is not: the activations of all points do not fit into its caches.
    """
    return hardware.current().platform != "cpu"


def _over_points(function: Callable, *arguments: Any) -> Any:
    """The function of each point's part of the arguments, its results stacked."""
    if side_by_side():
        return jax.vmap(function)(*arguments)
    return jax.lax.map(lambda parts: function(*parts), arguments)


def make_create(tuning: Tuning, scales_loss: bool = False) -> Callable:
    """The function (trainable, keys, numbers) -> the states before the first step.

    All of them are stacked. The numbers are `tuning.arrays`, which the compiled program
    does not hold.

    Args:
        tuning: of the runs.
        scales_loss: whether their steps scale the loss, each by a scale of its own.
    """

    def create(trainable: Any, keys: Array, numbers: Any) -> TrainState:
        def one(params: Any, key: Array, own: Any) -> TrainState:
            tx = tuning.transformation(own)
            return TrainState.create(params, tx, key, scales_loss)

        return jax.vmap(one)(trainable, keys, numbers)

    return create


def make_step(
    model: ModelConfig, tuning: Tuning, objective: Objective, same_data: bool
) -> Callable:
    """The function (states, shared, own, numbers, active, batch) -> (states, metrics).

    The states, `own`, the numbers (`tuning.arrays`) and the metrics are stacked; the
    state of a point where `active` (points,) is false stays as it is.

    Args:
        model: the hyperparameters of the base.
        tuning: of the runs.
        objective: what the step minimises.
        same_data: whether `batch` is one for all; else it is stacked too.
    """

    def take(
        states: TrainState,
        shared: Any,
        own: Any,
        numbers: Any,
        active: Array,
        batch: Any,
    ) -> tuple[TrainState, Any]:
        def one(
            state: TrainState, own: Frozen, number: Any, runs: Array, batch: Any
        ) -> tuple[TrainState, Any]:
            tx = tuning.transformation(number)
            one_step = step.make_train_step(model, tx, objective)
            new, metrics = one_step(state, _whole(own, shared), batch)
            kept = jax.tree.map(lambda x, y: jnp.where(runs, x, y), new, state)
            return kept, metrics

        arguments = (states, own, numbers, active)
        if same_data:
            return _over_points(functools.partial(one, batch=batch), *arguments)
        return _over_points(one, *arguments, batch)

    return take


def make_eval_step(model: ModelConfig, objective: Objective) -> Callable:
    """The function (trained, shared, own, batch) -> the sums of each point, stacked.

    Args:
        model: the hyperparameters of the base.
        objective: what is evaluated.
    """
    one_step = step.make_eval_step(model, objective)

    def evaluate(trained: Any, shared: Any, own: Any, batch: Any) -> Any:
        def one(trained: Any, own: Frozen) -> Any:
            return one_step(trained, _whole(own, shared), batch)

        return _over_points(one, trained, own)

    return evaluate
