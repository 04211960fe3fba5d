"""Weights under the names that wrappers, sharing and fusing leave: read as they are."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from jaxpeft import hf, models
from jaxpeft.errors import InputError

FILE = "model.safetensors"
FIRST_LAYER = "model.layers.0."


@pytest.fixture
def rewritten(base, tmp_path):
    """rewritten(change): a copy of the base whose tensors `change` has made others."""

    def write(change):
        save_file(change(load_file(base / FILE)), tmp_path / FILE)
        (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
        return tmp_path

    return write


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def refusal(folder):
    with pytest.raises(InputError) as caught:
        hf.load(folder, models.config(folder))
    return str(caught.value)


WRAPPED = {
    "compiled": lambda name: "_orig_mod." + name,
    "PEFT's, merged": lambda name: "base_model.model." + name,
    "distributed and compiled": lambda name: "module._orig_mod." + name,
    "compiled inside": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "one layer compiled": lambda name: name.replace(
        FIRST_LAYER, FIRST_LAYER + "_orig_mod."
    ),
    "sharded": lambda name: "_fsdp_wrapped_module." + name,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_of_wrappers_are_passed_over(kind, rewritten, params):
    wrap = WRAPPED[kind]
    folder = rewritten(lambda tensors: {wrap(n): t for n, t in tensors.items()})
    equal(hf.load(folder, models.config(folder)), params)


def test_an_adapter_among_the_weights_is_refused_with_the_remedy(rewritten):
    name = FIRST_LAYER + "self_attn.q_proj."

    def change(tensors):
        weight = tensors.pop(name + "weight")
        tensors[name + "base_layer.weight"] = weight
        tensors[name + "lora_A.default.weight"] = weight[:4].clone()
        return {"base_model.model." + n: t for n, t in tensors.items()}

    said = refusal(rewritten(change))
    assert "q_proj.base_layer.weight' and 1 more" in said
    assert "merge_and_unload()" in said


def test_other_names_are_not_called_an_incomplete_download(rewritten):
    said = refusal(rewritten(lambda ts: {"gpt." + n: t for n, t in ts.items()}))
    assert "'model.embed_tokens.weight' is missing; the weights have other" in said
    assert "gpt.model.layers.0." in said and "missing; download" not in said


def test_a_shared_table_under_the_head_s_name_alone(tmp_path, write_model):
    model = write_model(tmp_path / "whole", tie_word_embeddings=True)
    save_model(model, str(tmp_path / FILE))
    assert "model.embed_tokens.weight" not in load_file(tmp_path / FILE)
    config = (tmp_path / "whole" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    cfg = models.config(tmp_path)
    equal(hf.load(tmp_path, cfg), hf.load(tmp_path / "whole", cfg))
    untied = {**json.loads(config), "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(untied))
    assert "false; set it to true if the model shares its embedding" in refusal(
        tmp_path
    )


def test_more_rows_than_the_vocabulary_of_the_config(rewritten):
    def change(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, 4))
        return tensors

    folder = rewritten(change)
    said = refusal(folder)
    assert said.count("has 100 rows, one a token; config.json has vocab_size 96") == 2
    assert "set vocab_size to 100" in said
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 96', '"vocab_size": 100'))
    hf.load(folder, models.config(folder))  # which is the remedy


MIXTURES = {
    "qwen3_moe": {"moe_intermediate_size": 24, "num_experts": 3, "head_dim": 8},
    "mixtral": {"intermediate_size": 24, "num_local_experts": 3},
}


@pytest.fixture(params=MIXTURES)
def mixture(request, tmp_path):
    """A mixture as `save_pretrained` writes it, and its tensors as in memory."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        request.param,
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        **MIXTURES[request.param],
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    return tmp_path, {n: t.clone() for n, t in model.state_dict().items()}


def test_experts_of_a_layer_in_one_tensor(mixture):
    folder, tensors = mixture
    cfg = models.config(folder)
    expected = hf.load(folder, cfg)
    assert tensors["model.layers.1.mlp.experts.gate_up_proj"].shape == (3, 48, 32)
    save_file(tensors, folder / FILE)
    equal(hf.load(folder, cfg), expected)
    # As other families have them: inputs before outputs.
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, folder / FILE)
    assert re.search(
        r"shape \(3, 32, 48\); config.json implies \(3, 48", refusal(folder)
    )
