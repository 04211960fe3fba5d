"""Rotary position embeddings (Su et al., 2021) and the scalings that Llamas use.

Each kind follows `transformers.modeling_rope_utils`: "linear" (positions divided),
"dynamic" (NTK-aware base growing with the length), "yarn" (Peng et al., 2023),
"longrope" (Ding et al., 2024) and "llama3" (Llama 3.1, section on long context).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int, Int32

from jaxpeft import hardware
from jaxpeft.models.spec import ModelConfig, Rope

# Kinds whose frequencies depend on how long the whole sequence is.
BY_LENGTH = ("dynamic", "longrope")


def cos_sin(
    positions: Int32[Array, "batch seq"],
    cfg: ModelConfig,
    rope: Rope | None = None,
    lengths: Int[Array, "batch any"] | None = None,
) -> tuple[Float32[Array, "batch seq half"], Float32[Array, "batch seq half"]]:
    """Cosine and sine of every rotation angle.

    Args:
        positions: (batch, seq) int32.
        cfg: the model's hyperparameters.
        rope: the rotary embedding; None: that of `cfg`.
        lengths: how many tokens the sequence of each token has, (batch, seq) int32, or
            (batch, 1) where each row is one sequence, as `lengths_of` gives them. Only
            "dynamic" and "longrope" read them.

    Returns:
        Two float32 arrays (batch, seq, half of the rotated part of a head), already
        multiplied by the attention factor of "yarn" and "longrope".
    """
    rope = rope or cfg.rope
    if rope.kind in BY_LENGTH and lengths is None:
        lengths = lengths_of(positions, None)
    frequencies, factor = _frequencies(lengths, cfg, rope)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


class Angles(NamedTuple):
    """What a layer does to queries and keys by their places.

    Attributes:
        cos: cosines of the angles that they rotate by, as `cos_sin` gives them.
        sin: their sines.
        queries: what queries are then multiplied by, (batch, seq) float32; None: by
            nothing.
    """

    cos: Array
    sin: Array
    queries: Array | None = None


def by_layer(
    positions: Int[Array, "batch seq"],
    cfg: ModelConfig,
    lengths: Int[Array, "batch any"] | None = None,
) -> Callable[[Array], Angles | None]:
    """The function from a layer's number to the angles that it rotates by.

    Args:
        positions: (batch, seq) int32.
        cfg: the model's hyperparameters.
        lengths: as for `cos_sin`.

    Returns:
        A function of () int32; its result is None where places are learned and nothing
        rotates.
    """
    if cfg.position_embedding == "learned":
        return lambda number: None
    plain, queries = cos_sin(positions, cfg, None, lengths), None
    if cfg.rope.llama_4_scaling_beta:
        queries = _query_scale(positions, cfg.rope)
    if not any(cfg.rotations):
        return lambda number: Angles(*plain, queries)
    kinds = [plain, plain, (jnp.ones_like(plain[0]), jnp.zeros_like(plain[1]))]
    if cfg.local_rope is not None:
        kinds[1] = cos_sin(positions, cfg, cfg.local_rope, lengths)
    cos, sin = (jnp.stack(parts) for parts in zip(*kinds, strict=True))
    kind = jnp.asarray(cfg.rotations)  # -1 is the last: no rotation

    def angles(number: Array) -> Angles:
        return Angles(cos[kind[number]], sin[kind[number]], queries)

    return angles


def _query_scale(positions: Array, rope: Rope) -> Array:
    """What queries beyond the original context grow by, as in Llama 4, float32."""
    beyond = jnp.floor(positions / rope.original_max_position_embeddings)
    return 1.0 + rope.llama_4_scaling_beta * jnp.log1p(beyond)


def by_length(cfg: ModelConfig) -> bool:
    """Whether a token's angles depend on the length of its whole sequence."""
    return any(rope.kind in BY_LENGTH for rope in _ropes(cfg))


def switches(cfg: ModelConfig) -> tuple[int, ...]:
    """The lengths beyond which "longrope" has other frequencies, ascending.

    All keys of a sequence have those of its length: one that grows beyond such a length
    is read anew, as transformers does for Phi-3.
    """
    kinds = [rope for rope in _ropes(cfg) if rope.kind == "longrope"]
    return tuple(sorted({rope.original_max_position_embeddings for rope in kinds}))


def lengths_of(
    positions: Int[Array, "batch seq"], segments: Int[Array, "batch seq"] | None
) -> Int[Array, "batch any"]:
    """How many tokens the sequence of each token has: its largest position + 1.

    Args:
        positions: (batch, seq) int32.
        segments: (batch, seq) int32, which packed example a token belongs to; None:
            each row is one sequence.

    Returns:
        (batch, seq) int32 with segments, (batch, 1) without.
    """
    if segments is None:
        return jnp.max(positions, axis=1, keepdims=True) + 1

    def of_row(positions: Array, segments: Array) -> Array:
        count = len(positions) + 1
        return jax.ops.segment_max(positions, segments, count)[segments] + 1

    return jax.vmap(of_row)(positions, segments)


