"""How queries meet keys: scale, soft cap and window, and the keys of packed rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from jaxpeft.models.spec import ModelConfig

MASKED = -1e30
EVERYTHING = 2**31 - 1  # the window of a layer that has none, where others have one


class Scores(NamedTuple):
    """How queries meet keys, beyond causality.

    Attributes:
        scale: what the products of queries and keys are multiplied by.
        softcap: c of `c * tanh(logit / c)`; None: no cap.
        window: how many tokens back a query sees, itself among them, () int32 or a
            number; None: all.
        windows: the numbers that a window given as an array can be; (): not known.
    """

    scale: float
    softcap: float | None = None
    window: Any = None
    windows: tuple[int, ...] = ()

    @classmethod
    def of_layer(cls, cfg: ModelConfig, number: Array) -> "Scores":
        """How the queries of one layer of a model meet the keys.

        Args:
            cfg: the model's hyperparameters.
            number: of the layer, () int32.
        """
        scale = cfg.attention_scale or cfg.head_dim**-0.5
        window, different = None, set(cfg.windows)
        windows = tuple(sorted(w or EVERYTHING for w in different))
        if len(different) == 1:
            [window] = different
        elif different:
            window = jnp.asarray([w or EVERYTHING for w in cfg.windows])[number]
        return cls(scale, cfg.attention_softcap, window, windows)

    def capped(self, logits: Array) -> Array:
        """The logits after the cap; their shape and dtype stay.

        Args:
            logits: products of queries and keys, scaled.
        """
        if self.softcap is None:
            return logits
        return self.softcap * jnp.tanh(logits / self.softcap)

    def slope(self, capped: Array) -> Array | float:
        """The derivative of `capped` by its logits, in the shape of its result.

        Args:
            capped: what `capped` returned.

        Returns:
            The derivative; 1.0 without a cap.
        """
        if self.softcap is None:
            return 1.0
        return 1.0 - jnp.square(capped / self.softcap)


def first_keys(
    segments: Int[Array, "batch seq"] | None, window: Any, seq: int
) -> Int[Array, "rows seq"]:
    """The first key that each query sees: it sees all from there to itself.

    So packing, windows and causality are one thing, without an array of all pairs.

    Args:
        segments: (batch, seq) int32, each a contiguous range; None: a row is one.
        window: as of `Scores`.
        seq: the length of the rows.

    Returns:
        (batch, seq) int32, or (1, seq) without segments. It never falls along a row.
    """
    place = jnp.arange(seq, dtype=jnp.int32)[None]
    first = jnp.zeros_like(place)
    if segments is not None:
        begins = segments[:, 1:] != segments[:, :-1]
        begins = jnp.pad(begins, ((0, 0), (1, 0)))
        first = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    if window is not None:
        first = jnp.maximum(first, place - (jnp.asarray(window, jnp.int32) - 1))
    return first
