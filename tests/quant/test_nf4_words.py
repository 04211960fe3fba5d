"""Codes in words, as accelerators take them: the same weights, and bytes in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import hardware, hf, kernel, models, quant

TPU = hardware.Target("tpu", "TPU v5 lite", 1)
CPU = hardware.Target("cpu", "cpu", 1)
KINDS = ("nf4", "nf4_single")


def node(kind, dtype="float32", shape=(256, 192)):
    values = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    return quant.KERNELS[kind](jnp.asarray(values, dtype), dtype)


def test_each_weight_has_the_bits_that_are_its_place():
    one = node("nf4")
    bytes_ = np.asarray(one.codes)
    words = np.asarray(one.in_words().codes).view(np.uint32)
    assert words.shape == (256 // 8, 192)
    for i, o in [(0, 0), (1, 5), (8, 0), (63, 191), (64, 3), (77, 100), (255, 191)]:
        block, n, r = i // 64, i % 64 // 8, i % 8
        byte = bytes_[o, i // 2]
        code = byte & 15 if i % 2 else byte >> 4
        assert words[8 * block + r, o] >> (4 * n) & 15 == code


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_words_are_the_same_kernel(kind, dtype):
    rows = node(kind, dtype)
    words = quant.held(rows, TPU)
    assert words.words and words.shape == rows.shape and quant.held(words, TPU) is words
    back = quant.held(words, CPU)
    jax.tree.map(np.testing.assert_array_equal, back, rows)
    assert jax.tree.structure(back) == jax.tree.structure(rows)
    np.testing.assert_array_equal(words.dense(), rows.dense())
    assert sum(x.nbytes for x in jax.tree.leaves(words)) == sum(
        x.nbytes for x in jax.tree.leaves(rows)
    )
    rng = np.random.default_rng(3)
    x, dy = (jnp.asarray(rng.normal(size=(2, 5, n)), jnp.float32) for n in (256, 192))
    y, back = jax.vjp(lambda x: x @ words, x)
    dense = np.asarray(rows.dense(), np.float64)
    np.testing.assert_allclose(y, np.asarray(x) @ dense, atol=2e-4)
    np.testing.assert_allclose(back(dy)[0], np.asarray(dy) @ dense.T, atol=2e-4)


def test_shapes_and_axes_for_a_target():
    made = quant.shapes("nf4", (3, 256, 192), "bfloat16", TPU)
    assert made.shape == (3, 256, 192)
    assert (made.codes.shape, made.codes.dtype) == ((3, 32, 192), jnp.int32)
    axes = made.axes(("layers", "embed", "mlp"))
    assert axes.codes == ("layers", "embed", "mlp")
    assert axes.scales == ("layers", "mlp", "embed")
    rows = quant.shapes("nf4", (3, 256, 192), "bfloat16", CPU)
    assert rows.codes.shape == (3, 192, 128) and rows == quant.shapes(
        "nf4", (3, 256, 192), "bfloat16"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_weights_are_loaded_in_words_and_saved_in_bytes(
    kind, asset_model, tmp_path, monkeypatch
):
    cfg = models.config(asset_model)
    rows = hf.load(asset_model, cfg, quantization=kind)
    hf.save(rows, tmp_path / "rows", cfg)
    with monkeypatch.context() as there:
        there.setattr(hardware, "current", lambda: TPU)
        words = hf.load(asset_model, cfg, quantization=kind)
        again = hf.load(tmp_path / "rows", models.config(tmp_path / "rows"))
    nodes = kernel.nodes(words)
    assert nodes and all(one.words for one in nodes.values())
    # Quantized here and there, and read from bitsandbytes' bytes.
    jax.tree.map(np.testing.assert_array_equal, words, again)
    hf.save(words, tmp_path / "words", cfg)
    for file in (tmp_path / "rows").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "words" / file.name).read_bytes()
