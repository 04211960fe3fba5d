"""Models that give sequences scores, beside transformers' own of each family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import hf, models
from jaxpeft.errors import InputError
from jaxpeft.models.scores import drawn, last_tokens

PAD = 3
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "eos_token_id": None,
    "bos_token_id": None,
}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
}
FAMILIES = {
    "llama": SIZES | {"tie_word_embeddings": True},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "gemma": SIZES | {"head_dim": 8},
    "mistral": SIZES,
    "phi3": SIZES,
    "gpt2": GPT2,
}
# Two rows with padding, of which the second ends with the very token of padding.
ROWS = ([5, 9, 17, 33, 41], [7, 8, 11, PAD], [6, 19, 23, 29, 31, 37, 43])


def batch():
    length = max(map(len, ROWS))
    tokens = np.full((len(ROWS), length), PAD, np.int32)
    positions = np.zeros_like(tokens)
    for row, own in enumerate(ROWS):
        tokens[row, : len(own)], positions[row, : len(own)] = own, np.arange(len(own))
    return {"tokens": jnp.asarray(tokens), "positions": jnp.asarray(positions)}


def of_transformers(model):
    import torch

    tokens = torch.tensor(np.asarray(batch()["tokens"])).long()
    real = torch.tensor([[i < len(r) for i in range(tokens.shape[1])] for r in ROWS])
    with torch.no_grad():
        return model(tokens, attention_mask=real.long()).logits.numpy()


def published(family, folder, labels):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, **FAMILIES[family], num_labels=labels
    )
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config).float().eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_model_gives_its_scores_here_and_there_again(family, tmp_path):
    import transformers

    expected = of_transformers(published(family, tmp_path / "theirs", 3))
    cfg = models.config(tmp_path / "theirs")
    assert cfg.num_labels == 3
    params = hf.load(tmp_path / "theirs", cfg)
    assert "lm_head" not in params
    found = jax.jit(models.scores, static_argnums=2)(params, batch(), cfg)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    everywhere = models.forward(params, batch()["tokens"], cfg)
    np.testing.assert_allclose(everywhere[0, 4], expected[0], atol=2e-5)

    hf.save(params, tmp_path / "ours", cfg)
    auto = transformers.AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(of_transformers(again), expected, atol=1e-6)


def test_the_head_of_tokens_makes_place_for_one_of_scores(make_torch, tmp_path):
    make_torch(tie_word_embeddings=False).save_pretrained(tmp_path)
    cfg = models.with_scores(models.config(tmp_path), 2, ("no", "yes"), PAD)
    with pytest.raises(InputError, match=r"score\.weight' is missing"):
        hf.load(tmp_path, cfg)
    bare = models.config(tmp_path)
    bare = models.with_scores(bare, 0, (), PAD)
    assert set(hf.load(tmp_path, bare)) == {"model"}
    assert cfg.hf["architectures"] == ["LlamaForSequenceClassification"]
    assert cfg.hf["id2label"] == {"0": "no", "1": "yes"}
    assert models.config(json.loads(json.dumps(cfg.hf))).num_labels == 2
    head = drawn(cfg, jax.random.key(0))["kernel"]
    assert head.shape == (32, 2)
    assert np.std(head) == pytest.approx(cfg.initializer_range, rel=0.2)


def test_labels_of_a_config():
    named = {"architectures": ["LlamaForSequenceClassification"]}
    assert models.labels_in({"architectures": ["LlamaForCausalLM"]}) is None
    assert models.labels_in(named) == 2  # by transformers' default, which it leaves out
    assert models.labels_in(named | {"id2label": {"0": "LABEL_0"}}) == 1
    assert models.names_in(named | {"id2label": {"0": "LABEL_0"}}) == ()
    assert models.names_in(named | {"id2label": {"0": "a", "1": "b"}}) == ("a", "b")


def test_a_family_without_such_a_model_is_refused(llama):
    import dataclasses

    cfg = dataclasses.replace(llama.cfg, model_type="cohere")
    with pytest.raises(InputError, match="'cohere' transformers has no model"):
        models.with_scores(cfg, 2, (), None)


def test_the_last_token_is_found_without_a_token_of_padding():
    made = batch()
    last = last_tokens(made["tokens"], made["positions"], None)
    np.testing.assert_array_equal(last, [4, 3, 6])
