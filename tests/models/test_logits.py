"""Logits against transformers, precision, packing, rematerialization, compile time.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import jaxprs_in_params

from jaxpeft import hardware, models
from jaxpeft.objectives.token_loss import nll_sum

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DIVISORS = {
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
}
VARIANTS = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "gelu": {"hidden_act": "gelu"},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 3.0},
        "max_position_embeddings": 16,  # shorter than the tokens: the base grows
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "original_max_position_embeddings": 16,
            **DIVISORS,
        }
    },
}
LOG = logging.getLogger(__name__)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 37))
forward = jax.jit(models.forward, static_argnums=2)


def logits_there(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def with_theta(settings):
    rope = settings.get("rope_parameters")
    if rope is None:
        return settings
    return {**settings, "rope_parameters": {"rope_theta": 10000.0, **rope}}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_match_transformers(name, make_llama):
    there, cfg, params = make_llama(**with_theta(VARIANTS[name]))
    expected, found = logits_there(there), forward(params, TOKENS, cfg)
    assert found.dtype == jnp.float32
    assert np.std(expected) > 0.5  # else a small difference says nothing
    difference = float(np.max(np.abs(expected - found)))
    LOG.info("largest difference of a logit, %s: %.1e", name, difference)
    assert difference < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_near_float32(dtype, llama):
    expected = np.asarray(forward(llama.params, TOKENS, llama.cfg))
    cast = jax.tree.map(lambda x: x.astype(dtype), llama.params)
    found = forward(cast, TOKENS, llama.cfg)
    assert found.dtype == jnp.float32
    error = np.linalg.norm(expected - found) / np.linalg.norm(expected)
    assert error < 64 * float(jnp.finfo(dtype).eps) < 0.6
    # The same stored weights with float32 activations: only the storage is rounded.
    wide = dataclasses.replace(llama.cfg, activation_dtype="float32")
    mixed = forward(cast, TOKENS, wide)
    assert np.linalg.norm(expected - mixed) / np.linalg.norm(expected) < error


def test_packed_examples_never_see_each_other(llama):
    cfg, params = llama.cfg, llama.params
    lengths = [5, 9, 17]
    spans = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    packed = np.zeros((1, 37), np.int32)
    segments, positions = np.zeros_like(packed), np.zeros_like(packed)
    for number, span in enumerate(spans, 1):
        packed[0, span] = TOKENS[0, span]
        segments[0, span], positions[0, span] = number, np.arange(len(span))
    together = forward(params, packed, cfg, segments=segments, positions=positions)
    for span in spans:
        alone = np.zeros((1, 37), np.int32)
        alone[0, : len(span)] = TOKENS[0, span]
        separate = forward(params, alone, cfg)[0, : len(span)]
        np.testing.assert_allclose(together[0, span], separate, atol=1e-5)


def test_padding_on_the_right_changes_nothing(llama):
    whole = forward(llama.params, TOKENS, llama.cfg)
    cut = TOKENS.copy()
    cut[:, 20:] = 0
    padded = forward(llama.params, cut, llama.cfg)
    np.testing.assert_allclose(padded[:, :20], whole[:, :20], atol=1e-5)


@pytest.mark.slow
def test_rematerialization_changes_memory_alone(llama):
    targets = np.roll(TOKENS, -1, axis=1)
    supervised = np.ones_like(TOKENS, bool)

    def loss(params, remat):
        cfg = dataclasses.replace(llama.cfg, remat=remat)
        hidden = models.hidden_states(params, TOKENS, cfg)
        return nll_sum(hidden, models.head(params, cfg), targets, supervised)

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = step(llama.params, "none")
    for remat in ("dots", "full"):
        for found, wanted in zip(
            jax.tree.leaves(step(llama.params, remat)), jax.tree.leaves(expected)
        ):
            scale = float(np.max(np.abs(wanted)))
            np.testing.assert_allclose(found, wanted, atol=1e-5 * scale, rtol=1e-5)


def test_an_embedding_that_is_the_head_is_read_as_it_lies(make_llama, monkeypatch):
    _, cfg, params = make_llama(tie_word_embeddings=True)
    hidden = np.random.default_rng(1).normal(size=(2, 37, cfg.hidden_size))
    hidden, targets = hidden.astype(np.float32), np.roll(TOKENS, -1, axis=1)
    supervised = np.random.default_rng(2).random(TOKENS.shape) < 0.6

    def loss(params, hidden):
        return nll_sum(hidden, models.head(params, cfg), targets, supervised)

    expected = jax.value_and_grad(loss, argnums=(0, 1))(params, hidden)
    target = hardware.Target("tpu", "any", 1)
    monkeypatch.setattr(hardware, "current", lambda: target)
    kernel = models.head(params, cfg)
    assert kernel.table is params["model"]["embed_tokens"]["embedding"]
    assert kernel.shape == (cfg.hidden_size, cfg.vocab_size)
    found = jax.value_and_grad(loss, argnums=(0, 1))(params, hidden)
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(here, there, atol=1e-5, rtol=1e-5)


def equations(jaxpr):
    """How many operations a program has, those of inner programs included."""
    inner = (sub for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params))
    return len(jaxpr.eqns) + sum(map(equations, inner))


def test_the_program_does_not_grow_with_the_layers(llama):
    sizes = {}
    for layers in (2, 40):
        cfg = dataclasses.replace(llama.cfg, num_hidden_layers=layers)
        shapes = models.shapes(cfg, "float32")

        def loss(params, cfg=cfg):
            return jnp.sum(models.forward(params, TOKENS, cfg))

        made = jax.make_jaxpr(jax.grad(loss))(shapes)
        sizes[layers] = equations(made.jaxpr)
    assert sizes[2] == sizes[40] > 100


def test_random_weights_follow_the_declaration(llama):
    cfg = dataclasses.replace(llama.cfg, attention_bias=True)
    params = models.random(cfg, jax.random.key(0), "bfloat16")
    wanted = models.shapes(cfg, "bfloat16")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    layers = params["model"]["layers"]
    np.testing.assert_array_equal(layers["input_layernorm"]["scale"], 1)
    np.testing.assert_array_equal(layers["self_attn"]["q_proj"]["bias"], 0)
    kernel = np.asarray(layers["mlp"]["up_proj"]["kernel"], np.float32)
    assert abs(kernel.std() / cfg.initializer_range - 1) < 0.1
