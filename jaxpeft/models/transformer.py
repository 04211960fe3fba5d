"""The decoder-only transformer: pure functions over stacked parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from jaxpeft import kernel, tree
from jaxpeft.devices import constraints
from jaxpeft.models import kept, past, rope, stacks
from jaxpeft.models.attention import Scores, attend
from jaxpeft.models.head import head
from jaxpeft.models.layer import Params, apply_layer, norm
from jaxpeft.models.noise import NOISE
from jaxpeft.models.past import Past, virtual_count
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import param_specs


def forward(
    params: Params,
    tokens: Int[Array, "batch seq"],
    cfg: ModelConfig,
    *,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
) -> Float32[Array, "batch seq vocab"]:
    """The logits of the next token after every token.

    Args:
        params: the model's, with or without adapters.
        tokens: (batch, seq) int32.
        positions: (batch, seq) int32, by default 0, 1, ...
        segments: (batch, seq) int32, which packed example a token belongs to (0:
            padding); None: each row is one sequence.

    Returns:
        (batch, seq, vocab) float32.
    """
    hidden = hidden_states(params, tokens, cfg, positions=positions, segments=segments)
    return (hidden @ head(params, cfg)).astype(jnp.float32)


def hidden_states(
    params: Params,
    tokens: Int[Array, "batch seq"],
    cfg: ModelConfig,
    *,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq hidden"]:
    """The normalised last hidden states, which the head reads.

    The arguments are those of `forward`.

    Returns:
        (batch, seq, hidden) in the dtype of the activations.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    weights = params["model"]
    positions = positions + virtual_count(weights)
    block = make_block(cfg, positions, segments)
    prompt, before = past.prompt(weights, cfg), None
    if prompt is not None:
        lengths = past.prompt_lengths(cfg, _lengths(cfg, positions, segments))
        before = past.prompt_block(prompt.shape[1], cfg, lengths)
        if lengths is not None:
            prompt = jnp.broadcast_to(prompt, (len(lengths), *prompt.shape[1:]))

    def body(
        run: stacks.Span, carry: tuple, layer: tuple[Params, Array]
    ) -> tuple[tuple, None]:
        (x, prompt), number = carry, layer[1]
        x, own = kept.read(x, cfg), run.complete(*layer)
        virtual = past.prefix(own, cfg, x.dtype)
        if before is not None:
            prompt, virtual = before(prompt, own, number)
        return (block(x, own, number, virtual), prompt), None

    carry = embed(weights["embed_tokens"], tokens, positions, cfg), prompt
    for run in stacks.spans(weights["layers"], cfg.num_hidden_layers):
        # Outside of it, one layer read from a frozen stack would be kept.
        block_of = jax.checkpoint(
            functools.partial(body, run),
            policy=kept.policy(cfg),
            prevent_cse=False,
        )
        carry, _ = jax.lax.scan(block_of, carry, (run.stacked, run.numbers))
    return norm(carry[0], weights["norm"], cfg)


def make_block(
    cfg: ModelConfig, positions: Array, segments: Array | None
) -> Callable[..., Array]:
    """The function (x, weights of one layer, its number) -> x of a whole sequence.

    Positions and segments are those of `forward`, virtual tokens counted. The
    function's x is (batch, seq, hidden), the number () int32. It also takes the keys
    and values of virtual tokens, if there are any.
    """
    lengths = _lengths(cfg, positions, segments)
    angles = rope.by_layer(constraints.split_sequence(positions), cfg, lengths)
    axes = {
        name: spec.axes[1:]
        for name, spec in tree.walk(param_specs(cfg)["model"]["layers"])
    }

    def gathered(layer: Params) -> Params:
        weights = dict(tree.walk(layer))
        changes = {
            name: _gathered(weights[name], own)
            for name, own in axes.items()
            if name in weights
        }
        return tree.replace(layer, changes)

    def block(
        x: Array, layer: Params, number: Array, virtual: Past | None = None
    ) -> Array:
        scores, seen = Scores.of_layer(cfg, number), None
        if virtual is not None:
            seen = past.seen(virtual, positions, lengths, scores.window, cfg)

        def attention(q: Array, k: Array, v: Array) -> Array:
            if virtual is not None:
                k, v = past.after(virtual.k, k), past.after(virtual.v, v)
            return attend(q, k, v, segments, scores, seen)

        x = constraints.split_batch(x)
        return constraints.split_batch(
            apply_layer(x, gathered(layer), angles(number), attention, cfg)
        )

    return block


def _gathered(weight: Any, axes: kernel.Axes) -> Any:
    """A weight of one layer, what "fsdp" splits of its storage brought together.

    What an adapter adds stays where it is: it is small, and trains.
    """
    if not kernel.is_node(weight):
        return constraints.gathered(weight, axes)
    base = kernel.base_of(weight)
    if base is not weight:
        return dataclasses.replace(weight, base=_gathered(base, axes))
    if kernel.is_adapter(weight):
        return weight
    return jax.tree.map(constraints.gathered, weight, kernel.axes_of(weight, axes))


def _lengths(
    cfg: ModelConfig, positions: Array, segments: Array | None
) -> Array | None:
    """`rope.lengths_of`; None where no angle depends on them."""
    return rope.lengths_of(positions, segments) if rope.by_length(cfg) else None


def embed(weights: Params, tokens: Array, positions: Array, cfg: ModelConfig) -> Array:
    """What the first layer reads: the tokens' embeddings, scaled as the family does.

    Args:
        weights: of the module `embed_tokens`, perhaps with `Noise` beside them.
        tokens: (batch, seq) int32.
        positions: (batch, seq) int32, read where the embedding of places is learned.

    Returns:
        (batch, seq, hidden) in the dtype of the activations.
    """
    x = constraints.split_looked_up(weights["embedding"][tokens])
    if "positions" in weights:
        x = x + constraints.split_looked_up(weights["positions"][positions])
    x = x.astype(cfg.activation_dtype or x.dtype)
    x = x if cfg.embedding_scale is None else x * cfg.embedding_scale
    return weights[NOISE].added_to(x) if NOISE in weights else x
