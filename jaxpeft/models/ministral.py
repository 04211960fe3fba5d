"""Ministral: Mistral in which some layers see all."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers, mistral
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = mistral.DEFAULTS


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    local = hf_layers.layer_types(fields, [True] * layers)
    return decoder(
        fields,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, local),
    )
