"""Ministral 3: Mistral whose queries grow beyond the original context."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields, is_number
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
BETA = "llama_4_scaling_beta"
ORIGINAL = "original_max_position_embeddings"
# Of the entry that this family alone has, or that stands beside it, too.
OWN = (BETA, "max_position_embeddings")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    given = hf.get("rope_parameters") or ({} if hf.get("rope_scaling") else ROPE)
    rope = dict(given) if isinstance(given, Mapping) else {"rope_type": given}
    beta = rope.get(BETA) or 0.0
    shared = {name: x for name, x in rope.items() if name not in OWN}
    fields = Fields({**hf, "rope_parameters": shared}, defaults=DEFAULTS)
    if not is_number(beta) or beta < 0:
        fields.problems.append(
            f"config.json: rope_parameters.{BETA}: found {beta!r}; it must be a number "
            "from 0"
        )
    original = rope.get(ORIGINAL)
    if beta and original is None and rope.get("rope_type", "default") != "yarn":
        fields.problems.append(
            f"config.json: rope_parameters.{ORIGINAL}: missing; {BETA} needs it"
        )
    layers = fields.size("num_hidden_layers")
    cfg = decoder(
        fields,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, [True] * layers),
    )
    rotary = dataclasses.replace(cfg.rope, llama_4_scaling_beta=float(beta))
    if beta and isinstance(original, int | float) and original > 0:
        # Also where the kind of scaling has no use for it: queries do.
        rotary = dataclasses.replace(rotary, original_max_position_embeddings=original)
    return dataclasses.replace(cfg, rope=rotary, hf=dict(hf))
