"""Decoding with a cache of keys and values against the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import models
from jaxpeft.models.cache import decode

TOKENS = np.random.default_rng(3).integers(0, 61, (2, 12)).astype(np.int32)
step = jax.jit(decode, static_argnums=2, static_argnames="last_only")


@pytest.fixture(scope="module")
def expected(llama):
    return models.forward(llama.params, TOKENS, llama.cfg)


def positions(start, stop):
    return jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))


@pytest.mark.slow
def test_a_prefix_at_once_and_then_token_by_token(llama, expected):
    cache = models.init_cache(llama.cfg, 2, 16, "float32")
    at, found = 0, []
    for new in (7, 1, 1, 1, 1, 1):
        stop = at + new
        logits, cache = step(
            llama.params,
            TOKENS[:, at:stop],
            llama.cfg,
            cache,
            positions=positions(at, stop),
            valid=jnp.ones((2, new), bool),
        )
        found.append(logits)
        at = stop
    assert int(cache.length) == 12
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)


def test_padding_on_the_left_is_never_seen(llama, expected):
    padded = np.concatenate([np.full((2, 4), 5, np.int32), TOKENS], axis=1)
    valid = np.arange(16)[None] >= np.array([[4], [4]])
    logits, cache = step(
        llama.params,
        padded,
        llama.cfg,
        models.init_cache(llama.cfg, 2, 16, "float32"),
        positions=jnp.maximum(positions(0, 16) - 4, 0),
        valid=jnp.asarray(valid),
    )
    np.testing.assert_allclose(logits[:, 4:], expected, atol=1e-5)
    np.testing.assert_array_equal(cache.valid, valid)


def test_last_only_is_the_last_of_all(llama, expected):
    logits, _ = step(
        llama.params,
        TOKENS,
        llama.cfg,
        models.init_cache(llama.cfg, 2, 16, "float32"),
        positions=positions(0, 12),
        valid=jnp.ones((2, 12), bool),
        last_only=True,
    )
    assert logits.shape == (2, 1, 61) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[:, 0], expected[:, -1], atol=1e-5)
