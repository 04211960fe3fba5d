"""Code books beside bitsandbytes' and torchao's, encoding beside brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bitsandbytes.functional import create_dynamic_map

from jaxpeft.quant import codebooks

BOOKS = [(True, 8), (False, 8), (True, 4), (False, 4)]
TORCHAO_4BIT = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]


@pytest.mark.parametrize("signed", [True, False])
def test_the_8_bit_books_are_bitsandbytes_bit_for_bit(signed):
    expected = create_dynamic_map(signed).numpy()
    found = codebooks.values(signed)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


def test_the_4_bit_books_are_torchao_s():
    signed = [-x for x in reversed(TORCHAO_4BIT)] + [0.0, *TORCHAO_4BIT, 1.0]
    np.testing.assert_allclose(codebooks.values(True, 4), signed, rtol=1e-6)
    np.testing.assert_array_equal(codebooks.values(False, 4), np.arange(1, 17) / 16)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize(("signed", "bits"), BOOKS)
def test_every_code_decodes_to_its_value_and_back(signed, bits, tables):
    codes = np.arange(2**bits, dtype=np.uint8)
    decoded = codebooks.decode(jnp.asarray(codes), signed, bits, tables)
    values = codebooks.values(signed, bits)
    np.testing.assert_allclose(decoded, values, rtol=0 if tables else 6e-7)
    for x in (decoded, jnp.asarray(values)):
        found = codebooks.encode(x, signed, bits, tables)
        assert found.dtype == jnp.uint8
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize(("signed", "bits"), BOOKS)
def test_a_number_gets_the_nearest_code(signed, bits, tables):
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [rng.uniform(0, 1, 500_000), 10 ** rng.uniform(-8, 0, 500_000)]
    )
    x = sizes * rng.choice([-1, 1], sizes.size) if signed else sizes
    x = x.astype(np.float32)
    values = codebooks.values(signed, bits).astype(np.float64)
    expected = np.searchsorted((values[1:] + values[:-1]) / 2, x.astype(np.float64))
    encode = jax.jit(lambda x: codebooks.encode(x, signed, bits, tables))
    apart = np.abs(np.asarray(encode(x)).astype(int) - expected)
    assert apart.max() <= 1
    assert apart.mean() <= (0 if tables else 2e-5)


@pytest.mark.parametrize(("signed", "bits"), BOOKS)
def test_ends_and_middles(signed, bits):
    values = codebooks.values(signed, bits)
    last = 2**bits - 1
    zero = int(np.argmin(np.abs(values)))
    x = jnp.array([0.0, -0.0, 1.0, -1.0 if signed else 0.0], jnp.float32)
    lowest = 0 if signed else zero
    np.testing.assert_array_equal(
        codebooks.encode(x, signed, bits), [zero, zero, last, lowest]
    )
    middles = (values[1:].astype(np.float64) + values[:-1]) / 2
    below = middles.astype(np.float32) * np.float32(1 - 1e-6)
    above = middles.astype(np.float32) * np.float32(1 + 1e-6)
    low, high = (
        np.asarray(codebooks.encode(jnp.asarray(x), signed, bits)).astype(int)
        for x in (np.minimum(below, above), np.maximum(below, above))
    )
    np.testing.assert_array_equal(low, np.arange(last))
    np.testing.assert_array_equal(high, np.arange(1, last + 1))
