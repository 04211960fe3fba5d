"""What precedes every sequence: the keys and values of virtual tokens.

They are prompt tuning's, which each layer computes from what the one below gave, or
prefix tuning's, which are trained themselves. Here is what the model makes of them;
`jaxpeft.adapters.virtual` has the values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxpeft.models import rope
from jaxpeft.models.attention import Scores, attend
from jaxpeft.models.layer import Params, apply_layer
from jaxpeft.models.spec import ModelConfig


class Past(NamedTuple):
    """The keys and values of the virtual tokens in one layer.

    Attributes:
        k: (1 or batch, choices * n, kv_heads, head_dim).
        v: shaped like `k`.
        choices: how often each of the n virtual tokens is there: once, or once for each
            set of frequencies between which the length of a sequence chooses.
    """

    k: Array
    v: Array
    choices: int


def virtual_count(weights: Params) -> int:
    """How many virtual tokens precede every sequence, given `params["model"]`."""
    if "prompt" in weights:
        return weights["prompt"]["tokens"].shape[-2]
    prefix = weights["layers"]["self_attn"].get("prefix")
    return 0 if prefix is None else prefix["k"].shape[-2]


def prompt(weights: Params, cfg: ModelConfig) -> Array | None:
    """What the first layer reads of the virtual tokens.

    Args:
        weights: `params["model"]`.
        cfg: the model's hyperparameters.

    Returns:
        (1, n, hidden) in the dtype of the activations; None where none is read.
    """
    if "prompt" not in weights:
        return None
    table, values = weights["embed_tokens"], weights["prompt"]["tokens"].weight
    dtype = cfg.activation_dtype or table["embedding"].dtype
    if cfg.position_embedding == "learned":
        values = values + table["positions"][: values.shape[0]]
    read = values.astype(dtype)[None]
    return read if cfg.prompt_scale is None else read * cfg.prompt_scale


def prompt_lengths(cfg: ModelConfig, lengths: Array | None) -> Array | None:
    """The lengths of the sequences that a prompt is computed for.

    The angles of virtual tokens may depend on the length of what they precede. Where it
    chooses between sets of frequencies, they are computed for each set.

    Args:
        cfg: the model's hyperparameters.
        lengths: of all sequences, as `rope.lengths_of` gives them; None where no angle
            depends on them.

    Returns:
        (choices, 1) int32, an entry for each set of frequencies; where frequencies
        change with every length, (batch, 1), the longest of each row; None without
        `lengths`.
    """
    if lengths is None:
        return None
    if ends := rope.switches(cfg):
        return jnp.array([ends[0], *(end + 1 for end in ends)])[:, None]
    return jnp.max(lengths, axis=1, keepdims=True)


def prompt_block(
    count: int, cfg: ModelConfig, lengths: Array | None
) -> Callable[..., tuple[Array, Past]]:
    """The function (prompt, weights of a layer, its number) -> (prompt, its past).

    Args:
        count: n, of virtual tokens.
        cfg: the model's hyperparameters.
        lengths: what `prompt_lengths` returned.

    Returns:
        The function, whose prompt is (1 or as many as lengths, n, hidden).
    """
    places = jnp.arange(count)[None]
    if lengths is not None:
        places = jnp.broadcast_to(places, (len(lengths), count))
    angles = rope.by_layer(places, cfg, lengths)
    choices = len(rope.switches(cfg)) + 1

    def block(x: Array, layer: Params, number: Array) -> tuple[Array, Past]:
        scores, kept = Scores.of_layer(cfg, number), []

        def attention(q: Array, k: Array, v: Array) -> Array:
            kept.append((k, v))
            return attend(q, k, v, None, scores)

        x = apply_layer(x, layer, angles(number), attention, cfg)
        k, v = kept[0]
        if choices > 1:  # one after the other, of which each token sees its own
            k, v = (y.reshape(1, choices * count, *y.shape[2:]) for y in (k, v))
        return x, Past(k, v, choices)

    return block


def prefix(layer: Params, cfg: ModelConfig, dtype: Any) -> Past | None:
    """The trained keys and values of a layer.

    Args:
        layer: its weights.
        cfg: the model's hyperparameters.
        dtype: of the activations.
    """
    values = layer["self_attn"].get("prefix")
    if values is None:
        return None
    heads = cfg.num_key_value_heads, cfg.head_dim
    k, v = (
        values[name].weight.astype(dtype).reshape(1, -1, *heads) for name in ("k", "v")
    )
    return Past(k, v, 1)


def seen(
    past: Past,
    positions: Array,
    lengths: Array | None,
    window: Any,
    cfg: ModelConfig,
) -> Array | None:
    """Which virtual tokens each token sees.

    Args:
        past: of one layer.
        positions: (batch, seq) int32, virtual tokens counted.
        lengths: of the sequences, as `rope.lengths_of` gives them; None where no angle
            depends on them.
        window: of the layer, see `Scores`. Distance is one of positions: between a
            virtual token and one of the sequence there may be padding or, packed, other
            examples.
        cfg: the model's hyperparameters.

    Returns:
        (batch, seq, choices * n) bool; None: all of them.
    """
    near = chosen = None
    slots = jnp.arange(past.k.shape[1])
    count = past.k.shape[1] // past.choices
    if window is not None:
        near = positions[..., None] - slots % count < window
    if past.choices > 1:
        assert lengths is not None
        choice = jnp.searchsorted(jnp.array(rope.switches(cfg)), lengths)
        chosen = choice[..., None] == slots // count
        chosen = jnp.broadcast_to(chosen, (*positions.shape, len(slots)))
    if near is None or chosen is None:
        return chosen if near is None else near
    return near & chosen


def after(past: Array, new: Array) -> Array:
    """Keys or values of a sequence behind those that precede it.

    Args:
        past: (1 or batch, n, kv_heads, head_dim).
        new: (batch, seq, kv_heads, head_dim).

    Returns:
        (batch, n + seq, kv_heads, head_dim).
    """
    before = jnp.broadcast_to(past, (new.shape[0], *past.shape[1:]))
    return jnp.concatenate([before.astype(new.dtype), new], axis=1)
