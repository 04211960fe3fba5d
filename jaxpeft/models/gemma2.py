"""Gemma 2: capped logits, norms on both sides, a window in every other layer."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    local = hf_layers.layer_types(fields, [(i + 1) % 2 == 1 for i in range(layers)])
    return decoder(
        fields,
        **common(fields),
        windows=hf_layers.windows(fields, local),
        attention_softcap=fields.cap("attn_logit_softcapping"),
        logit_softcap=fields.cap("final_logit_softcapping"),
    )


def common(fields: Fields) -> dict[str, Any]:
    """The keywords of `hf_decoder.decoder` that Gemma 2 and Gemma 3 share.

    Args:
        fields: the reader over the model's `config.json`.
    """
    if fields.flag("use_bidirectional_attention", False):
        fields.refuse("use_bidirectional_attention", "only causal models are handled")
    fields.seen.add("hidden_act")
    scalar = fields.number("query_pre_attn_scalar", 256.0, positive=True)
    return {
        "attention_bias": fields.flag("attention_bias", False),
        "norms": "both",
        "norm_offset": 1.0,
        "embedding_scale": fields.size("hidden_size") ** 0.5,
        "attention_scale": scalar**-0.5,
        "hidden_act": fields.choice(
            "hidden_activation", "gelu_pytorch_tanh", ("gelu_pytorch_tanh", "gelu")
        ),
    }
