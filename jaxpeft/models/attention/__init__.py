"""Grouped-query attention: during training, and against a cache of keys and values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxpeft import hardware
from jaxpeft.devices import determinism, per_device
from jaxpeft.models.attention import blockwise, cudnn
from jaxpeft.models.attention.cached import attend_cached
from jaxpeft.models.attention.scores import EVERYTHING, Scores

__all__ = ["EVERYTHING", "Scores", "attend", "attend_cached"]


class _Case(NamedTuple):
    """What an implementation is asked whether it can.

    Attributes:
        target: what the program is compiled for.
        dtype: of queries, keys and values.
        width: head_dim.
        packed: whether there are segments.
        scores: how queries meet keys.
    """

    target: hardware.Target
    dtype: jnp.dtype
    width: int
    packed: bool
    scores: Scores


class Implementation(NamedTuple):
    """Attention of whole sequences to themselves, on one device.

    Attributes:
        can: whether it does what a case asks for, on its device.
        attend: (q, k, v, segments, scores) -> the output, in the shapes of `attend`.
    """

    can: Callable[[_Case], bool]
    attend: Callable[[Array, Array, Array, Array | None, Scores], Array]


def _cudnn_can(case: _Case) -> bool:
    device, scores = case.target.device, case.scores
    plain = not case.packed and scores.softcap is None and scores.window is None
    # Its backward pass may add up in another order each time; JAX asks the library for
    # its version while it traces, which only a process with such a device can answer.
    plain &= not determinism.is_required() and hardware.is_here(case.target)
    known = device is not None and device.bf16 > 0 and case.dtype != jnp.float32
    return plain and known and case.width <= 128 and case.width % 8 == 0


def _triton_can(case: _Case) -> bool:
    device = case.target.device
    able = case.dtype == jnp.bfloat16 if device is None else device.bf16 > 0
    return able and case.dtype != jnp.float32 and case.width <= 256


def _splash_can(case: _Case) -> bool:
    window, known = case.scores.window, case.scores.windows
    return window is None or isinstance(window, int) or bool(known)


def _cudnn(
    q: Array, k: Array, v: Array, segments: Array | None, scores: Scores
) -> Array:
    return cudnn.attend(q, k, v, scores.scale)


def _triton(
    q: Array, k: Array, v: Array, segments: Array | None, scores: Scores
) -> Array:
    from jaxpeft.models.attention import triton

    return triton.attend(q, k, v, segments, scores)


def _splash(
    q: Array, k: Array, v: Array, segments: Array | None, scores: Scores
) -> Array:
    from jaxpeft.models.attention import splash

    return splash.attend(q, k, v, segments, scores)


# By the platform of the target, the first that can; none: `blockwise`.
IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
    "gpu": (Implementation(_cudnn_can, _cudnn), Implementation(_triton_can, _triton)),
    "tpu": (Implementation(_splash_can, _splash),),
}


def attend(
    q: Float[Array, "batch seq heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    segments: Int[Array, "batch seq"] | None = None,
    scores: Scores | None = None,
    seen: Bool[Array, "batch seq past"] | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Causal attention of a whole sequence to itself, and to what precedes it.

    Args:
        q: the queries, (batch, seq, heads, head_dim).
        k: the keys, (batch, past + seq, kv_heads, head_dim), of which the first `past`
            belong to no segment, and no window is counted to them.
        v: the values, shaped like the keys.
        segments: (batch, seq) int32, each a contiguous range of its row, or None. With
            segments, a token sees only its own: packed examples never see each other,
            and padding (0) sees padding alone. Right padding needs none: what is causal
            never looks there.
        scores: how queries meet keys; None: scaled by 1 / sqrt(head_dim), with neither
            cap nor window.
        seen: (batch, seq, past) bool, which of the first `past` keys a query sees;
            None: all of them.

    Returns:
        (batch, seq, heads, head_dim) in q's dtype; the softmax is float32.
    """
    scores = scores or Scores(q.shape[-1] ** -0.5)
    target = hardware.current()
    case = _Case(target, q.dtype, q.shape[-1], segments is not None, scores)
    if q.shape[1] == k.shape[1] and per_device.divides(q.shape[0]):
        for implementation in IMPLEMENTATIONS.get(target.platform, ()):
            if implementation.can(case):
                of_rows = _without_past(implementation)
                return _on_each_part(of_rows, (q, k, v), (segments, None), scores)
    if per_device.divides(q.shape[0]) and per_device.parts(q.shape[1]) > 1:
        before = k.shape[1] - q.shape[1]
        past = (k[:, :before], v[:, :before]) if before else None
        heads = q, k[:, before:], v[:, before:]
        return _on_each_part(_blockwise, heads, (segments, seen), scores, past)
    return blockwise.attend(q, k, v, segments, scores, seen)


def _without_past(implementation: Implementation) -> Callable[..., Array]:
    def of_rows(
        q: Array, k: Array, v: Array, rows: tuple[Any, None], scores: Scores
    ) -> Array:
        return implementation.attend(q, k, v, rows[0], scores)

    return of_rows


def _blockwise(
    q: Array, k: Array, v: Array, rows: tuple[Any, Any], scores: Scores
) -> Array:
    segments, seen = rows
    return blockwise.attend(q, k, v, segments, scores, seen)


def _on_each_part(
    attend: Callable[[Array, Array, Array, tuple, Scores], Array],
    heads: tuple[Array, Array, Array],
    rows: tuple[Array | None, Array | None],
    scores: Scores,
    past: tuple[Array, Array] | None = None,
) -> Array:
    """Each device attends for its own sequences and heads: kernels know no mesh."""

    def local(q: Array, k: Array, v: Array, rows: Any, window: Any) -> Array:
        own = scores._replace(window=window) if traced else scores
        return attend(q, k, v, rows, own)

    traced = isinstance(scores.window, jax.Array)
    window = scores.window if traced else None
    return per_device.on_each_head(local, heads, rows, window, past)
