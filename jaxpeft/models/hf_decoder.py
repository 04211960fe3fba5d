"""From the fields of a `config.json` to the model: what all families share."""

from collections.abc import Sequence
from typing import Any

from jaxpeft import console
from jaxpeft.models import hf_layers, hf_rope
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig


def decoder(fields: Fields, **own: Any) -> ModelConfig:
    """The model, from the fields that all families share and a family's `own`.

    Args:
        fields: the reader over the model's `config.json`.
        **own: fields of ModelConfig that the family reads by itself; they take the
            place of those that all share.

    Raises:
        InputError: with every problem that was met.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    sound = not fields.problems  # else what follows from the sizes says nothing
    for name in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        if name in fields.hf and fields.number(name, 0.0):
            fields.refuse(name, "set it to 0.0: it is not implemented")
    head_dim = fields.size("head_dim", max(hidden // heads, 1) if sound else 2)
    common: dict[str, Any] = {
        "model_type": fields.hf["model_type"],
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": fields.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("num_key_value_heads", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.size("max_position_embeddings", 2048),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "initializer_range": fields.number("initializer_range", 0.02),
        "hf": dict(fields.original),
    }
    if "intermediate_size" not in own:
        common["intermediate_size"] = fields.size("intermediate_size")
    if "rope" not in own:
        common["rope"] = hf_rope.rope(fields)
    cfg = ModelConfig(**{**common, **own})
    if "layer_types" not in fields.seen:
        hf_layers.check_types(fields, cfg)
    _consistent(fields, cfg, sound)
    fields.finish()
    return cfg


def leave_out(fields: Fields, dropouts: Sequence[str], default: float = 0.0) -> None:
    """Takes a base's dropouts out of what is read, and warns of those that it has.

    Args:
        fields: the reader over the model's `config.json`.
        dropouts: the fields of a family whose published models have them, which no
            adapter's training applies.
        default: their value where the file lacks them.
    """
    given = [name for name in dropouts if fields.number(name, default)]
    if given:
        console.remark(
            f"config.json: {', '.join(given)}: training leaves the base's dropout out; "
            "adapter.lora_dropout is the adapter's own"
        )
    fields.hf = {k: v for k, v in fields.hf.items() if k not in given}


def _consistent(fields: Fields, cfg: ModelConfig, sound: bool) -> None:
    if sound and cfg.num_attention_heads % cfg.num_key_value_heads:
        fields.refuse(
            "num_key_value_heads",
            f"it must divide num_attention_heads {cfg.num_attention_heads}",
        )
    rotary = cfg.rotary_dim or cfg.head_dim
    if rotary % 2 and cfg.position_embedding == "rotary":
        fields.problems.append(
            f"config.json: head_dim is {cfg.head_dim}; rotary position embeddings "
            "need an even number of its elements"
        )
    for name in ("short_factor", "long_factor"):
        divisors = getattr(cfg.rope, name)
        if divisors and sound and len(divisors) != rotary // 2:
            fields.problems.append(
                f"config.json: rope_parameters.{name}: found {len(divisors)} "
                f"numbers; half of what rotates of a head, {rotary // 2}, are "
                "needed"
            )
