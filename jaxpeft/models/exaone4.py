"""EXAONE 4: norms of what attention and MLP give; what sees all does not rotate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "num_key_value_heads": 32,
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
    fields = Fields(hf, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    local = hf_layers.layer_types(fields, _pattern(fields, layers))
    windows = hf_layers.windows(fields, local)
    return decoder(
        fields,
        qk_norm="head",
        norms="after",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        # Without windows all layers rotate.
        rotations=tuple(0 if near else -1 for near in local) if windows else (),
        windows=windows,
    )


def _pattern(fields: Fields, layers: int) -> list[bool]:
    """Which layers see a window where `layer_types` does not say it.

    It is a number, of which every so many layers one sees all, or letters, "LLLG",
    which repeat.
    """
    pattern = fields.get("sliding_window_pattern", 4)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return [pattern[i % len(pattern)] == "L" for i in range(layers)]
    if pattern == 0:  # written where there is no window
        return [False] * layers
    every = fields.size("sliding_window_pattern", 4)
    return hf_layers.all_but_each(every, layers)
