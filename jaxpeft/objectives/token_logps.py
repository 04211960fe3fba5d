"""Log-probabilities of tokens, differentiable one by one, a few logits at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Float32, Int32

from jaxpeft.devices import per_device
from jaxpeft.objectives import chunks
from jaxpeft.objectives.token_loss import LIFT, nll_and_slope


@jax.custom_vjp
def token_logps(
    hidden: Float[Array, "batch seq d"],
    head: Any,
    targets: Int32[Array, "batch seq"],
    supervised: Bool[Array, "batch seq"],
) -> Float32[Array, "batch seq"]:
    """The log-probability of the target at each supervised place in nats, else 0.

    Logits exist for a chunk at a time (`chunks`). What a place's value says of the
    hidden states is its own affair, so under a frozen head its gradient for a slope of
    1 is formed beside the logits in the forward pass, and the backward pass multiplies
    by the slope that came. Where the head trains, that of the head is a sum over all
    places with their slopes: then the backward pass forms each chunk's logits anew.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (d, vocab).
        targets: the token to predict at each place.
        supervised: whether a place counts.
    """

    def values(rows: tuple, head: Any) -> tuple:
        order = chunks.supervised_first(rows[-1])
        parts = chunks.cut(head, order, *rows)

        def one(chunk: tuple) -> Array:
            h, target, mask = chunk

            def form() -> Array:
                logits = (h @ head).astype(jnp.float32)
                at = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
                return jnp.where(mask, at - jax.nn.logsumexp(logits, axis=-1), 0.0)

            return jax.lax.cond(
                jnp.any(mask), form, lambda: jnp.zeros(mask.shape, jnp.float32)
            )

        return (), chunks.joined(jax.lax.map(one, parts), order)

    rows = (hidden, targets, supervised)
    return per_device.on_each_part(values, rows, head)[1]


def _forward(hidden: Any, head: Any, targets: Any, supervised: Any) -> tuple:
    # The leaves say whether a gradient is wanted.
    leaves, treedef = jax.tree.flatten(head, is_leaf=lambda x: hasattr(x, "perturbed"))
    wanted = tuple(leaf.perturbed for leaf in leaves)
    head = treedef.unflatten([leaf.value for leaf in leaves])
    rows = (hidden.value, targets.value, supervised.value)
    if any(wanted):
        return token_logps(rows[0], head, *rows[1:]), (rows, head, _Wanted(wanted))
    logps, dh = per_device.on_each_part(_values_and_slopes, rows, head)[1]
    return logps, (dh, treedef.unflatten([None] * len(leaves)), None)


@jax.tree_util.register_static
class _Wanted(tuple[bool, ...]):
    """Which leaves of a head train: known while tracing, no array."""


def _values_and_slopes(rows: tuple, head: Any) -> tuple:
    """((), (the values, their derivatives by the hidden states))."""
    order = chunks.supervised_first(rows[-1])
    parts = chunks.cut(head, order, *rows)

    def one(chunk: tuple) -> tuple[Array, Array]:
        h, target, mask = chunk

        def form() -> tuple[Array, Array]:
            product, back = jax.vjp(lambda h: h @ head, h)
            nll, slope = nll_and_slope(product, target, mask)
            lift = LIFT if h.dtype == jnp.float16 else 1.0
            return -nll, back((-lift * slope).astype(product.dtype))[0]

        def nothing() -> tuple[Array, Array]:
            return jnp.zeros(mask.shape, jnp.float32), jnp.zeros_like(h)

        return jax.lax.cond(jnp.any(mask), form, nothing)

    found = jax.lax.map(one, parts)
    return (), tuple(chunks.joined(x, order) for x in found)


def _backward(residuals: tuple, slope: Any) -> tuple:
    if isinstance(slope, SymbolicZero):
        slope = jnp.zeros(slope.shape, jnp.float32)
    kept, head, wanted = residuals
    if wanted is None:
        lift = LIFT if kept.dtype == jnp.float16 else 1.0
        dh = kept.astype(jnp.float32) * (slope / lift)[..., None]
        return dh.astype(kept.dtype), head, None, None
    leaves, treedef = jax.tree.flatten(head)

    def gradients(rows: tuple, leaves: list) -> tuple:
        """What trains of the head: its gradient; that by the hidden states."""
        order = chunks.supervised_first(rows[2])
        parts = chunks.cut(treedef.unflatten(leaves), order, *rows)
        trained = [x for x, w in zip(leaves, wanted, strict=True) if w]

        def add(total: list, chunk: tuple) -> tuple[list, Array]:
            h, target, mask, slope = chunk

            def logits(h: Array, trained: list) -> Array:
                own = iter(trained)
                pairs = zip(leaves, wanted, strict=True)
                return h @ treedef.unflatten([next(own) if w else x for x, w in pairs])

            def form() -> tuple[list, Array]:
                product, back = jax.vjp(logits, h, trained)
                _, by_logits = nll_and_slope(product, target, mask)
                by_logits = -slope[..., None] * by_logits
                dh, own = back(by_logits.astype(product.dtype))
                return jax.tree.map(jnp.add, total, own), dh

            return jax.lax.cond(jnp.any(mask), form, lambda: (total, jnp.zeros_like(h)))

        zero = [jnp.zeros(x.shape, jnp.float32) for x in trained]
        total, dh = jax.lax.scan(add, zero, parts)
        return total, chunks.joined(dh, order)

    own, dh = per_device.on_each_part(gradients, (*kept, slope), leaves)
    pairs = zip(own, (x for x, w in zip(leaves, wanted, strict=True) if w), strict=True)
    found = iter([g.astype(x.dtype) for g, x in pairs])
    return (
        dh,
        treedef.unflatten([next(found) if w else None for w in wanted]),
        None,
        None,
    )


token_logps.defvjp(_forward, _backward, symbolic_zeros=True)
