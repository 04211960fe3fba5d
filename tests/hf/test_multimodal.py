"""Models that see, too: their files under each name, their adapters in PEFT."""

import json

import jax
import numpy as np
import peft
import pytest
import safetensors
import safetensors.torch
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen2_5_VLConfig,
)

from jaxpeft import adapters, hf, models, tree
from jaxpeft.errors import InputError

TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TOKENS = np.random.default_rng(0).integers(1, 61, (2, 11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    path = tmp_path_factory.mktemp("gemma3") / "model"
    Gemma3ForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cfg(folder):
    return models.config(folder)


@pytest.fixture(scope="module")
def params(folder, cfg):
    return hf.load(folder, cfg)


@pytest.fixture
def there(folder):
    return Gemma3ForConditionalGeneration.from_pretrained(folder).eval()


def adapted(params, cfg, **rules):
    names = models.module_names(cfg)
    params = adapters.inject(params, rules, jax.random.key(1), names)
    train, frozen = tree.partition(params, adapters.trainable_mask(params))
    noise = np.random.default_rng(1)
    train = jax.tree.map(
        lambda x: x + 0.1 * noise.standard_normal(x.shape, np.float32), train
    )
    return tree.combine(train, frozen)


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "suffix"),
    [
        ({"r": 4, "target_modules": "all-linear"}, "lora_"),
        ({"r": 4, "target_modules": r".*\.1\..*q_proj"}, "lora_"),
        ({"method": "ia3"}, "ia3_l"),
    ],
)
def test_an_adapter_reaches_the_language_model_alone(
    rules, suffix, params, cfg, folder, there, tmp_path, recwarn
):
    ours = adapted(params, cfg, **rules)
    hf.save_adapter(ours, tmp_path, cfg, base=folder)
    model = peft.PeftModel.from_pretrained(there, tmp_path).eval()
    missed = [str(w.message) for w in recwarn if "adapter keys" in str(w.message)]
    assert not missed
    held = [name for name, _ in model.named_parameters() if suffix in name]
    assert held and all(".model.language_model.layers." in name for name in held)
    found = models.forward(ours, TOKENS, cfg)
    np.testing.assert_allclose(found, logits(model), atol=1e-4)
    again = hf.load_adapter(params, tmp_path, cfg)
    np.testing.assert_array_equal(models.forward(again, TOKENS, cfg), found)


def test_peft_s_adapter_of_all_parts_is_read_for_the_language_model(
    params, cfg, there, tmp_path, capsys
):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(there, config).eval()
    model.save_pretrained(tmp_path)
    found = models.forward(hf.load_adapter(params, tmp_path, cfg), TOKENS, cfg)
    np.testing.assert_allclose(found, logits(model), atol=1e-4)
    assert "beside the language model; they are left aside" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["published", "memory", "before"])
def test_files_are_read_and_written_under_their_own_names(
    layout, params, cfg, folder, there, tmp_path
):
    def named(name):
        _, deeper, rest = name.rpartition("language_model.")
        if not deeper:
            return name if layout == "memory" else name.removeprefix("model.")
        beginning = {
            "published": "language_model.model.",
            "memory": "model.language_model.",
            "before": "model.",
        }
        return beginning[layout] + rest

    stored = {
        named(name): value.contiguous()
        for name, value in there.state_dict().items()
        if name != "lm_head.weight"
    }
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    safetensors.torch.save_file(stored, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_bytes((folder / "config.json").read_bytes())
    read = hf.load(base, cfg)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    hf.save(read, out, cfg, base=base, max_shard_bytes=20_000)
    files = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(files["weight_map"]) == set(stored)
    count = sum(value.numel() for value in stored.values())
    assert files["metadata"]["total_parameters"] == count
    for name, file in files["weight_map"].items():
        with safetensors.safe_open(out / file, "pt") as tensors:
            assert torch.equal(tensors.get_tensor(name), stored[name])


@pytest.mark.slow
def test_in_4_bits_the_other_parts_stay_whole(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    config = Gemma3Config(
        text_config={**TEXT, **sizes}, vision_config=VISION, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    cfg = models.config(tmp_path / "base")
    params = hf.load(tmp_path / "base", cfg, quantization="nf4_single")
    hf.save(params, tmp_path / "out", cfg, base=tmp_path / "base")
    again = hf.load(tmp_path / "out", models.config(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    there = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out")
    seeing = there.model.vision_tower.get_parameter(
        "encoder.layers.0.self_attn.q_proj.weight"
    )
    assert seeing.is_floating_point()
    found = models.forward(params, TOKENS, cfg)
    np.testing.assert_allclose(found, logits(there.dequantize().float()), atol=1e-4)


def test_it_is_not_written_without_its_other_parts(params, cfg, tmp_path):
    with pytest.raises(InputError, match="give base=, the folder"):
        hf.save(params, tmp_path, cfg)


def test_a_language_model_of_another_family_is_refused():
    content = {"model_type": "gemma3", "text_config": {"model_type": "llama"}}
    with pytest.raises(InputError, match="must be one of gemma3_text"):
        models.config(content)
    content = {"model_type": "gemma3", "text_config": TEXT, "new_field": 1}
    with pytest.raises(InputError, match="new_field: found 1"):
        models.config(content)


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [(True, False, False), (False, True, False), (None, True, True)]
    + [(None, None, False), (True, None, True)],
)
def test_a_head_is_tied_where_nothing_denies_it(outer, inner, tied):
    text = {**TEXT, "model_type": "mistral", "tie_word_embeddings": inner}
    content = {"model_type": "mistral3", "text_config": text}
    content["tie_word_embeddings"] = outer
    assert models.config(content).tie_word_embeddings is tied


def test_qwen_s_files_say_it_once_twice_or_inside():
    text = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]},
    }
    outer = {"model_type": "qwen2_5_vl", "vision_config": {}, "image_token_id": 60}
    flat = {**outer, **text, "tie_word_embeddings": True}
    inner = {**text, "sliding_window": None, "vision_token_id": 59}
    nested = {**outer, "text_config": inner, "tie_word_embeddings": True}
    both = {**flat, "text_config": inner}
    expected = models.config(flat)
    assert expected.rope == models.Rope(theta=1000000.0) and not expected.windows
    assert models.config(nested) == models.config(both) == expected
    assert Qwen2_5_VLConfig(**flat).text_config.hidden_size == 32
    assert Qwen2_5_VLConfig(**both).text_config.sliding_window is None


def test_published_files_leave_out_what_transformers_has_by_itself():
    """The text_config of gemma-3-4b-it, in full."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    theirs = Gemma3Config(text_config=dict(text)).text_config
    ours = models.config({"model_type": "gemma3", "text_config": text})
    for name in (
        "vocab_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope.factor == 8.0 and ours.windows[:6] == (*[1024] * 5, None)
