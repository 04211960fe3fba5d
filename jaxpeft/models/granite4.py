"""Granite 4 without state spaces: Granite whose gate and up are one kernel."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import granite
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

FIELDS = {"intermediate_size": "shared_intermediate_size"}
# Of layers that it does not have, or of how it was trained.
INERT = {
    "init_method",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "time_step_limit",
}
LAYER = "model.layers.{}."
NAMES = (
    (f"{LAYER}mlp.gate_up_proj", f"{LAYER}shared_mlp.input_linear"),
    (f"{LAYER}mlp.down_proj", f"{LAYER}shared_mlp.output_linear"),
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=FIELDS)
    layers = fields.size("num_hidden_layers")
    fields.seen |= INERT | {name for name in hf if name.startswith("mamba_")}
    _check_layers(fields, layers)
    if fields.get("num_local_experts", 8) != 0:
        fields.problem("num_local_experts", "0: experts beside an MLP are not handled")
    fields.choice("normalization_function", "rmsnorm", ("rmsnorm",))
    rotates = fields.choice("position_embedding_type", "nope", ("rope", "nope"))
    return decoder(
        fields,
        **granite.common(fields),
        fused_gate_up=True,
        intermediate_size=fields.size("intermediate_size", 1024),
        rotations=() if rotates == "rope" else (-1,) * layers,
        names=NAMES,
    )


def _check_layers(fields: Fields, layers: int) -> None:
    """Every layer has attention, by whichever of two names the file says it."""
    kinds = fields.get("layer_types", None)
    older = fields.get("layers_block_type", None)
    name = "layer_types" if older is None else "layers_block_type"
    kinds = kinds if older is None else older
    attention = ("attention", "full_attention")
    sound = isinstance(kinds, list) and all(kind in attention for kind in kinds)
    if not sound or len(kinds) != layers:
        fields.problem(
            name,
            f"a list of {layers} times 'attention': layers of state spaces (Mamba) are "
            "not handled; take a Granite 4 whose name has no H",
        )
