"""A model that sees, too, through the commands: what is written is the whole one."""

import json

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from jaxpeft.export.forms import export


def test_a_merged_model_is_whole_again(tmp_path, asset_model, capsys):
    text = {
        "vocab_size": 4096,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    base, out = tmp_path / "base", tmp_path / "out"
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    there = Gemma3ForConditionalGeneration(config)
    there.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((asset_model / name).read_bytes())
    (base / "preprocessor_config.json").write_text("{}")
    export("merged", str(out), "bfloat16", model=str(base))
    said = capsys.readouterr().err
    assert "of this gemma3 the language model alone is read" in said
    assert (out / "preprocessor_config.json").is_file()
    written = json.loads((out / "config.json").read_text())
    assert written["model_type"] == "gemma3" and "vision_config" in written
    again = Gemma3ForConditionalGeneration.from_pretrained(out, dtype=torch.bfloat16)
    for name, tensor in there.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16()), name
