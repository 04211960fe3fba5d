"""Qwen2 and Qwen2.5: biases of q, k and v; a window in later layers if asked."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Raises InputError listing every field that is missing, malformed or not handled.
    """
    fields = Fields(hf)
    return fields.decoder(
        attention_bias=True,
        output_bias=False,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=windows(fields),
    )


def windows(fields: Fields) -> tuple[int | None, ...]:
    """How far back each layer sees: `use_sliding_window` and where it begins."""
    layers = fields.size("num_hidden_layers")
    first = fields.number("max_window_layers", 28)
    used = fields.flag("use_sliding_window", False)
    local = fields.layer_types([used and i >= first for i in range(layers)])
    found = fields.windows(local)
    return found if used else ()
