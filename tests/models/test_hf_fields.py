"""Reading config.json: what is understood, what is refused and in which words."""

import json
import re

import pytest
from transformers import LlamaConfig

from jaxpeft import models
from jaxpeft.errors import InputError

PLAIN = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [2.0, 2.0, 2.0, 2.0],
}


def problems(**changes):
    hf = {k: v for k, v in {**PLAIN, **changes}.items() if v != "absent"}
    with pytest.raises(InputError) as caught:
        models.config(hf)
    return caught.value.problems


def test_defaults_are_those_of_transformers():
    theirs, ours = LlamaConfig(**PLAIN), models.config(PLAIN)
    for name in (
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "hidden_act",
        "initializer_range",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope == models.Rope(theta=theirs.rope_parameters["rope_theta"])


OLD_STYLE = {
    "plain": {"rope_theta": 500000.0},
    "null": {"rope_theta": 20000.0, "rope_scaling": None},
    "type": {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "yarn": {
        "max_position_embeddings": 256,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


@pytest.mark.parametrize("name", OLD_STYLE)
def test_old_rope_fields_mean_what_transformers_reads(name):
    old = {"max_position_embeddings": 128, **PLAIN, **OLD_STYLE[name]}
    rewritten = json.loads(LlamaConfig(**old).to_json_string(use_diff=False))
    assert "rope_theta" not in rewritten and "rope_scaling" not in rewritten
    assert models.config(old) == models.config(rewritten)


IN_4_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

REFUSED = {
    "unknown field": ({"sliding_window": 4096}, "sliding_window: found 4096"),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config.quant_method: found 'gptq'; .*unquantized",
    ),
    "8 bits": (
        {"quantization_config": {"load_in_8bit": True}},
        "quantization_config.load_in_4bit: found None; .*unquantized",
    ),
    "another book": (
        {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}},
        "quantization_config.bnb_4bit_quant_type: found 'fp4'; .*unquantized",
    ),
    "neither": (
        {"quantization_config": {**IN_4_BITS, "bnb_4bit_use_double_quant": 1}},
        "quantization_config.bnb_4bit_use_double_quant: found 1",
    ),
    "no mapping": ({"quantization_config": "nf4"}, "quantization_config: found 'nf4'"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout: found 0.1"),
    "huge": ({"hidden_size": 10**12}, "hidden_size: found 1000000000000"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers: found 0"),
    "negative": ({"vocab_size": -5}, "vocab_size: found -5"),
    "fraction": ({"intermediate_size": 40.5}, "intermediate_size: found 40.5"),
    "boolean": ({"num_attention_heads": True}, "num_attention_heads: found True"),
    "text": ({"hidden_size": "32"}, "hidden_size: found '32'"),
    "missing": ({"hidden_size": "absent"}, "hidden_size: found nothing"),
    "odd head": ({"head_dim": 7}, "head_dim is 7; .*even"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads: found 3.*divide"),
    "activation": ({"hidden_act": "swish2"}, "hidden_act: found 'swish2'.*silu"),
    "epsilon": ({"rms_norm_eps": "small"}, "rms_norm_eps: found 'small'"),
    "flag": ({"tie_word_embeddings": 1}, "tie_word_embeddings: found 1"),
    "rope kind": (
        {"rope_scaling": {"type": "yern"}},
        "rope_type: found 'yern'; .*yarn",
    ),
    "rope text": ({"rope_scaling": "linear"}, "rope_scaling: found 'linear'.*mapping"),
    "rope list": ({"rope_scaling": {"type": ["x"]}}, r"rope_type: found \['x'\]"),
    "rope theta": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": "big"}},
        "rope_theta: found 'big'",
    ),
    "rope number": (
        {"rope_scaling": {"type": "linear", "factor": "8"}},
        "factor: found '8'; it must be a number",
    ),
    "rope zero": ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor: found 0"),
    "theta zero": ({"rope_theta": 0}, "rope_theta: found 0"),
    "context": (
        {"max_position_embeddings": "9", "rope_scaling": LONG},
        "max_position_embeddings: found '9'",
    ),
    "original context": (
        {"rope_scaling": {**LONG, "original_max_position_embeddings": "9"}},
        "original_max_position_embeddings: found '9'",
    ),
    "longrope divisors": (
        {"rope_scaling": {**LONG, "short_factor": [1.0, 1.0]}},
        "short_factor: .*4",
    ),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps: found nan"),
    "negative epsilon": ({"rms_norm_eps": -1.0}, "rms_norm_eps: found -1.0"),
    "rope missing": (
        {"rope_scaling": {"type": "linear"}},
        "rope_parameters.factor: missing",
    ),
    "rope surplus": (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "factr": 3.0}},
        "rope_parameters.factr: not handled.*did you mean 'factor'",
    ),
}


MIXED = ["attention", {"kind": "attention"}]
SIZES = {"num_hidden_layers": 2, "num_local_experts": 0}
# Fields of single families, beside what is wrong with many others, too.
OF_FAMILIES = {
    "kinds of layers": (
        {"model_type": "granitemoehybrid", "layer_types": MIXED, **SIZES},
        r"layer_types: found \['attention', \{.*; it must be a list of 2 times",
    ),
    "its older name": (
        {"model_type": "granitemoehybrid", "layers_block_type": ["mamba"] * 2, **SIZES},
        r"layers_block_type: found \['mamba', 'mamba'\]; .* whose name has no H",
    ),
    "too few": (
        {"model_type": "granitemoehybrid", "layer_types": ["attention"], **SIZES},
        r"layer_types: found \['attention'\]; it must be a list of 2 times",
    ),
    "kinds that are no names": (
        {"model_type": "olmo3", "layer_types": [{}, {}], "num_hidden_layers": 2},
        r"layer_types: found \[\{\}, \{\}\]; it must be a list of full_attention and",
    ),
    "another width": (
        {"model_type": "nemotron", "head_dim": 8, "kv_channels": 16},
        "kv_channels: found 16; a head is 8 wide, by head_dim; remove it",
    ),
    "another part rotates": (
        {"model_type": "cohere2", "rotary_pct": 0.5},
        "rotary_pct: found 0.5; this field is not handled for model_type 'cohere2'",
    ),
    "a kind inside": (
        {"model_type": "gemma3", "text_config": {"model_type": ["gemma3_text"]}},
        r"text_config.model_type: found \['gemma3_text'\]; .* one of gemma3_text",
    ),
    "tied, perhaps": (
        {"model_type": "gemma3", "tie_word_embeddings": "yes", "text_config": {}},
        "tie_word_embeddings: found 'yes'; it must be true or false",
    ),
}


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_refused_in_a_family(name):
    content, message = OF_FAMILIES[name]
    with pytest.raises(InputError) as caught:
        models.config(content)
    found = [said.removeprefix("config.json: ") for said in caught.value.problems]
    assert any(re.match(message, said) for said in found)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    changes, message = REFUSED[name]
    found = problems(**changes)
    assert len(found) == 1
    with pytest.raises(InputError, match=rf"config\.json: (rope_\w+\.)?{message}"):
        raise InputError(*found)


def test_everything_wrong_is_reported_at_once():
    found = problems(hidden_size=0, hidden_act="x", parallel=True, mlp_bias="no")
    named = [p.split(": ")[1] for p in found]
    assert sorted(named) == ["hidden_act", "hidden_size", "mlp_bias", "parallel"]


@pytest.mark.parametrize("kind", ["mamba", None, "lama", 3, ["llama"]])
def test_an_unknown_model_type_lists_the_supported(kind):
    (found,) = problems(model_type=kind)
    assert f"model_type: found {kind!r}" in found and "supported: " in found


def test_fields_that_say_nothing_are_ignored():
    inert = {"architectures": ["X"], "use_cache": True, "pretraining_tp": 1, "_x": 1}
    assert models.config({**PLAIN, **inert, "sliding_window": None}) == models.config(
        PLAIN
    )


@pytest.mark.parametrize(
    "content", ["{", "[]", '"llama"', b"\xff\xfe", "[" * 100_000, " " * 1_000_001]
)
def test_a_damaged_file_is_refused(content, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InputError, match=r"config\.json"):
        models.config(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json' is missing"):
        models.config(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        models.config(tmp_path / "absent")
