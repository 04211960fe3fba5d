"""Fields that config.json leaves out, or has at a value that says nothing."""

import dataclasses

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from jaxpeft import models
from jaxpeft.errors import InputError
from jaxpeft.models import multimodal
from jaxpeft.models.hf_neutral import NEUTRAL, OF_FAMILY

SIZES = {
    "vocab_size": 61,
    "hidden_size": 128,
    "intermediate_size": 40,
    "num_hidden_layers": 7,
    "num_attention_heads": 64,
}
QWEN = {"use_sliding_window": True, "max_window_layers": 2}
SMOLLM3 = {"use_sliding_window": True, "sliding_window": 5}
# model_type -> fields beside the sizes without which others would not count.
FAMILIES = dict.fromkeys(models.FAMILIES, {}) | {
    "qwen2": QWEN,
    "qwen3": QWEN,
    "qwen3_moe": {"use_sliding_window": True},
    "smollm3": SMOLLM3,
    # There the default is true, and gives way to the head that every file has.
    "mistral3": {"tie_word_embeddings": False},
    "nemotron": {"head_dim": 8},  # of which half rotates
    "granitemoehybrid": {"num_local_experts": 0, "layer_types": ["attention"] * 7},
}


NAMES = {
    "gpt2": {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
    | {"num_attention_heads": "n_head", "intermediate_size": "n_inner"},
    "granitemoehybrid": {"intermediate_size": "shared_intermediate_size"},
}
# What transformers raises where a field may not be null.
INVALID = (StrictDataclassError, TypeError, ZeroDivisionError)


def content(kind):
    names = NAMES.get(kind, {})
    sizes = {names.get(name, name): value for name, value in SIZES.items()}
    if kind in multimodal.LANGUAGE:
        return {"model_type": kind, "text_config": sizes, **FAMILIES[kind]}
    return {"model_type": kind, **sizes, **FAMILIES[kind]}


def as_transformers(hf):
    """The file as transformers writes it down: every field, also those left out."""
    return CONFIG_MAPPING[hf["model_type"]].from_dict(hf).to_dict()


def assert_same(ours, theirs):
    for field in dataclasses.fields(ours):
        if field.name not in ("hf", "initializer_range"):
            found, wanted = (getattr(cfg, field.name) for cfg in (ours, theirs))
            assert found == wanted, field.name


@pytest.mark.parametrize("kind", models.FAMILIES)
def test_what_is_left_out_is_as_in_transformers(kind):
    hf = content(kind)
    assert_same(models.config(hf), models.config(as_transformers(hf)))


@pytest.mark.parametrize("kind", models.FAMILIES)
def test_null_is_what_it_is_in_transformers(kind):
    for name, value in as_transformers(content(kind)).items():
        hf = {**content(kind), name: None}
        if name in content(kind) or value is None or name == "num_local_experts":
            continue
        try:
            theirs = as_transformers(hf)
        except INVALID:
            continue
        assert_same(models.config(hf), models.config(theirs))


def test_the_text_of_a_multimodal_model_leaves_sizes_out():
    # As in the text_config of google/gemma-3-4b-it.
    hf = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    cfg = models.config(hf)
    assert_same(cfg, models.config(as_transformers(hf)))
    assert cfg.windows[:6] == (1024,) * 5 + (None,) and cfg.num_attention_heads == 8


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "gemma2", "smollm3"])
def test_a_default_that_does_not_fit_is_a_problem_of_the_file(kind):
    hf = {**content(kind), "num_attention_heads": 3, "hidden_size": 12, "head_dim": 4}
    with pytest.raises(
        InputError, match="num_key_value_heads: found nothing, which st"
    ):
        models.config(hf)


def test_experts_that_do_not_suffice_for_the_default():
    hf = {**content("qwen3_moe"), "num_experts": 2}
    with pytest.raises(InputError, match="num_experts_per_tok: found nothing.* for 8"):
        models.config(hf)