def rotate(
    x: Float[Array, "batch seq heads head_dim"],
    cos: Float[Array, "batch seq half"],
    sin: Float[Array, "batch seq half"],
    interleaved: bool = False,
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates the pairs (x[i], x[i + n/2]) of every head's first n, in float32.

    Args:
        x: queries or keys, (batch, seq, heads, head_dim).
        cos: of the angles, (batch, seq, n/2).
        sin: of the angles, (batch, seq, n/2).
        interleaved: the pairs are (x[2i], x[2i + 1]).

    Returns:
        x's shape and dtype; what is beyond the first n of a head stays as it is.
    """
    if hardware.current().platform == "tpu":
        return _turned(interleaved, x, cos, sin)
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    wide = turned.astype(jnp.float32)
    if interleaved:
        first, second = wide[..., ::2], wide[..., 1::2]
    else:
        first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        turned = jnp.stack(rotated, axis=-1).reshape(turned.shape).astype(x.dtype)
    else:
        turned = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _turned(interleaved: bool, x: Array, cos: Array, sin: Array) -> Array:
    """`rotate` as `x * cos + (x @ partner) * sin`, of the same values.

    A TPU has 128 numbers side by side, and to part heads or to join them there costs
    more than the attention itself. The product with a permutation is exact in bfloat16,
    and in float32 with all the parts that a TPU multiplies it by.
    """
    half, width = cos.shape[-1], x.shape[-1]
    partner = jnp.asarray(_partners(width, half, interleaved), x.dtype)
    exact = None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    others = jnp.matmul(x, partner, precision=exact).astype(jnp.float32)

    def spread(angles: Array, beyond: float) -> Array:
        """Of half of the rotated part -> of a head, for all heads."""
        both = jnp.repeat(angles, 2, -1) if interleaved else jnp.tile(angles, 2)
        room = [(0, 0), (0, 0), (0, width - 2 * half)]
        return jnp.pad(both, room, constant_values=beyond)[:, :, None, :]

    turned = x.astype(jnp.float32) * spread(cos, 1.0) + others * spread(sin, 0.0)
    return turned.astype(x.dtype)


def _turned_forward(
    interleaved: bool, x: Array, cos: Array, sin: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _turned(interleaved, x, cos, sin), (cos, sin)


def _turned_back(interleaved: bool, angles: tuple[Array, Array], dy: Array) -> tuple:
    cos, sin = angles
    return _turned(interleaved, dy, cos, -sin), None, None


_turned.defvjp(_turned_forward, _turned_back)


def _partners(width: int, half: int, interleaved: bool) -> np.ndarray:
    """(width, width): x times it is what every x[i] meets the sine with, signed."""
    first = np.arange(half) * (2 if interleaved else 1)
    second = first + (1 if interleaved else half)
    matrix = np.zeros((width, width), np.float32)
    matrix[second, first], matrix[first, second] = -1, 1
    return matrix


def _ropes(cfg: ModelConfig) -> list[Rope]:
    return [cfg.rope] if cfg.local_rope is None else [cfg.rope, cfg.local_rope]


def _frequencies(
    lengths: Array | None, cfg: ModelConfig, rope: Rope
) -> tuple[Array, float]:
    """Inverse frequencies and the attention factor.

    The frequencies are float32, (half of what rotates,), after the axes of `lengths`
    for the kinds that read these.
    """
    dim = cfg.rotary_dim or cfg.head_dim
    exponents = np.arange(0, dim, 2, dtype=np.float32) / dim
    plain = (1.0 / (rope.theta**exponents)).astype(np.float32)
    if rope.kind == "linear":
        return jnp.asarray(plain / np.float32(rope.factor)), 1.0
    if rope.kind == "llama3":
        return jnp.asarray(_llama3(plain, rope)), 1.0
    if rope.kind == "yarn":
        return jnp.asarray(_yarn(rope, dim)), _yarn_factor(rope)
    if rope.kind not in BY_LENGTH:
        return jnp.asarray(plain), 1.0
    assert lengths is not None
    if rope.kind == "dynamic":
        return _dynamic(lengths, exponents, cfg, rope, dim), 1.0
    return _longrope(lengths, plain, rope), _longrope_factor(rope)


def _llama3(plain: np.ndarray, rope: Rope) -> np.ndarray:
    """Long wavelengths divided by the factor, short ones kept, a ramp between them."""
    original = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    ramp = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = np.where(wavelength > original / low, plain / rope.factor, ramp)
    return np.where(wavelength < original / high, plain, scaled).astype(np.float32)


def _yarn(rope: Rope, dim: int) -> np.ndarray:
    """Interpolated frequencies for slow rotations, plain ones for fast rotations."""
    original = rope.original_max_position_embeddings

    def correction(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = correction(rope.beta_fast), correction(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    plain = 1.0 / (rope.theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim))
    return (plain / rope.factor * ramp + plain * (1 - ramp)).astype(np.float32)


def _yarn_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _dynamic(
    lengths: Array, exponents: np.ndarray, cfg: ModelConfig, rope: Rope, dim: int
) -> Array:
    """The base grows once the sequence is longer than the trained context."""
    factor, trained = rope.factor, cfg.max_position_embeddings
    length = jnp.maximum(lengths, trained).astype(jnp.float32)[..., None]
    stretch = factor * length / trained - (factor - 1)
    base = rope.theta * stretch ** (dim / (dim - 2))
    return 1.0 / base ** jnp.asarray(exponents)


def _longrope(lengths: Array, plain: np.ndarray, rope: Rope) -> Array:
    """One set of divisors up to the trained context, another beyond it."""
    short = plain / np.asarray(rope.short_factor, np.float32)
    long = plain / np.asarray(rope.long_factor, np.float32)
    beyond = lengths[..., None] > rope.original_max_position_embeddings
    return jnp.where(beyond, long, short)


def _longrope_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    original = rope.original_max_position_embeddings
    return math.sqrt(1 + math.log(rope.factor) / math.log(original))
