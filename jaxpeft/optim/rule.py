"""Update rules: the mathematics of an optimizer for one tensor, and trees of them.

A `Rule` sees one tensor at a time. `transformation` makes an ordinary optax
transformation of it and does, once for all rules, what is not their mathematics: holes
in the tree, stacked layers, learning-rate schedules, weight-decay masks, parameter
groups, precision. The fused backward pass drives the same rules a layer at a time.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim import pairs
from jaxpeft.optim.explicit import beside, placed
from jaxpeft.optim.layout import Group, Layout
from jaxpeft.optim.leaves import boxed, check_real, decaying, without_boxes
from jaxpeft.optim.pairs import PairRule
from jaxpeft.optim.ranges import is_zero, problems_of


class Place(NamedTuple):
    """Which tensor a rule is given.

    Attributes:
        name: the dotted path of its leaf.
        stacked: how many leading axes of the array stack tensors: 0, or 1 for a
            `chunked` rule on stacked layers.
    """

    name: str
    stacked: int = 0


class Context(NamedTuple):
    """What a rule knows of the step, and what this tensor's settings are.

    Attributes:
        t: () int32, the number of this update, from 1.
        learning_rate: () float32, the tensor's own.
        weight_decay: the tensor's own; 0.0 where the mask leaves the tensor out.
        place: which tensor it is.
        index: the tensor's number among all that train, from 0, each layer of a stack
            counted; an array inside a stack.
        shared: the rule's shared scalars of this step.
    """

    t: Array
    learning_rate: Array
    weight_decay: float | Array
    place: Place
    index: Any = 0
    shared: Any = ()

    @property
    def decays(self) -> bool:
        """Whether the tensor decays; a traced weight decay always counts as one."""
        return not is_zero(self.weight_decay)

    def decayed(self, p: Array) -> Array:
        """The tensor after its decay: p (1 - rate * decay), rounded as by torch."""
        return p if not self.decays else p * (1 - self.rate_times_decay)

    @property
    def rate_times_decay(self) -> Array:
        """The learning rate times the weight decay, () float32."""
        return self.learning_rate * self.weight_decay


class Rule(NamedTuple):
    """The mathematics of an optimizer for one tensor.

    Tensors and gradients come in float32, the new tensor goes back in float32, and a
    state's arrays keep shape and dtype.

    Attributes:
        init: (tensor, place) -> state, any pytree.
        update: (gradient, state, tensor, context) -> (new tensor, new state).
        shared: scalars that all tensors share.
        advance: (the last shared scalars, learning rate, t, keyword arguments of the
            update) -> the shared scalars of this step; None: they stay.
        chunked: the rule goes through a tensor in parts, so as never to hold a second
            one; it is given arrays in their own dtype, stacked layers in one piece, and
            returns the change of the tensor, float32, instead of the new tensor.
        pair: the mathematics of the two factors of an adapter, where there are such, in
            place of that for one tensor; None: each tensor is by itself.
    """

    init: Callable[[Array, Place], Any]
    update: Callable[[Array, Any, Array, Context], tuple[Array, Any]]
    shared: Any = ()
    advance: Callable[[Any, Array, Array, Mapping[str, Any]], Any] | None = None
    chunked: bool = False
    pair: PairRule | None = None


class RuleState(NamedTuple):
    """State of a rule over a tree.

    Attributes:
        count: () int32, updates made.
        shared: the rule's scalars.
        leaves: a tree like the parameters, each leaf replaced by its rule's state. Of a
            leaf in a box (see `tree.is_box`) the arrays shaped like it are in such
            boxes instead, so that what Flax says of it holds for them and for no other.
    """

    count: Array
    shared: Any
    leaves: Any


@dataclass(frozen=True)
class Tensor:
    """A leaf of the parameters, its settings, and its number among all tensors."""

    place: Place
    stacked: bool
    factor: float
    weight_decay: float | Array
    index: int


# From the shapes of tensors by name, of a stack a layer's, to what is wrong with them.
Problems = Callable[[dict[str, tuple[int, ...]]], list[str]]


class Leafwise:
    """A rule with its learning rate, decay, mask and layout: what a tree needs."""

    def __init__(
        self,
        rule: Rule,
        learning_rate: optax.ScalarOrSchedule,
        weight_decay: float | Array,
        mask: Any,
        layout: Layout,
        problems: Problems | None = None,
    ):
        self.rule, self.learning_rate = rule, learning_rate
        self.weight_decay, self.mask, self.layout = weight_decay, mask, layout
        self.problems = problems

    def tuned(
        self, learning_rate: optax.ScalarOrSchedule, weight_decay: float | Array
    ) -> "Leafwise":
        """The same rule with another rate and decay, which may be traced.

        So one program can carry several runs that differ in these numbers.
        """
        tuned = copy.copy(self)
        tuned.learning_rate, tuned.weight_decay = learning_rate, weight_decay
        return tuned

    def transformation(self) -> "RuleTransformation":
        """The optax transformation of this rule, remembering it as `leafwise`."""
        tx = RuleTransformation(self.init, self.update)
        tx.leafwise = self
        return tx

    def tensors(self, params: Any) -> list[Tensor]:
        """The settings of every leaf of `params`, in the order of `jax.tree.leaves`."""
        named = tree.named_weights(params)
        mask = jax.tree.leaves(decaying(self.mask, params))
        settings, index = [], 0
        for (name, leaf), decays in zip(named, mask, strict=True):
            group = self.layout.group(name) or Group("")
            own = group.weight_decay
            weight_decay = self.weight_decay if own is None else own
            stacked = self.layout.is_stacked(name) and leaf.ndim > 0
            settings.append(
                Tensor(
                    Place(name, int(stacked and self.rule.chunked)),
                    stacked,
                    group.factor,
                    weight_decay if decays else 0.0,
                    index,
                )
            )
            index += leaf.shape[0] if stacked else 1
        return settings

    def init(self, params: Any) -> RuleState:
        """The state before the first update.

        Raises:
            InputError: for a group without a leaf, for complex parameters, and for what
                `problems` finds.
        """
        check_real(params)
        boxes, treedef = jax.tree.flatten(params, is_leaf=tree.is_box)
        leaves, tensors = [tree.opened(x) for x in boxes], self.tensors(params)
        if leaves:
            self.layout.check([t.place.name for t in tensors])
            self._check(leaves, tensors)
        states = [
            boxed(state, box)
            for state, box in zip(self._init_all(leaves, tensors), boxes, strict=True)
        ]
        # Arrays of their own: a buffer cannot be donated twice.
        shared = jax.tree.map(lambda x: jnp.array(x, copy=True), self.rule.shared)
        return RuleState(jnp.zeros((), jnp.int32), shared, treedef.unflatten(states))

    def begin(self, state: RuleState, extra: Mapping[str, Any]) -> Context:
        """The context of the next update, without what is a tensor's own."""
        rate = self.learning_rate
        rate = rate(state.count) if callable(rate) else rate
        rate, t = jnp.asarray(rate, jnp.float32), state.count + 1
        shared = state.shared
        if self.rule.advance is not None:
            shared = self.rule.advance(shared, rate, t, extra)
        return Context(t, rate, 0.0, Place(""), 0, shared)

    def context(self, common: Context, tensor: Tensor) -> Context:
        """The context of the update of one tensor; `common` is what `begin` returns."""
        return common._replace(
            learning_rate=common.learning_rate * np.float32(tensor.factor),
            weight_decay=tensor.weight_decay,
            place=tensor.place,
            index=tensor.index,
        )

    def change(
        self, g: Array, state: Any, p: Array, context: Context
    ) -> tuple[Array, Any]:
        """The change of one tensor, new - old in float32, and its new state.

        The difference is exact wherever the new value is within a factor of 2 of the
        old one, so that adding it gives the new value bit for bit.
        """
        if self.rule.chunked:
            return self.rule.update(g, state, p, context)
        g, p = g.astype(jnp.float32), p.astype(jnp.float32)
        new, state = self.rule.update(g, state, p, context)
        return new - p, state

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        """The update that optax calls: the changes in float32, and the new state."""
        if params is None:
            raise ValueError(
                "this optimizer's update needs the parameters: give params"
            )
        boxes, treedef = jax.tree.flatten(params, is_leaf=tree.is_box)
        gradients = treedef.flatten_up_to(updates)
        states = treedef.flatten_up_to(state.leaves)
        common, tensors = self.begin(state, extra), self.tensors(params)
        opened = [
            (tree.opened(g), without_boxes(s), tree.opened(p))
            for g, s, p in zip(gradients, states, boxes, strict=True)
        ]
        paired = pairs.update_all(self.rule.pair, opened, tensors, common, self.context)
        results = [
            paired[i] if i in paired else self._update_leaf(*leaf, tensor, common)
            for i, (leaf, tensor) in enumerate(zip(opened, tensors, strict=True))
        ]
        done = [
            (tree.boxed(change, box), boxed(new, box))
            for (change, new), box in zip(results, boxes)
        ]
        changes, states = (treedef.unflatten([x[i] for x in done]) for i in range(2))
        return changes, RuleState(common.t, common.shared, states)

    def _check(self, leaves: list[Array], tensors: list[Tensor]) -> None:
        if self.problems is None:
            return
        shapes = {
            t.place.name: tuple(p.shape[1:] if t.stacked else p.shape)
            for p, t in zip(leaves, tensors, strict=True)
        }
        if problems := self.problems(shapes):
            raise InputError(*problems)

    def _init_all(self, leaves: list[Array], tensors: list[Tensor]) -> list[Any]:
        states = pairs.init_all(self.rule.pair, leaves, tensors)
        return [
            states[i] if i in states else beside(partial(self._init_leaf, tensor=t), p)
            for i, (p, t) in enumerate(zip(leaves, tensors, strict=True))
        ]

    def _init_leaf(self, p: Array, tensor: Tensor) -> Any:
        if not p.size:
            return ()  # means of nothing would be nan
        if tensor.stacked and not self.rule.chunked:
            return jax.vmap(lambda x: self._init_one(x, tensor.place))(p)
        return self._init_one(p, tensor.place)

    def _init_one(self, p: Array, place: Place) -> Any:
        return self.rule.init(p if self.rule.chunked else p.astype(jnp.float32), place)

    def _update_leaf(
        self, g: Array, state: Any, p: Array, tensor: Tensor, common: Context
    ) -> tuple[Array, Any]:
        if not p.size:
            return jnp.zeros(p.shape, jnp.float32), state

        def leaf(g: Array, state: Any, p: Array, arrays: tuple) -> tuple[Array, Any]:
            t, rate, shared, decay = arrays
            own = replace(tensor, weight_decay=decay) if decay is not None else tensor
            context = self.context(
                common._replace(t=t, learning_rate=rate, shared=shared), own
            )
            if not tensor.stacked or self.rule.chunked:
                return self.change(g, state, p, context)

            def layer(g: Array, state: Any, p: Array, index: Array) -> Any:
                return self.change(g, state, p, context._replace(index=index))

            return jax.vmap(layer)(g, state, p, tensor.index + jnp.arange(p.shape[0]))

        (traced,) = pairs.traced_decays([tensor])
        arrays = (common.t, common.learning_rate, common.shared, traced)
        return placed(leaf, lambda: (p, state), g, state, p, arrays)


