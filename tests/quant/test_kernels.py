"""Frozen kernels in 8 and 4 bits, beside bitsandbytes' own on the CPU."""

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from jaxpeft import kernel, quant
from jaxpeft.errors import InputError


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def heavy(shape):
    values = np.random.default_rng(1).standard_t(2, size=shape)
    return (0.02 * values).astype(np.float32)


MATRICES = {
    "normal": normal((256, 192)),
    "small": 1e-4 * normal((128, 96)),
    "heavy tails": heavy((512, 160)),
    "constant": np.full((64, 8), 0.3, np.float32),
    "zero columns": normal((128, 16)) * (np.arange(16) % 3 > 0),
}
KINDS = sorted(quant.KERNELS)


@pytest.fixture(params=MATRICES)
def matrix(request):
    return MATRICES[request.param].astype(np.float32)


def test_int8_is_bitsandbytes(matrix):
    there = torch.from_numpy(np.ascontiguousarray(matrix.T))
    codes, largest, _ = bnb.int8_vectorwise_quant(there)
    found = quant.int8(jnp.asarray(matrix), "float32")
    np.testing.assert_array_equal(found.largest, largest.numpy())
    used = largest.numpy() > 0  # bitsandbytes divides by zero for the others
    np.testing.assert_array_equal(found.codes[:, used], codes.numpy().T[:, used])
    dense = bnb.int8_vectorwise_dequant(codes, largest).numpy().T
    np.testing.assert_array_equal(found.dense()[:, used], dense[:, used])


def test_fp8_is_the_nearest_number_of_its_format(matrix):
    found = quant.fp8(jnp.asarray(matrix), "float32")
    np.testing.assert_array_equal(found.largest, np.abs(matrix).max(0))
    scales = np.abs(matrix).max(0) / np.float32(448)
    used = scales > 0
    scaled = matrix[:, used] / scales[used]
    nearest = scaled.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    there = np.asarray(found.codes)
    # On a border of two codes the quotient's last bit decides.
    differ = there[:, used].view(np.uint8) != nearest.view(np.uint8)
    assert differ.mean() < 1e-4 and not np.asarray(there[:, ~used], np.float32).any()
    error = np.abs(np.asarray(found.dense()) - matrix)
    # Four significant bits, and below 2**-6 steps of 2**-9, of a scale.
    assert (error <= np.abs(matrix) / 16 + scales * 2.0**-10).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_with_fp8_is_that_with_its_matrix(dtype):
    node = quant.fp8(jnp.asarray(normal((256, 96))), dtype)
    x, dy = (jnp.asarray(normal((7, n), 3), dtype) for n in (256, 96))
    y, back = jax.vjp(lambda x: x @ node, x)
    dense = np.asarray(node.dense(), np.float64)
    assert y.dtype == back(dy)[0].dtype == x.dtype
    for found, left, right in [(y, x, dense), (back(dy)[0], dy, dense.T)]:
        left = np.asarray(left, np.float64)
        # What rounding the scale, the sum and the product may take.
        near = np.abs(left) @ np.abs(right)
        room = near * (2.0**-7 if dtype == "bfloat16" else 1e-6)
        assert (np.abs(np.asarray(found, np.float64) - left @ right) <= room).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_is_bitsandbytes(matrix, dtype):
    there = torch.from_numpy(np.ascontiguousarray(matrix.T)).to(getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(
        there, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    found = quant.nf4(jnp.asarray(matrix, dtype), dtype)
    np.testing.assert_array_equal(
        np.asarray(found.codes).ravel(), packed.numpy().ravel()
    )
    # The mean of the scales is summed in another order: its last bit may differ, and
    # with it a scale that lies on the border of two codes.
    np.testing.assert_allclose(found.offset, state.offset.numpy(), rtol=1e-6)
    scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    scales = scales.numpy().ravel()
    same = np.isclose(found._largest().ravel(), scales, 1e-6, 1e-6 * scales.max())
    assert same.mean() > 0.99
    dense = bnb.dequantize_4bit(packed, state).float().numpy().T
    rtol = 1e-6 if dtype == "float32" else 2**-8
    blocks = np.repeat(same.reshape(found.scales.shape), 64, axis=1).T
    np.testing.assert_allclose(
        np.where(blocks, found.dense(), 0), np.where(blocks, dense, 0), rtol=rtol
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_without_double_quantization_is_bitsandbytes(matrix, dtype):
    there = torch.from_numpy(np.ascontiguousarray(matrix.T)).to(getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(there, blocksize=64, quant_type="nf4")
    found = quant.nf4_single(jnp.asarray(matrix, dtype), dtype)
    np.testing.assert_array_equal(
        np.asarray(found.codes).ravel(), packed.numpy().ravel()
    )
    np.testing.assert_array_equal(np.ravel(found.scales), state.absmax.numpy())
    dense = bnb.dequantize_4bit(packed, state).float().numpy().T
    np.testing.assert_array_equal(found.dense(), dense)


def test_the_book_is_bitsandbytes():
    from jaxpeft.quant.nf4 import VALUES

    there = bnb.get_4bit_type("nf4", device="cpu").numpy()
    np.testing.assert_array_equal(VALUES, there)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_its_layers_in_few_bits(kind):
    stack = np.stack([normal((128, 24), seed) for seed in range(3)])
    nodes = [quant.KERNELS[kind](jnp.asarray(one), "float32") for one in stack]
    whole = jax.tree.map(lambda *x: jnp.stack(x), *nodes)
    assert kernel.is_node(whole) and whole.shape == (3, 128, 24)
    dense = whole.dense()
    for one, layer in zip(nodes, range(3), strict=True):
        np.testing.assert_array_equal(dense[layer], one.dense())
        error = np.abs(one.dense() - stack[layer]).max()
        assert error < {"int8": 0.02, "fp8": 0.15}.get(kind, 0.6)
    shapes = quant.shapes(kind, (3, 128, 24), "float32")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), whole) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_no_matrix(kind):
    node = quant.KERNELS[kind](jnp.asarray(normal((128, 64))), "float32")
    x = jnp.asarray(normal((7, 128), 3))
    _, back = jax.vjp(lambda x: x @ node, x)
    kept = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "nbytes")]
    assert sum(leaf.nbytes for leaf in kept) <= 1.05 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(node)
    )


@pytest.mark.parametrize(
    ("kind", "most"),
    [("int8", 1.01), ("fp8", 1.01), ("nf4", 0.53), ("nf4_single", 0.5626)],
)
def test_bytes_a_weight(kind, most):
    node = quant.shapes(kind, (4, 4096, 1024), "bfloat16")
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(node))
    assert held / (4 * 4096 * 1024) <= most


def test_blocks_that_do_not_divide_say_so():
    with pytest.raises(InputError, match="multiple of 64, found 100 x 8"):
        quant.nf4(jnp.ones((100, 8)), "float32")
