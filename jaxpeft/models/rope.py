"""Rotary position embeddings (Su et al., 2021) and the scalings that Llamas use.

Each kind follows `transformers.modeling_rope_utils`: "linear" (positions divided),
"dynamic" (NTK-aware base growing with the length), "yarn" (Peng et al., 2023),
"longrope" (Ding et al., 2024) and "llama3" (Llama 3.1, section on long context).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int32

from jaxpeft.models.spec import ModelConfig, Rope


def cos_sin(
    positions: Int32[Array, "batch seq"], cfg: ModelConfig, rope: Rope | None = None
) -> tuple[Float32[Array, "batch seq half"], Float32[Array, "batch seq half"]]:
    """Cosine and sine of every rotation angle.

    Args:
        positions: (batch, seq) int32.
        cfg: the model's hyperparameters.
        rope: the rotary embedding; None: that of `cfg`.

    Returns:
        Two float32 arrays (batch, seq, half of the rotated part of a head), already
        multiplied by the attention factor of "yarn" and "longrope".
    """
    frequencies, factor = _frequencies(positions, cfg, rope or cfg.rope)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "batch seq heads head_dim"],
    cos: Float[Array, "batch seq half"],
    sin: Float[Array, "batch seq half"],
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates the pairs (x[i], x[i + n/2]) of every head's first n, in float32.

    Args:
        x: queries or keys, (batch, seq, heads, head_dim).
        cos: of the angles, (batch, seq, n/2).
        sin: of the angles, (batch, seq, n/2).

    Returns:
        x's shape and dtype; what is beyond the first n of a head stays as it is.
    """
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    first, second = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    turned = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def _frequencies(positions: Array, cfg: ModelConfig, rope: Rope) -> tuple[Array, float]:
    """Inverse frequencies (half of what rotates,) float32 and the attention factor."""
    dim = cfg.rotary_dim or cfg.head_dim
    exponents = np.arange(0, dim, 2, dtype=np.float32) / dim
    plain = (1.0 / (rope.theta**exponents)).astype(np.float32)
    if rope.kind == "linear":
        return jnp.asarray(plain / np.float32(rope.factor)), 1.0
    if rope.kind == "llama3":
        return jnp.asarray(_llama3(plain, rope)), 1.0
    if rope.kind == "yarn":
        return jnp.asarray(_yarn(rope, dim)), _yarn_factor(rope)
    if rope.kind == "dynamic":
        return _dynamic(positions, exponents, cfg, rope, dim), 1.0
    if rope.kind == "longrope":
        return _longrope(positions, plain, rope), _longrope_factor(rope)
    return jnp.asarray(plain), 1.0


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
    positions: Array, exponents: np.ndarray, cfg: ModelConfig, rope: Rope, dim: int
) -> Array:
    """The base grows once the sequence is longer than the trained context."""
    factor, trained = rope.factor, cfg.max_position_embeddings
    length = jnp.maximum(jnp.max(positions) + 1, trained).astype(jnp.float32)
    stretch = factor * length / trained - (factor - 1)
    base = rope.theta * stretch ** (dim / (dim - 2))
    return 1.0 / base ** jnp.asarray(exponents)


def _longrope(positions: Array, plain: np.ndarray, rope: Rope) -> Array:
    """One set of divisors up to the trained context, another beyond it."""
    short = plain / np.asarray(rope.short_factor, np.float32)
    long = plain / np.asarray(rope.long_factor, np.float32)
    beyond = jnp.max(positions) + 1 > rope.original_max_position_embeddings
    return jnp.where(beyond, long, short)


def _longrope_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    original = rope.original_max_position_embeddings
    return math.sqrt(1 + math.log(rope.factor) / math.log(original))
