"""What GPT-2 alone has: its names, its storage, checkpoints without a head's prefix."""

import json

import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.errors import InputError

SIZES = {"vocab_size": 53, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
SIZES |= {"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None}
TOKENS = np.random.default_rng(0).integers(0, 53, (2, 11))


@pytest.fixture(scope="module")
def there():
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, **NO_DROPOUT)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(there, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpt2")
    there.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def params(folder):
    return hf.load(folder, models.config(folder))


def logits_of(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def test_a_checkpoint_without_prefix_and_with_buffers(there, folder, params, tmp_path):
    """As that of openai-community/gpt2 is."""
    state = there.transformer.state_dict()
    for layer in range(SIZES["n_layer"]):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | {"n_ctx": 64}
    (tmp_path / "config.json").write_text(json.dumps(content))
    cfg = models.config(tmp_path)
    found = models.forward(hf.load(tmp_path, cfg), TOKENS, cfg)
    np.testing.assert_array_equal(found, models.forward(params, TOKENS, cfg))
    del state["h.1.mlp.c_fc.weight"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"'h\.1\.mlp\.c_fc\.weight' is missing"):
        hf.load(tmp_path, cfg)


RULES = {
    "lora": {"target_modules": ["c_attn", "c_fc"], "init_lora_weights": False},
    "a layer": {"target_modules": r"transformer\.h\.1\..*c_proj"}
    | {"init_lora_weights": False},
    "dora": {"method": "dora", "target_modules": "all-linear"}
    | {"init_lora_weights": False},
    "ia3": {"method": "ia3"},
}
ADAPTED = {
    "lora": {"self_attn.qkv_proj", "mlp.up_proj"},
    "a layer": {"self_attn.o_proj", "mlp.down_proj"},
    "dora": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"},
    "ia3": {"self_attn.qkv_proj", "mlp.down_proj"},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.slow
def test_peft_loads_what_is_written_here(name, there, folder, params, tmp_path):
    cfg, key = models.config(folder), jax.random.key(1)
    adapted = adapters.inject(params, RULES[name], key, models.module_names(cfg))
    adapted = away(adapted)
    modules = {path.removeprefix("model.layers.") for path in kernel.nodes(adapted)}
    assert {path.removesuffix(".kernel") for path in modules} == ADAPTED[name]
    hf.save_adapter(adapted, tmp_path, cfg)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] is True
    found = models.forward(adapted, TOKENS, cfg)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert np.abs(found - logits_of(there)).max() > 1e-2
    np.testing.assert_allclose(found, logits_of(model), atol=1e-4)
    again = models.forward(hf.load_adapter(params, tmp_path, cfg), TOKENS, cfg)
    np.testing.assert_allclose(again, found, atol=1e-6)
    merged = models.forward(adapters.merge(adapted), TOKENS, cfg)
    np.testing.assert_allclose(merged, found, atol=1e-4)


@pytest.mark.parametrize("name, leaf", [("wte", "embedding"), ("wpe", "positions")])
def test_tokens_and_places_are_modules_of_their_own(name, leaf, folder, params):
    cfg = models.config(folder)
    rules = {"method": "full", "target_modules": [name]}
    key, names = jax.random.key(1), models.module_names(cfg)
    partly = adapters.inject(params, rules, key, names)
    trainable, _ = tree.partition(partly, adapters.trainable_mask(partly))
    found = [name for name, _ in tree.named_weights(trainable)]
    assert found == [f"model.embed_tokens.{leaf}"]
    if name == "wte":
        lora = adapters.inject(params, {"target_modules": ["wte"]}, key, names)
        assert list(kernel.nodes(lora)) == ["model.embed_tokens.embedding"]


def away(params):
    """The gains of an IA3 away from their start, which changes nothing."""

    def move(name, leaf):
        if not name.endswith(".gain"):
            return leaf
        return leaf + np.random.default_rng(2).normal(size=leaf.shape) / 2

    return tree.map_named(move, params)


REFUSED = {
    "add_cross_attention": True,
    "scale_attn_by_inverse_layer_idx": True,
    "n_head": 5,
    "n_ctx": 32,
    "activation_function": "mish",
    "n_inner": -3,
    "is_causal": False,
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_handled_is_refused_by_its_own_name(field, folder):
    content = json.loads((folder / "config.json").read_text())
    with pytest.raises(InputError, match=f"{field}: found {REFUSED[field]!r}"):
        models.config(content | {field: REFUSED[field]})


def test_dropout_of_the_base_is_told_of(folder, capsys):
    content = json.loads((folder / "config.json").read_text())
    models.config(content)
    assert capsys.readouterr().err == ""
    models.config(content | {"attn_pdrop": 0.1, "embd_pdrop": 0.1})
    assert "attn_pdrop, embd_pdrop" in capsys.readouterr().err
