"""Rotation angles against transformers' own module, for every kind of scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxpeft import hardware, models
from jaxpeft.models import rope

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 10 for i in range(16)],
    "long_factor": [1.0 + i for i in range(16)],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
KINDS = {
    "default": {"rope_type": "default"},
    "large base": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "yarn, ramp": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
    "yarn, attention factor": {**YARN, "attention_factor": 0.8},
    "longrope": LONG,
    "longrope, factor": {**LONG, "factor": 32.0},
    "longrope, attention factor": {**LONG, "attention_factor": 1.4},
    "llama3": LLAMA3,
}


@pytest.mark.parametrize("length", [40, 200], ids=["within", "beyond"])
@pytest.mark.parametrize("name", KINDS)
def test_angles_match_transformers(name, length):
    settings = {
        **SIZES,
        "max_position_embeddings": 256 if "original" in str(KINDS[name]) else 128,
        "rope_parameters": {"rope_theta": 10000.0, **KINDS[name]},
    }
    positions = np.arange(length)[None]
    config = LlamaConfig(**settings)
    there = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.from_numpy(positions))
    cfg = models.config({"model_type": "llama", **settings})
    here = rope.cos_sin(jnp.asarray(positions), cfg)
    for found, expected in zip(here, there, strict=True):
        assert found.dtype == jnp.float32
        both = np.concatenate([found, found], axis=-1)
        np.testing.assert_allclose(both, expected.numpy(), atol=3e-5)


@pytest.mark.parametrize(
    ("kind", "trained", "context"),
    [
        ("default", 64, 64),
        ("linear", 64, 64),  # its files say the longer one, or not: nobody knows
        ("dynamic", 64, 128),
        ("yarn", 64, 256),  # as Qwen's pages have it: the field stays as it was
        ("yarn", 256, 256),
        ("yarn", 512, 512),
        ("llama3", 512, 512),
    ],
)
def test_a_context_is_as_long_as_its_scaling_makes_it(kind, trained, context):
    fields = {"max_position_embeddings": trained, "rope_scaling": KINDS[kind]}
    assert models.config({"model_type": "llama", **SIZES, **fields}).context == context


def test_rotation_keeps_lengths_and_depends_on_distances():
    rng = np.random.default_rng(0)
    cfg = models.config(
        {
            "model_type": "llama",
            "vocab_size": 8,
            "hidden_size": 16,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
    )
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def at(x, position):
        return rope.rotate(x, *rope.cos_sin(jnp.asarray([[position]]), cfg))

    assert at(q.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.sum(at(q, 9) ** 2), jnp.sum(q**2), rtol=1e-5)
    near, far = (jnp.sum(at(q, m) * at(k, n)) for m, n in ((7, 3), (104, 100)))
    np.testing.assert_allclose(near, far, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [8, 5])
def test_what_a_tpu_computes_is_the_same(monkeypatch, dtype, interleaved, half):
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(size=(2, 7, 3, 16)), dtype) for _ in range(2))
    angles = rng.normal(size=(2, 7, half))
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))

    def both(platform):
        target = hardware.Target(platform, "any", 1)
        monkeypatch.setattr(hardware, "current", lambda: target)
        y, back = jax.vjp(lambda x: rope.rotate(x, cos, sin, interleaved), x)
        return y, *back(dy)

    for found, expected in zip(both("tpu"), both("cpu"), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
