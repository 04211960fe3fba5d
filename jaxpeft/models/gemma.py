"""Gemma (the first): norms with an offset, scaled embeddings."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

TANH = "gelu_pytorch_tanh"

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 16,
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
    fields.choice("hidden_activation", TANH, (TANH,))
    # The first files say "gelu" and mean its approximation.
    fields.choice("hidden_act", TANH, (TANH, "gelu"))
    if fields.flag("use_bidirectional_attention", False):
        fields.refuse("use_bidirectional_attention", "only causal models are handled")
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        norm_offset=1.0,
        embedding_scale=fields.size("hidden_size") ** 0.5,
        hidden_act=TANH,
    )