NEUTRAL_VALUES = [("llama", n, v) for n, values in NEUTRAL.items() for v in values] + [
    (kind, name, value)
    for kind, fields in OF_FAMILY.items()
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(
    "kind, name, value", NEUTRAL_VALUES, ids=lambda value: str(value)
)
def test_a_field_at_its_neutral_value(kind, name, value):
    assert_same(
        models.config({**content(kind), name: value}), models.config(content(kind))
    )


REFUSED = {
    "bias of the head": ("phi3", {"lm_head_bias": True}),
    "bias that is not read": ("phi3", {"attention_bias": True}),
    "bias that is missing": ("qwen2", {"attention_bias": False}),
    "turns by threes": ("qwen2", {"use_mrope": True}),
    "turns side by side": ("llama", {"rope_interleaved": True}),
    "part of a head": ("llama", {"partial_rotary_factor": 0.5}),
    "part of a head, inside": (
        "mistral",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "a shared expert": ("qwen3_moe", {"shared_expert_intermediate_size": 16}),
    "the other window": ("gemma2", {"sliding_window": 8, "sliding_window_size": 9}),
    "windows by layer": (
        "mistral",
        {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]},
    ),
    "chunks": ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}),
    "window from a layer on": ("qwen3_moe", {"max_window_layers": 3}),
    "other weights": ("llama", {"quantization": {"bits": 4, "group_size": 64}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_changes_results_is_refused(name):
    kind, fields = REFUSED[name]
    named = list(fields)[-1].removeprefix("rope_parameters") or "partial_rotary_factor"
    with pytest.raises(InputError, match=f"config.json: (rope_parameters.)?{named}"):
        models.config({**content(kind), **fields})


def test_layer_types_that_say_what_the_family_does():
    for kind, window in (("mistral", 8), ("llama", None), ("phi3", None)):
        name = "full_attention" if window is None else "sliding_attention"
        hf = {**content(kind), "sliding_window": window}
        assert_same(models.config({**hf, "layer_types": [name] * 7}), models.config(hf))


LINEAR = {"rope_type": "linear", "factor": 4.0}
THETA = {"rope_theta": 5e5}


def test_two_fields_for_one_rope_must_agree():
    hf = {**content("llama"), "rope_scaling": {**LINEAR, "type": "linear"}}
    agreeing = {**hf, "rope_parameters": {**LINEAR, **THETA}}
    theirs = as_transformers({**hf, **THETA})
    assert models.config(agreeing).rope == models.config(theirs).rope
    for other in ({"rope_type": "default", **THETA}, {**LINEAR, "factor": 2.0}):
        with pytest.raises(InputError, match="rope_scaling: .*remove one of them"):
            models.config({**hf, "rope_parameters": other})


def test_two_fields_for_the_ropes_of_two_kinds_of_layers():
    hf, local = content("gemma3_text"), {"rope_type": "default", "rope_theta": 5e3}
    whole = {"full_attention": {**LINEAR, "rope_theta": 1e6}}
    both = {**hf, "rope_parameters": {**whole, "sliding_attention": local}}
    cfg = models.config({**both, "rope_scaling": LINEAR})
    assert cfg.rope == models.Rope(1e6, "linear", 4.0)
    assert cfg.local_rope == models.Rope(5e3)
    with pytest.raises(InputError, match="rope_scaling: .*remove one of them"):
        models.config({**both, "rope_scaling": {**LINEAR, "factor": 2.0}})
    with pytest.raises(InputError, match="rope_parameters: .*each kind of layer"):
        models.config({**hf, "rope_parameters": LINEAR})
    partly = {**hf, "rope_parameters": whole}  # the other kind has a base of its own
    assert_same(models.config(partly), models.config(as_transformers(partly)))


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_the_names_that_phi3_had_for_longrope(kind):
    hf = {**content("phi3"), "max_position_embeddings": 8192, "head_dim": 2}
    hf["rope_scaling"] = {
        "type": kind,
        "short_factor": [1.1],
        "long_factor": [3.0],
        "original_max_position_embeddings": 4096,
    }
    rope = models.config(hf).rope
    assert rope.kind == "longrope" and rope.long_factor == (3.0,)
    assert rope == models.config(as_transformers(hf)).rope


def test_a_factor_that_transformers_does_not_read_is_told(capsys):
    # As in deepseek-ai/DeepSeek-R1-0528-Qwen3-8B.
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    plain = models.config({**content("qwen3"), "rope_scaling": yarn})
    told = models.config(
        {**content("qwen3"), "rope_scaling": {**yarn, "attn_factor": 0.878}}
    )
    assert (
        told.rope == plain.rope and "attn_factor: not read" in capsys.readouterr().err
    )
