"""Attention, with its own backward pass, against torch's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpeft.models.attention import attend, attend_cached

HEADS, KEY_HEADS, DIM = 4, 2, 8


def arrays(seq, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, seq, heads, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def segments_of(seq):
    """Three examples, then padding; the second row is one example."""
    cuts = [seq // 5, seq // 2, seq - seq // 8]
    first = np.searchsorted(cuts, np.arange(seq), side="right") + 1
    return np.stack([np.where(first == 4, 0, first), np.ones(seq)]).astype(np.int32)


def reference(q, k, v, dout, mask):
    """torch's output and gradients, float64, keys repeated for their groups."""
    q, k, v, dout = (torch.from_numpy(x).double() for x in (q, k, v, dout))
    for x in (q, k, v):
        x.requires_grad_()
    repeats = q.shape[2] // k.shape[2]
    many = [x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), *many, attn_mask=torch.from_numpy(mask)[:, None]
    ).transpose(1, 2)
    out.backward(dout)
    return [out.detach().numpy()] + [x.grad.numpy() for x in (q, k, v)]


@jax.jit
def here(q, k, v, dout, segments):
    out, backward = jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)
    return [out, *backward(dout)]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("seq", [1, 7, 63, 64, 65, 200])
def test_output_and_gradients(seq, packed):
    q, k, v, dout = arrays(seq)
    segments = segments_of(seq) if packed else None
    mask = np.tril(np.ones((2, seq, seq), bool))
    if packed:
        mask &= segments[:, :, None] == segments[:, None, :]
    expected = reference(q, k, v, dout, mask)
    for found, wanted in zip(here(q, k, v, dout, segments), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("key_heads", [1, 4])
def test_any_grouping(key_heads):
    rng = np.random.default_rng(1)
    shapes = [(2, 9, heads, DIM) for heads in (HEADS, key_heads, key_heads, HEADS)]
    made = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    expected = reference(*made, np.tril(np.ones((2, 9, 9), bool)))
    for found, wanted in zip(here(*made, None), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_large_logits_do_not_overflow():
    q, k, v, dout = arrays(16)
    expected = reference(100 * q, k, v, dout, np.tril(np.ones((2, 16, 16), bool)))
    found = here(100 * q, k, v, dout, None)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    assert all(np.isfinite(x).all() for x in found)


def test_16_bits_stay_16_bits_and_near():
    made = arrays(70)
    expected = reference(*made, np.tril(np.ones((2, 70, 70), bool)))
    found = here(*(x.astype(jnp.bfloat16) for x in made), None)
    for x, wanted in zip(found, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(x, np.float64) - wanted)
        assert error < 0.02 * np.linalg.norm(wanted)


def test_against_a_cache_only_what_is_visible_counts():
    q, k, v, dout = arrays(12)
    visible = np.random.default_rng(2).random((2, 12, 12)) < 0.5
    visible[:, :, 0] = True
    expected = reference(q, k, v, dout, visible)[0]
    found = attend_cached(*(jnp.asarray(x) for x in (q, k, v, visible)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
