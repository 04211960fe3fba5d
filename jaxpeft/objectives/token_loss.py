"""Next-token cross-entropy over large vocabularies, a part of the sequence at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Float32, Int32

from jaxpeft.devices import sharding
from jaxpeft.objectives import chunks

# In float16 a slope of the loss below 6e-8 would be 0: multiplied by this it is not,
# and what follows for the hidden states fits where no weight of the head is above 32.
LIFT = 2.0**10


class TokenSums(NamedTuple):
    """Sums over the supervised tokens of a batch; divide by `count` for means.

    Attributes:
        nll: () float32, negative log likelihood in nats.
        correct: () float32, the number of tokens whose logit is the largest.
        count: () float32, the number of supervised tokens.
    """

    nll: Array
    correct: Array
    count: Array


def token_sums(
    hidden: Float[Array, "batch seq d"],
    head: Any,
    targets: Int32[Array, "batch seq"],
    supervised: Bool[Array, "batch seq"],
) -> TokenSums:
    """Loss and accuracy summed over supervised tokens.

    Logits exist for a part of the sequence at a time, in float32, and only as far as
    any row has supervised tokens: prompts and padding cost nothing. Not differentiable
    in a useful amount of memory: see `nll_sum`.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (d, vocab).
        targets: the token to predict at each place.
        supervised: whether a place counts.
    """

    def sums(rows: tuple, head: Any) -> TokenSums:
        parts = chunks.cut(head, chunks.supervised_first(rows[-1]), *rows)

        def body(total: TokenSums, chunk: tuple) -> tuple[TokenSums, None]:
            def add() -> TokenSums:
                return jax.tree.map(jnp.add, total, _chunk_sums(head, *chunk))

            return jax.lax.cond(jnp.any(chunk[-1]), add, lambda: total), None

        zero = TokenSums(*(jnp.zeros((), jnp.float32) for _ in range(3)))
        return jax.lax.scan(body, zero, parts)[0]

    rows = (hidden, targets, supervised)
    return sharding.on_each_part(lambda *args: (sums(*args), ()), rows, head)[0]


@jax.custom_vjp
def nll_sum(
    hidden: Float[Array, "batch seq d"],
    head: Any,
    targets: Int32[Array, "batch seq"],
    supervised: Bool[Array, "batch seq"],
) -> Float32[Array, ""]:
    """Negative log likelihood in nats summed over the supervised tokens.

    The gradient of each chunk is formed beside its logits in the forward pass, so that
    the logits are computed once and never kept.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (d, vocab).
        targets: the token to predict at each place.
        supervised: whether a place counts.
    """
    return token_sums(hidden, head, targets, supervised).nll


def _nll_forward(hidden: Any, head: Any, targets: Any, supervised: Any) -> tuple:
    # The leaves say whether a gradient is wanted: a frozen head costs none.
    leaves, treedef = jax.tree.flatten(head, is_leaf=lambda x: hasattr(x, "perturbed"))
    wanted = [leaf.perturbed for leaf in leaves]

    def rebuild(leaves: list) -> Any:
        return treedef.unflatten(leaves)

    def gradients(rows: tuple, leaves: list) -> tuple:
        """(loss, its gradient by the wanted leaves), and that by the hidden states."""
        order = chunks.supervised_first(rows[-1])
        parts = chunks.cut(rebuild(leaves), order, *rows)

        def body(carry: tuple, chunk: tuple) -> tuple:
            h, target, mask = chunk

            def logits(h: Array, trained: list) -> Array:
                values = iter(trained)
                pairs = zip(leaves, wanted, strict=True)
                return h @ rebuild([next(values) if w else x for x, w in pairs])

            def add() -> tuple:
                form = _lifted if h.dtype == jnp.float16 else _formed
                value, dh, dtrained = form(logits, h, trained, target, mask)
                return jax.tree.map(jnp.add, carry, (value, dtrained)), dh

            return jax.lax.cond(jnp.any(mask), add, lambda: (carry, jnp.zeros_like(h)))

        trained = [x for x, w in zip(leaves, wanted, strict=True) if w]
        zero = [jnp.zeros(x.shape, jnp.float32) for x in trained]
        total, dh = jax.lax.scan(body, (jnp.zeros((), jnp.float32), zero), parts)
        return total, chunks.joined(dh, order)

    rows = (hidden.value, targets.value, supervised.value)
    values = [leaf.value for leaf in leaves]
    (nll, dhead), dh = sharding.on_each_part(gradients, rows, values)
    trained = [x for x, w in zip(values, wanted, strict=True) if w]
    dtrained = iter(g.astype(x.dtype) for g, x in zip(dhead, trained, strict=True))
    dhead = rebuild([next(dtrained) if w else None for w in wanted])
    return nll, (dh, dhead)


def _nll_backward(residuals: tuple, cotangent: Any) -> tuple:
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    dh, dhead = residuals

    def times(g: Array, factor: Array) -> Array:
        return (g * factor).astype(g.dtype)

    dhead = jax.tree.map(lambda g: times(g, cotangent), dhead)
    if dh.dtype == jnp.float16:
        return times(dh, cotangent / LIFT), dhead, None, None
    return times(dh, cotangent), dhead, None, None


nll_sum.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _formed(
    logits: Callable, h: Array, trained: list, target: Array, mask: Array
) -> tuple[Array, Array, list]:
    """The loss of a chunk, and its gradients by the hidden states and by what trains.

    Args:
        logits: (hidden states, what trains of the head) -> logits.
        h: the hidden states, (batch, n, d).
        trained: what trains of the head.
        target: the tokens to predict, (batch, n).
        mask: whether a place counts, (batch, n).
    """
    product, back = jax.vjp(logits, h, trained)
    nll, dlogits = nll_and_slope(product, target, mask)
    return jnp.sum(nll), *back(dlogits.astype(product.dtype))


def _lifted(
    logits: Callable, h: Array, trained: list, target: Array, mask: Array
) -> tuple[Array, Array, list]:
    """The same in float16: the gradient by the hidden states is `LIFT` times too large.

    That of the head is a sum over all places, for which no factor is right: it is
    formed in float32.
    """
    product, back = jax.vjp(lambda h: logits(h, trained), h)
    nll, dlogits = nll_and_slope(product, target, mask)
    (dh,) = back((dlogits * LIFT).astype(product.dtype))
    wide, back_head = jax.vjp(lambda x: logits(h.astype(jnp.float32), x), trained)
    return jnp.sum(nll), dh, *back_head(dlogits.astype(wide.dtype))


def _chunk_sums(head: Any, hidden: Array, targets: Array, mask: Array) -> TokenSums:
    logits = (hidden @ head).astype(jnp.float32)  # (batch, chunk, vocab)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - at_target
    hit = jnp.argmax(logits, axis=-1) == targets
    return TokenSums(
        nll=jnp.sum(jnp.where(mask, nll, 0.0)),
        correct=jnp.sum(hit & mask).astype(jnp.float32),
        count=jnp.sum(mask).astype(jnp.float32),
    )


def nll_and_slope(
    logits: Float[Array, "batch n vocab"],
    targets: Int32[Array, "batch n"],
    mask: Bool[Array, "batch n"],
) -> tuple[Float32[Array, "batch n"], Float32[Array, "batch n vocab"]]:
    """The losses of a chunk's places, and their derivatives by the logits, float32.

    In closed form, softmax less one at the target: autodiff would scatter that one
    into an array of the logits' size.

    Args:
        logits: of a chunk.
        targets: the tokens to predict.
        mask: whether a place counts; both results are 0 where it does not.
    """
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    powers = jnp.exp(logits - largest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    at_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = (largest + jnp.log(total))[..., 0] - at_target
    counts = mask[..., None].astype(jnp.float32)
    slope = powers * (counts / total) - jnp.where(is_target, counts, 0.0)
    return jnp.where(mask, nll, 0.0), slope
