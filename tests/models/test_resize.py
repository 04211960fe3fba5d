"""More rows for an embedding, beside transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpeft import adapters, models
from jaxpeft.errors import InputError

KEY = jax.random.key(0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.slow
def test_new_rows_are_drawn_as_in_transformers(tied, make_llama):
    llama = make_llama(tie_word_embeddings=tied)
    params, cfg = models.resize_embeddings(llama.params, llama.cfg, 64, KEY)
    assert cfg.vocab_size == cfg.hf["vocab_size"] == 64
    torch.manual_seed(0)
    llama.torch.resize_token_embeddings(64)
    theirs = llama.torch.get_input_embeddings().weight.detach().numpy()
    ours = np.asarray(params["model"]["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(ours[:61], theirs[:61])
    np.testing.assert_allclose(ours[61:], theirs[61:], atol=1e-3)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 9)).astype(np.int32)
    with torch.no_grad():
        expected = llama.torch(torch.from_numpy(tokens).long()).logits.numpy()
    found = models.forward(params, jnp.asarray(tokens), cfg)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert ("lm_head" in params) is not tied


def test_new_rows_have_the_covariance_of_the_old_ones(llama):
    params, _ = models.resize_embeddings(llama.params, llama.cfg, 20_061, KEY)
    table = np.asarray(params["model"]["embed_tokens"]["embedding"], np.float64)
    old, new = table[:61], table[61:]
    expected = np.cov(old.T, bias=True)
    np.testing.assert_allclose(1e9 * np.cov(new.T), expected, atol=0.002)
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=1e-6)


def test_what_cannot_be_resized(llama):
    with pytest.raises(InputError, match=r"found 60; .*61 rows"):
        models.resize_embeddings(llama.params, llama.cfg, 60, KEY)
    rules = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}
    with pytest.raises(InputError, match=r"lm_head\.kernel: holds an adapter"):
        models.resize_embeddings(
            adapters.inject(llama.params, rules, KEY), llama.cfg, 64, KEY
        )
