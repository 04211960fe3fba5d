"""Command R7B and Command A (Cohere 2): Cohere with windows."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import cohere, hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

DEFAULTS = {**cohere.DEFAULTS, "sliding_window": 4096}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=cohere.FIELDS, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    every = fields.size("sliding_window_pattern", fields.size("layer_switch", 4))
    local = hf_layers.layer_types(fields, hf_layers.all_but_each(every, layers))
    windows = hf_layers.windows(fields, local)
    for name in ("use_parallel_block", "use_gated_activation"):
        if not fields.flag(name, True):
            fields.refuse(name, "only true is handled")
    return decoder(
        fields,
        **cohere.common(fields),
        # What sees all does not rotate.
        rotations=tuple(0 if near else -1 for near in windows or [None] * layers),
        windows=windows,
    )
