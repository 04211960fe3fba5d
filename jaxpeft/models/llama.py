"""The Llama family: Llama 2, 3, 3.1, 3.2 and everything with `model_type: llama`."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf)
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        hidden_act=fields.choice("hidden_act", "silu", ("silu", "gelu", "relu")),
    )
