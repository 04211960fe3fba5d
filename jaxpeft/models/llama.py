"""The Llama family: Llama 2, 3, 3.1, 3.2 and everything with `model_type: llama`."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Raises InputError listing every field that is missing, malformed or not handled.
    """
    fields = Fields(hf)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    sound = not fields.problems  # else what follows from the sizes says nothing
    if fields.number("attention_dropout", 0.0):
        fields.refuse("attention_dropout", "set it to 0.0: it is not implemented")
    cfg = ModelConfig(
        model_type="llama",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=fields.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", max(hidden // heads, 1) if sound else 2),
        max_position_embeddings=fields.size("max_position_embeddings", 2048),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=fields.rope(),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        hidden_act=fields.choice("hidden_act", "silu", ("silu", "gelu", "relu")),
        initializer_range=fields.number("initializer_range", 0.02),
        hf=dict(hf),
    )
    if sound and cfg.num_attention_heads % cfg.num_key_value_heads:
        fields.refuse(
            "num_key_value_heads", f"it must divide num_attention_heads {heads}"
        )
    if cfg.head_dim % 2:
        fields.problems.append(
            f"config.json: head_dim is {cfg.head_dim}; rotary position embeddings "
            "need an even one"
        )
    for name in ("short_factor", "long_factor"):
        divisors = getattr(cfg.rope, name)
        if divisors and sound and len(divisors) != cfg.head_dim // 2:
            fields.problems.append(
                f"config.json: rope_parameters.{name}: found {len(divisors)} numbers; "
                f"half of head_dim, {cfg.head_dim // 2}, are needed"
            )
    fields.finish()
    return cfg
