"""Qwen2 and Qwen2.5: biases of q, k and v; a window in later layers if asked."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
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
    return decoder(
        fields,
        attention_bias=True,
        output_bias=False,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=windows(fields),
    )


def windows(fields: Fields) -> tuple[int | None, ...]:
    """How far back each layer sees, by `use_sliding_window` and `max_window_layers`.

    Args:
        fields: the reader over the model's `config.json`.

    Returns:
        The tokens that each layer sees, None for all, as `hf_layers.windows` gives
        them; an empty tuple where no layer has a window.
    """
    layers = fields.size("num_hidden_layers")
    first = fields.number("max_window_layers", 28)
    used = fields.flag("use_sliding_window", False)
    local = hf_layers.layer_types(fields, [used and i >= first for i in range(layers)])
    by_layer = hf_layers.windows(fields, local)
    return by_layer if used else ()
