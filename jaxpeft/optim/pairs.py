"""The a and b of one adapter, found in a tree and updated together.

What a LoRA adds depends on the product a b alone, in which any invertible r x r matrix
may move from one factor to the other. Optimizers that heed this need both at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft.optim.explicit import beside, placed

# The last parts of the names of the first and the second factor: here, and in Flax NNX.
NAMES = (("a", "b"), ("lora_a", "lora_b"))
# Something of a, and the same of b.
Two = tuple[Any, Any]


class PairRule(NamedTuple):
    """The mathematics of an optimizer for two factors, a and b.

    Both come as (d, r), so b transposed, in float32; with them their gradients, states
    and contexts. A state's two-dimensional arrays are kept transposed for b, so that
    they lie as it does.

    Attributes:
        init: (factor (d, r), the other's shape (n, r)) -> the factor's state.
        update: (gradients, states, factors, contexts, norm) -> (new factors, states).
        measure: (gradients, factors) -> a square, () float32; the root of its sum over
            all pairs is the `norm` of `update`. None: there is no norm.
    """

    init: Callable[[Array, tuple[int, ...]], Any]
    update: Callable[[Two, Two, Two, Two, Array | None], tuple[Two, Two]]
    measure: Callable[[Two, Two], Array] | None = None


def find(leaves: Sequence[Array], tensors: Sequence[Any]) -> list[tuple[int, int]]:
    """The places of the a and the b of each adapter, by their names and shapes.

    Args:
        leaves: the parameters.
        tensors: what is known of each, a `rule.Tensor`.
    """
    where = {tensor.place.name: i for i, tensor in enumerate(tensors)}
    shapes = [p.shape[int(t.stacked) :] for p, t in zip(leaves, tensors, strict=True)]
    seconds, found = dict(NAMES), []
    for name, i in where.items():
        stem, dot, last = name.rpartition(".")
        j = where.get(f"{stem}{dot}{seconds[last]}") if last in seconds else None
        if j is not None and _fit(shapes[i], shapes[j]) and leaves[i].size:
            found.append((i, j))
    return found


def init_all(
    rule: PairRule | None, leaves: Sequence[Array], tensors: Sequence[Any]
) -> dict[int, Any]:
    """The states of all factors of adapters, by their places.

    Args:
        rule: the mathematics; None: there are no pairs.
        leaves: the parameters.
        tensors: what is known of each, a `rule.Tensor`.
    """
    states: dict[int, Any] = {}
    if rule is None:
        return states
    for i, j in find(leaves, tensors):
        stacked = tensors[i].stacked
        a, b = leaves[i].shape[-2:], leaves[j].shape[:-3:-1]
        states[i] = _init(rule, leaves[i], b, False, stacked)
        states[j] = _init(rule, leaves[j], a, True, stacked)
    return states


def update_all(
    rule: PairRule | None,
    leaves: Sequence[tuple[Array, Any, Array]],
    tensors: Sequence[Any],
    common: Any,
    context: Callable[[Any, Any], Any],
) -> dict[int, tuple[Array, Any]]:
    """The changes and the new states of all factors of adapters, by their places.

    A change is the new value less the old one, float32.

    Args:
        rule: the mathematics; None: there are no pairs.
        leaves: of each parameter its gradient, its state and itself.
        tensors: what is known of each, a `rule.Tensor`.
        common: the `rule.Context` of the step.
        context: from `common` and a tensor to the tensor's own.
    """
    if rule is None:
        return {}
    results = {}
    found = find([p for _, _, p in leaves], tensors)
    both = [tuple(zip(leaves[i], leaves[j])) for i, j in found]
    norm = _norm(rule, both, [tensors[i].stacked for i, _ in found], common)
    for (i, j), (g, state, p) in zip(found, both):
        own = tensors[i], tensors[j]
        arrays = (common.t, common.learning_rate, norm, traced_decays(own))
        step = partial(_whole, rule, own, common, context)
        changes, states = placed(
            step, partial(lambda *x: x, p, state), g, state, p, arrays
        )
        results |= {i: (changes[0], states[0]), j: (changes[1], states[1])}
    return results


def traced_decays(tensors: Sequence[Any]) -> list[Array | None]:
    """The weight decays that are traced; None for those that are numbers.

    Args:
        tensors: some `rule.Tensor`s.
    """
    decays = [tensor.weight_decay for tensor in tensors]
    return [x if isinstance(x, jax.Array) else None for x in decays]


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) == 2 and a[1] == b[0] and b[1] > 0


def _init(
    rule: PairRule, p: Array, other: tuple[int, ...], second: bool, stacked: bool
) -> Any:
    """The state of a factor beside another of the shape (n, r)."""

    def one(p: Array) -> Any:
        p = p.astype(jnp.float32)
        return _turned(rule.init(p.T if second else p, other), second)

    return beside(jax.vmap(one) if stacked else one, p)


def _norm(
    rule: PairRule, both: Sequence[Any], stacks: Sequence[bool], common: Any
) -> Array | None:
    """The root of the sum of what the rule measures of all pairs, () float32."""
    measure = rule.measure
    if measure is None:
        return None

    def one(g: Two, p: Two) -> Array:
        return measure(_upright(g), _upright(p))

    def layers(g: Two, p: Two) -> Array:
        return jnp.sum(jax.vmap(one)(g, p))

    total = jnp.zeros((), jnp.float32)
    for (g, _, p), stacked in zip(both, stacks):
        total += placed(layers if stacked else one, lambda: common.t, g, p)
    return jnp.sqrt(total)


def _whole(
    rule: PairRule,
    own: Two,
    common: Any,
    context: Callable,
    g: Two,
    state: Two,
    p: Two,
    arrays: tuple,
) -> tuple[Two, Two]:
    """The changes of two leaves, which may be stacks, and their new states."""
    contexts, norm = _contexts(own, arrays, common, context)
    one = partial(_change, rule, contexts, norm)
    return (jax.vmap(one) if own[0].stacked else one)(g, state, p)


def _contexts(own: Two, arrays: tuple, common: Any, context: Callable) -> Any:
    """The contexts of both factors, of what is traced in them, and the norm."""
    t, rate, norm, decays = arrays
    common = common._replace(t=t, learning_rate=rate)
    given = [
        tensor if decay is None else replace(tensor, weight_decay=decay)
        for tensor, decay in zip(own, decays)
    ]
    return tuple(context(common, tensor) for tensor in given), norm


def _change(
    rule: PairRule, contexts: Two, norm: Any, g: Two, state: Two, p: Two
) -> tuple[Two, Two]:
    old, states = _upright(p), (state[0], _turned(state[1], True))
    new, states = rule.update(_upright(g), states, old, contexts, norm)
    # Where layers differ in rank, what is beyond a layer's own is zero and stays so.
    alive = jnp.any(old[0] != 0, axis=0) | jnp.any(old[1] != 0, axis=0)
    a, b = (jnp.where(alive, x - y, 0.0) for x, y in zip(new, old))
    return (a, b.T), (states[0], _turned(states[1], True))


def _upright(pair: Two) -> Two:
    """Both as (d, r), in float32."""
    a, b = (x.astype(jnp.float32) for x in pair)
    return a, b.T


def _turned(state: Any, second: bool) -> Any:
    """The state of b as it is kept, or as it was before that; a's as it is."""
    if not second:
        return state
    return jax.tree.map(lambda x: x.T if x.ndim == 2 else x, state)
