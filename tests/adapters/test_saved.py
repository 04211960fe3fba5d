"""Weights of the base that train: what they refuse, BitFit, and merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.errors import InputError

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 9)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=2)


@pytest.fixture(scope="module")
def biased(make_llama):
    """A model with biases."""
    return make_llama(attention_bias=True, mlp_bias=True)


def moved(params):
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    rng = np.random.default_rng(0)

    def away(x):
        return x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32)

    return tree.combine(jax.tree.map(away, trainable), frozen)


def test_bitfit_trains_the_biases_alone(biased, tmp_path):
    params = adapters.inject(biased.params, {"method": "bitfit"}, KEY)
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    names = {name for name, _ in tree.named_leaves(trainable)}
    assert len(names) == 7 and all(name.endswith("bias.weight") for name in names)
    params = moved(params)
    hf.save_adapter(params, tmp_path, biased.cfg)
    again = hf.load_adapter(biased.params, tmp_path, biased.cfg)
    expected = forward(params, TOKENS, biased.cfg)
    before = forward(biased.params, TOKENS, biased.cfg)
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_array_equal(forward(again, TOKENS, biased.cfg), expected)


def test_bitfit_without_biases_is_refused(llama):
    with pytest.raises(InputError, match="bitfit.*this model has no biases"):
        adapters.inject(llama.params, {"method": "bitfit"}, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ia3", "lora", "dora"])
def test_merged_with_all_that_trained_beside_it(method, biased):
    rules = {"method": method, "bias": "all", "modules_to_save": ["lm_head", "norm"]}
    params = moved(adapters.inject(biased.params, rules, KEY))
    merged = adapters.merge(params)
    assert not kernel.nodes(merged)
    np.testing.assert_allclose(
        forward(merged, TOKENS, biased.cfg),
        forward(params, TOKENS, biased.cfg),
        atol=1e-5,
    )


def test_saved_weights_are_float32_and_computed_in_the_dtype_of_the_base(llama):
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama.params)
    rules = {"modules_to_save": ["embed_tokens", "lm_head", "norm", "o_proj"]}
    params = adapters.inject(base, rules, KEY)
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    assert {x.dtype for x in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    expected = forward(base, TOKENS, llama.cfg)
    # Sums of the same 16-bit products, in another order.
    np.testing.assert_allclose(
        forward(params, TOKENS, llama.cfg), expected, rtol=0.02, atol=0.05
    )


REFUSED = {
    "no module": ({"modules_to_save": ["lm_haed"]}, "lm_haed.*lm_head"),
    "nothing left": (
        {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
        "exclude_modules.*leave nothing",
    ),
    "a layer beyond": ({"layers_to_transform": 2}, "found 2; the model's layers are 0"),
    "layers beside an expression": (
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        "layers_to_transform.*expression",
    ),
    "a pattern for nothing": (
        {"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 4}},
        "rank_pattern: 'v_proj' matches no adapted module",
    ),
    "a pattern that is none": (
        {"alpha_pattern": {"(": 4}},
        "pattern '\\(' is no regular expression",
    ),
    "rank of a pattern": ({"rank_pattern": {"q_proj": 99}}, "r: found 99"),
    "dora of an embedding": (
        {"method": "dora", "target_modules": ["embed_tokens"]},
        "is an embedding, which method 'dora' does not adapt",
    ),
    "pissa of an embedding": (
        {"target_modules": ["embed_tokens"], "init_lora_weights": "pissa"},
        "pissa.*embedding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name, llama):
    rules, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        adapters.inject(llama.params, rules, KEY)


def test_biases_of_some_layers_are_refused(biased):
    rules = {"target_modules": ".*0.*q_proj", "bias": "lora_only"}
    with pytest.raises(InputError, match="lora_only.*some layers only"):
        adapters.inject(biased.params, rules, KEY)


def test_an_embedding_that_is_the_head(make_llama):
    tied = make_llama(tie_word_embeddings=True)
    rules = {"target_modules": ["embed_tokens"]}
    adapted = moved(adapters.inject(tied.params, rules, KEY))
    merged = adapters.merge(adapted)
    table = tied.params["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(merged["lm_head"]["kernel"], table.T)
    np.testing.assert_allclose(
        forward(merged, TOKENS, tied.cfg.untied()),
        forward(adapted, TOKENS, tied.cfg),
        atol=1e-5,
    )


def test_the_faster_decomposition_finds_the_same_directions(llama):
    def update(init):
        rules = {"target_modules": ["o_proj"], "r": 4, "init_lora_weights": init}
        params = adapters.inject(llama.params, rules, KEY)
        node = params["model"]["layers"]["self_attn"]["o_proj"]["kernel"]
        return node.a @ node.b

    np.testing.assert_allclose(update("pissa_niter_64"), update("pissa"), atol=1e-3)


@pytest.mark.parametrize(
    "rules",
    [{"init_lora_weights": "olora"}, {"modules_to_save": ["norm"]}, {"bias": "all"}],
)
def test_what_trains_shares_no_buffer_with_anything(rules, biased):
    """A compiled step may take the buffers over."""
    rules = {"target_modules": ["o_proj"], **rules}
    params = adapters.inject(biased.params, rules, KEY)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)(trainable)
    assert not any(x.is_deleted() for x in jax.tree.leaves((frozen, biased.params)))
