"""Next-token cross-entropy over large vocabularies, a part of the sequence at once."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Float32, Int32

from jaxpeft.devices import per_device
from jaxpeft.objectives import chunks

# In float16 a slope of the loss below 6e-8 would be 0: multiplied by this it is not,
# and what follows for the hidden states fits where no weight of the head is above 32.
LIFT = 2.0**10


@dataclass(frozen=True)
class Form:
    """What a token's loss is, of the log-probabilities that the model gives.

    Attributes:
        label_smoothing: e of `(1 - e) * nll + e * mean(-log p)`, whose mean is over the
            vocabulary (Szegedy et al., 2016; as transformers' `LabelSmoother`).
        dynamic: whether the loss is `p * nll` in place of nll, p being the target's
            probability, through which no gradient goes (Wu et al., 2025).
    """

    label_smoothing: float = 0.0
    dynamic: bool = False


NLL = Form()


class TokenSums(NamedTuple):
    """Sums over the supervised tokens of a batch; divide by `weight` for means.

    Attributes:
        nll: () float32, negative log likelihood in nats, times the tokens' weights.
        correct: () float32, the weights of the tokens whose logit is the largest.
        weight: () float32, the weights of all supervised tokens.
        count: () float32, the number of supervised tokens.
    """

    nll: Array
    correct: Array
    weight: Array
    count: Array


def token_sums(
    hidden: Float[Array, "batch seq d"],
    head: Any,
    targets: Int32[Array, "batch seq"],
    supervised: Bool[Array, "batch seq"],
    weights: Float32[Array, "batch seq"] | None = None,
    form: Form = NLL,
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
        weights: how much it counts; None: each as much as another.
        form: what of a token's loss `nll` sums.
    """

    def sums(rows: tuple, head: Any) -> TokenSums:
        parts = chunks.cut(head, chunks.supervised_first(rows[2]), *rows)

        def body(total: TokenSums, chunk: tuple) -> tuple[TokenSums, None]:
            def add() -> TokenSums:
                return jax.tree.map(jnp.add, total, _chunk_sums(head, form, *chunk))

            return jax.lax.cond(jnp.any(chunk[2]), add, lambda: total), None

        zero = TokenSums(*(jnp.zeros((), jnp.float32) for _ in TokenSums._fields))
        return jax.lax.scan(body, zero, parts)[0]

    rows = (hidden, targets, supervised, *_given(weights))
    return per_device.on_each_part(lambda *args: (sums(*args), ()), rows, head)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def nll_sum(
    hidden: Float[Array, "batch seq d"],
    head: Any,
    targets: Int32[Array, "batch seq"],
    supervised: Bool[Array, "batch seq"],
    weights: Float32[Array, "batch seq"] | None = None,
    form: Form = NLL,
) -> Float32[Array, ""]:
    """Negative log likelihood in nats, or its `form`, summed over supervised tokens.

    The gradient of each chunk is formed beside its logits in the forward pass, so that
    the logits are computed once and never kept.

    Args:
        hidden: the model's last hidden states.
        head: a kernel (d, vocab).
        targets: the token to predict at each place.
        supervised: whether a place counts.
        weights: how much it counts, a constant; None: each as much as another.
        form: what a token's loss is.
    """
    return token_sums(hidden, head, targets, supervised, weights, form).nll


def _given(weights: Any) -> tuple:
    return () if weights is None else (weights,)


def _nll_forward(
    hidden: Any, head: Any, targets: Any, supervised: Any, weights: Any, form: Form
) -> tuple:
    # The leaves say whether a gradient is wanted: a frozen head costs none.
    leaves, treedef = jax.tree.flatten(head, is_leaf=lambda x: hasattr(x, "perturbed"))
    wanted = [leaf.perturbed for leaf in leaves]

    def rebuild(leaves: list) -> Any:
        return treedef.unflatten(leaves)

    def gradients(rows: tuple, leaves: list) -> tuple:
        """(loss, its gradient by the wanted leaves), and that by the hidden states."""
        order = chunks.supervised_first(rows[2])
        parts = chunks.cut(rebuild(leaves), order, *rows)

        def body(carry: tuple, chunk: tuple) -> tuple:
            h, _, mask, *_ = chunk

            def logits(h: Array, trained: list) -> Array:
                values = iter(trained)
                pairs = zip(leaves, wanted, strict=True)
                return h @ rebuild([next(values) if w else x for x, w in pairs])

            def add() -> tuple:
                made = _lifted if h.dtype == jnp.float16 else _formed
                slope = functools.partial(nll_and_slope, form=form)
                value, dh, dtrained = made(logits, slope, h, trained, chunk[1:])
                return jax.tree.map(jnp.add, carry, (value, dtrained)), dh

            return jax.lax.cond(jnp.any(mask), add, lambda: (carry, jnp.zeros_like(h)))

        trained = [x for x, w in zip(leaves, wanted, strict=True) if w]
        zero = [jnp.zeros(x.shape, jnp.float32) for x in trained]
        total, dh = jax.lax.scan(body, (jnp.zeros((), jnp.float32), zero), parts)
        return total, chunks.joined(dh, order)

    rows = (hidden, targets, supervised, *_given(weights))
    rows = tuple(row.value for row in rows)
    values = [leaf.value for leaf in leaves]
    (nll, dhead), dh = per_device.on_each_part(gradients, rows, values)
    trained = [x for x, w in zip(values, wanted, strict=True) if w]
    dtrained = iter(g.astype(x.dtype) for g, x in zip(dhead, trained, strict=True))
    dhead = rebuild([next(dtrained) if w else None for w in wanted])
    return nll, (dh, dhead)


def _nll_backward(form: Form, residuals: tuple, cotangent: Any) -> tuple:
    constants = (None, None, None)
    if isinstance(cotangent, SymbolicZero):
        return None, None, *constants
    dh, dhead = residuals

    def times(g: Array, factor: Array) -> Array:
        return (g * factor).astype(g.dtype)

    dhead = jax.tree.map(lambda g: times(g, cotangent), dhead)
    if dh.dtype == jnp.float16:
        return times(dh, cotangent / LIFT), dhead, *constants
    return times(dh, cotangent), dhead, *constants


nll_sum.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _formed(
    logits: Callable, slope: Callable, h: Array, trained: list, places: tuple
) -> tuple[Array, Array, list]:
    """The loss of a chunk, and its gradients by the hidden states and by what trains.

    Args:
        logits: (hidden states, what trains of the head) -> logits.
        slope: (logits, *places) -> the losses and their derivatives by the logits.
        h: the hidden states, (batch, n, d).
        trained: what trains of the head.
        places: the tokens to predict, whether each counts and perhaps how much,
            (batch, n).
    """
    product, back = jax.vjp(logits, h, trained)
    losses, dlogits = slope(product, *places)
    return jnp.sum(losses), *back(dlogits.astype(product.dtype))


def _lifted(
    logits: Callable, slope: Callable, h: Array, trained: list, places: tuple
) -> tuple[Array, Array, list]:
    """The same in float16: the gradient by the hidden states is `LIFT` times too large.

    That of the head is a sum over all places, for which no factor is right: it is
    formed in float32.
    """
    product, back = jax.vjp(lambda h: logits(h, trained), h)
    losses, dlogits = slope(product, *places)
    (dh,) = back((dlogits * LIFT).astype(product.dtype))
    wide, back_head = jax.vjp(lambda x: logits(h.astype(jnp.float32), x), trained)
    return jnp.sum(losses), dh, *back_head(dlogits.astype(wide.dtype))


def _chunk_sums(
    head: Any,
    form: Form,
    hidden: Array,
    targets: Array,
    mask: Array,
    weights: Array | None = None,
) -> TokenSums:
    logits = (hidden @ head).astype(jnp.float32)  # (batch, chunk, vocab)
    counts = mask.astype(jnp.float32)
    weighed = counts if weights is None else counts * weights
    hit = jnp.argmax(logits, axis=-1) == targets
    if form == NLL:
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - at_target
        total = jnp.sum(jnp.where(mask, nll * weighed, 0.0))
    else:
        total = jnp.sum(nll_and_slope(logits, targets, mask, weights, form)[0])
    return TokenSums(
        nll=total,
        correct=jnp.sum(jnp.where(hit, weighed, 0.0)),
        weight=jnp.sum(weighed),
        count=jnp.sum(counts),
    )


def nll_and_slope(
    logits: Float[Array, "batch n vocab"],
    targets: Int32[Array, "batch n"],
    mask: Bool[Array, "batch n"],
    weights: Float32[Array, "batch n"] | None = None,
    form: Form = NLL,
) -> tuple[Float32[Array, "batch n"], Float32[Array, "batch n vocab"]]:
    """The losses of a chunk's places, and their derivatives by the logits, float32.

    In closed form, softmax less one at the target: autodiff would scatter that one
    into an array of the logits' size.

    Args:
        logits: of a chunk.
        targets: the tokens to predict.
        mask: whether a place counts; both results are 0 where it does not.
        weights: how much it counts; None: each as much as another.
        form: what a token's loss is.
    """
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    powers = jnp.exp(logits - largest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    at_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    normalizer = (largest + jnp.log(total))[..., 0]
    loss = normalizer - at_target
    counts = mask.astype(jnp.float32)
    if weights is not None:
        counts, loss = counts * weights, loss * weights
    if form.dynamic:
        share = jnp.exp(at_target - normalizer)
        counts, loss = counts * share, loss * share
    counts, smoothing = counts[..., None], form.label_smoothing
    slope = powers * (counts / total)
    if not smoothing:
        slope -= jnp.where(is_target, counts, 0.0)
    else:
        mean = normalizer - jnp.mean(logits, axis=-1)
        mean = mean if weights is None else mean * weights
        loss = (1 - smoothing) * loss + smoothing * mean
        slope -= jnp.where(is_target, (1 - smoothing) * counts, 0.0)
        slope -= counts * (smoothing / logits.shape[-1])
    return jnp.where(mask, loss, 0.0), slope
