"""OLMo 3: OLMo 2 with a window in three of four layers, which rotate unscaled."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers, hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=500000.0, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    local = hf_layers.layer_types(fields, hf_layers.all_but_each(4, layers))
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="whole",
        norms="after",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        rope=hf_rope.rope(fields, "full_attention"),
        local_rope=hf_rope.rope(fields, "sliding_attention"),
        rotations=tuple(int(here) for here in local),
        windows=hf_layers.windows(fields, local),
    )
