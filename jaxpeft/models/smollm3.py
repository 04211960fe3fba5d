"""SmolLM3: every fourth layer does not rotate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=2000000.0, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    every = fields.size("no_rope_layer_interval", 4)
    # 1 where one rotates.
    turning = fields.bits("no_rope_layers", hf_layers.all_but_each(every, layers))
    used = fields.flag("use_sliding_window", False)
    if not used:
        fields.seen.add("max_window_layers")
    local = hf_layers.layer_types(fields, [used and not turns for turns in turning])
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        rotations=tuple(0 if turns else -1 for turns in turning),
        windows=hf_layers.windows(fields, local),
    )