class RuleTransformation(optax.GradientTransformationExtraArgs):
    """An optax transformation made of a rule, which it remembers as `leafwise`."""

    leafwise: Leafwise


def transformation(
    rule: Rule,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    problems: Problems | None = None,
    kind: type[Leafwise] = Leafwise,
) -> RuleTransformation:
    """The optax transformation that applies `rule` to every leaf of a tree.

    Args:
        rule: the mathematics for one tensor.
        learning_rate: a number, or a function of the updates made.
        weight_decay: everybody's decay.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups; None: neither.
        problems: from the shapes of tensors by name to what `init` refuses; None:
            nothing.
        kind: the class that goes through the tree, for other ways to number tensors.

    Returns:
        A transformation to float32 differences, for `optax.apply_updates`.

    Raises:
        InputError: for a rate or a decay that is not finite or below 0.
    """
    wrong = [
        *problems_of("learning_rate", learning_rate),
        *problems_of("weight_decay", weight_decay),
    ]
    if wrong:
        raise InputError(*wrong)
    leafwise = kind(
        rule, learning_rate, weight_decay, mask, layout or Layout(), problems
    )
    return leafwise.transformation()


def at_factor(rule: Rule, factor: float | Array) -> Rule:
    """A rule with its own learning rate, in multiples of everybody's.

    Args:
        rule: of tensors that another optimizer leaves to it.
        factor: its rate over the common one.
    """

    def update(g: Array, state: Any, p: Array, ctx: Context) -> tuple[Array, Any]:
        own = ctx._replace(learning_rate=ctx.learning_rate * factor)
        return rule.update(g, state, p, own)

    return rule._replace(update=update)


def debias(beta: float | Array, t: Array) -> Array:
    """1 - beta**t, () float32, without the cancellation that a power would bring."""
    if is_zero(beta):
        return jnp.ones((), jnp.float32)
    if isinstance(beta, jax.Array):
        one_less = -jnp.expm1(t * jnp.log(jnp.where(beta == 0, 0.5, beta)))
        return jnp.where(beta == 0, 1.0, one_less)
    return -jnp.expm1(t.astype(jnp.float32) * np.float32(np.log(beta)))
