"""Blocks of tensors of all shapes beside a loop over them in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.quant import codebooks, quantize, zeros

SHAPES = [((5, 512), 0), ((300,), 0), ((7, 99), 0), ((3, 10, 70), 1), ((2, 3, 256), 1)]


def normal(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("shape", "stacked"), SHAPES)
def test_blocks_are_those_of_a_loop(shape, stacked, signed):
    x = normal(shape) if signed else normal(shape) ** 2
    found = quantize(jnp.asarray(x), signed=signed, stacked=stacked)
    values = codebooks.values(signed)
    scales, decoded = [], []
    for tensor in x.reshape(-1, int(np.prod(shape[stacked:]))):
        for start in range(0, tensor.size, 256):
            block = tensor[start : start + 256]
            scale = np.abs(block).max()
            nearest = np.abs(block[:, None] / scale - values).argmin(1)
            scales.append(scale)
            decoded.append(values[nearest] * scale)
    np.testing.assert_array_equal(np.ravel(found.scales), scales)
    assert found.codes.shape == shape and found.codes.dtype == jnp.uint8
    np.testing.assert_allclose(
        np.ravel(found.dequantize()), np.concatenate(decoded), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "stacked", "scales"),
    [
        ((5, 512), 0, (5, 2)),
        ((2, 3, 256), 1, (2, 3, 1)),
        ((7, 99), 0, (3,)),
        ((3, 10, 70), 1, (3, 3)),
        ((300,), 1, (300, 1)),
    ],
)
def test_shapes(shape, stacked, scales):
    empty = zeros(shape, signed=True, stacked=stacked)
    assert empty.codes.shape == shape and empty.scales.shape == scales
    filled = quantize(jnp.ones(shape), signed=True, stacked=stacked)
    assert filled.scales.shape == scales
    np.testing.assert_array_equal(empty.dequantize(), np.zeros(shape))
    np.testing.assert_array_equal(filled.dequantize(), np.ones(shape))


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-30, 3e38])
def test_scales_from_zero_to_the_largest(size):
    x = np.float32(size) * np.linspace(-1, 1, 256, dtype=np.float32)
    found = np.asarray(quantize(jnp.asarray(x), signed=True).dequantize())
    # The largest number below 1 that has a negative is 0.993; the bins are 0.014 wide.
    np.testing.assert_allclose(found, x, atol=max(0.008 * size, 1e-37))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("signed", [True, False])
def test_a_block_that_is_not_finite_shows_and_spoils_no_other(bad, signed):
    x = np.abs(normal((3, 256)))
    x[1, 7] = bad if signed else abs(bad)
    found = np.asarray(quantize(jnp.asarray(x), signed=signed).dequantize())
    assert not np.isfinite(found[1]).any()
    np.testing.assert_allclose(found[[0, 2]], x[[0, 2]], rtol=0.3, atol=1e-5)


def test_4_bits_pack_two_codes_a_byte():
    x = normal((4, 256))
    found = quantize(jnp.asarray(x), signed=True, block_size=128, bits=4)
    assert found.codes.shape == (4, 128) and found.scales.shape == (4, 2)
    values = codebooks.values(True, 4)
    blocks = x.reshape(4, 2, 128)
    scaled = blocks / np.abs(blocks).max(-1, keepdims=True)
    codes = np.abs(scaled[..., None] - values).argmin(-1).reshape(4, 256)
    np.testing.assert_array_equal(found.codes, codes[:, ::2] * 16 + codes[:, 1::2])
    decoded = values[codes].reshape(blocks.shape) * found.scales[..., None]
    np.testing.assert_array_equal(found.dequantize(), decoded.reshape(x.shape))
