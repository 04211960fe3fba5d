"""Mistral: Llama with a window of tokens that a layer sees."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
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
    return decoder(
        fields,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, [True] * layers),
    )
