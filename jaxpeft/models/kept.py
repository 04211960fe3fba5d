"""What the backward pass of a layer keeps, and in which memory."""

from collections.abc import Callable

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft.devices import host_memory
from jaxpeft.models.spec import ModelConfig

# What is kept by `model.remat`; the rest is computed once more, and a layer's input is
# always there. "none" keeps the result of every matrix product: norms and activations
# cost less to repeat than to store. "dots" lets go of the widest ones.
PRODUCTS = ("q", "k", "v", "attention", "logsumexp", "residual", "low")
NAMES: dict[str, tuple[str, ...]] = {
    "none": (*PRODUCTS, "gate", "up", "down"),
    "dots": PRODUCTS,
    "full": (),
}
INPUT = "input"  # of a layer
POLICIES: dict[str, Callable] = {
    remat: jax.checkpoint_policies.save_only_these_names(*names)
    for remat, names in NAMES.items()
}


def policy(cfg: ModelConfig) -> Callable:
    """What `jax.checkpoint` is to keep of a layer, and where.

    Args:
        cfg: how the model is run: `remat`, and `offload`, which may take all that is
            kept to the host's memory and back when the backward pass wants it.
    """
    if not cfg.offloads_activations:
        return POLICIES[cfg.remat]
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT, *NAMES[cfg.remat]],
        offload_src="device",
        offload_dst=host_memory.KIND,
    )


def read(x: Array, cfg: ModelConfig) -> Array:
    """A layer's input by a name, where a policy is to know of it.

    Args:
        x: (batch, seq, hidden).
        cfg: see `policy`.
    """
    return checkpoint_name(x, INPUT) if cfg.offloads_activations else x
