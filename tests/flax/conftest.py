"""A small vision transformer and a small Gemma, written in plain Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

WIDTH, HEADS = 16, 4


class Block(nnx.Module):
    """Attention with LinearGeneral, then an MLP."""

    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, rngs=rngs, dropout_rate=0.0, keep_rngs=False
        )
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 24, rngs=rngs)
        self.down = nnx.Linear(24, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class VisionTransformer(nnx.Module):
    """Images (batch, 8, 8, 3) to logits (batch, 5)."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, WIDTH, (4, 4), strides=4, padding="VALID", rngs=rngs)
        places = 0.1 * jax.random.normal(rngs.params(), (1, 4, WIDTH))
        self.places = nnx.Param(places)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 5, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, WIDTH) + self.places[...]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class GemmaLayer(nnx.Module):
    """Einsum projections of one kv head, then a gated MLP; norms before each."""

    def __init__(self, rngs):
        def einsum(equation, shape):
            return nnx.Einsum(equation, shape, rngs=rngs)

        self.norm1 = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.q = einsum("btd,ndh->btnh", (HEADS, WIDTH, 8))
        self.kv = einsum("bsd,cdh->cbsh", (2, WIDTH, 8))
        self.out = einsum("btnh,nhd->btd", (HEADS, 8, WIDTH))
        self.norm2 = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.gate = nnx.Linear(WIDTH, 24, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 24, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(24, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        h = self.norm1(x)
        q, (k, v) = self.q(h), self.kv(h)
        scores = jnp.einsum("btnh,bsh->bnts", q, k) * 8**-0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        x = x + self.out(jnp.einsum("bnts,bsh->btnh", shares, v))
        h = self.norm2(x)
        return x + self.down(nnx.gelu(self.gate(h)) * self.up(h))


class Gemma(nnx.Module):
    """Tokens (batch, seq) below 31 to logits (batch, seq, 31), the embedding tied."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(31, WIDTH, rngs=rngs)
        self.layers = nnx.List([GemmaLayer(rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) * WIDTH**0.5
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.norm(x))


@pytest.fixture(scope="session")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="session")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, 31, (2, 7)))


@pytest.fixture(scope="session")
def vit():
    return nnx.jit(lambda: VisionTransformer(nnx.Rngs(0)))()  # one compilation


@pytest.fixture(scope="session")
def gemma():
    return nnx.jit(lambda: Gemma(nnx.Rngs(0)))()


@pytest.fixture(scope="session")
def call():
    """call(model, input): the model's output, jitted."""
    return nnx.jit(lambda model, x: model(x))
