"""OLMo 2: norms of what attention and MLP give, and of all of q and of k."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {"rms_norm_eps": 1e-5}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, defaults=DEFAULTS)
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="whole",
        norms="after",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
    )
