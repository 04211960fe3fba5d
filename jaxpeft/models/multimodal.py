"""Models that see, too: the language model in them, which alone is trained and run.

Their `config.json` describes it under `text_config`. To transformers, and so to PEFT,
it is the module `model.language_model`, whatever the files call it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.models import gemma3, ministral3, mistral, qwen2, qwen3
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.hf_neutral import INERT
from jaxpeft.models.spec import ModelConfig

DECODER = "model.language_model"
# Of images and videos, and of the tokens that stand for them.
BESIDE = frozenset(
    """boi_token_index eoi_token_index image_token_id image_token_index
    initializer_range mm_tokens_per_image multimodal_projector_bias
    projector_hidden_act spatial_merge_size video_token_id vision_config
    vision_end_token_id vision_feature_layer vision_start_token_id
    vision_token_id""".split()
)
Family = Callable[[Mapping[str, Any]], ModelConfig]
# {model_type: {that of its language model: the family that reads it}}; the first one
# where the file does not say it.
LANGUAGE: dict[str, dict[str, Family]] = {
    "gemma3": {"gemma3_text": gemma3.config},
    "mistral3": {"mistral": mistral.config, "ministral3": ministral3.config},
    "qwen2_vl": {"qwen2_vl_text": qwen2.config},
    "qwen2_5_vl": {"qwen2_5_vl_text": qwen2.config},
    "qwen3_vl": {"qwen3_vl_text": qwen3.config},
}
# What transformers has for a language model whose file says nothing, where that
# differs from the family that reads it.
QWEN2_VL = {
    "vocab_size": 152064,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "max_window_layers": 80,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": QWEN2_VL,
    "qwen2_5_vl_text": QWEN2_VL,
    "qwen3_vl_text": {
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "max_position_embeddings": 128000,
        "rope_theta": 500000.0,
    },
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters of the language model from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf)
    fields.seen |= BESIDE | {"text_config"}
    text = hf.get("text_config")
    if text is None:  # older files have all fields side by side
        text = {name: x for name, x in hf.items() if name not in BESIDE | INERT}
    elif not isinstance(text, Mapping):
        raise InputError(
            f"config.json: text_config: found {text!r}; it must be a mapping: restore "
            "the file"
        )
    # Files of Qwen-VL have these a second time, at values that are not read.
    fields.seen |= set(text)
    fields.flag("tie_word_embeddings", True)
    families = LANGUAGE[hf["model_type"]]
    kind = text.get("model_type", next(iter(families)))
    if not isinstance(kind, str) or kind not in families:
        fields.problems.append(
            f"config.json: text_config.model_type: found {kind!r}; in a model of type "
            f"{hf['model_type']!r} it must be one of {', '.join(families)}"
        )
    fields.finish()
    defaults = DEFAULTS.get(kind, {})
    parameters = text.get("rope_parameters")
    if isinstance(parameters, Mapping) and "rope_theta" in parameters:
        # Not said a second time.
        defaults = {k: v for k, v in defaults.items() if k != "rope_theta"}
    settings = {**defaults, **_one_dimensional(text), "model_type": kind}
    # Written by transformers 5 at both places, one of them at its default.
    tied = [content.get("tie_word_embeddings") for content in (hf, text)]
    if False in tied or True in tied:
        settings["tie_word_embeddings"] = False not in tied
    return dataclasses.replace(
        families[kind](settings),
        model_type=hf["model_type"],
        decoder=DECODER,
        hf=dict(hf),
    )


def _one_dimensional(text: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without what places images in the plane, and tokens for images.

    A text's tokens have the same place in all dimensions, so that their sections of a
    head rotate as one.
    """
    tokens = ("_token_id", "_token_index")
    content = {name: x for name, x in text.items() if not name.endswith(tokens)}
    for key in ("rope_scaling", "rope_parameters"):
        rope = content.get(key)
        if isinstance(rope, Mapping):
            rope = {k: v for k, v in rope.items() if not k.startswith("mrope_")}
            kinds = {k: rope[k] for k in ("type", "rope_type") if k in rope}
            plain = {k: "default" for k, v in kinds.items() if v == "mrope"}
            content[key] = {**rope, **plain}
    return content
