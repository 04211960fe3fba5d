"""What a run computes in: as it was asked for, or as its devices are made."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import adapters, hardware, tree
from jaxpeft.config import ModelSection, RunConfig
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig

AUTO = "auto"


def dtype_of(target: hardware.Target | None, trains: bool = False) -> str:
    """What `model.dtype: auto` stands for.

    That of the checkpoint has no say: a frozen base in 16 bits is half as large and its
    products many times as fast, and what trains beside it is float32 all the same.

    Args:
        target: what the model is to run on; None: an accelerator, nothing more is
            known.
        trains: whether the base itself trains: see `check_trained`.

    Returns:
        "bfloat16" where a device has it or is not known, else "float16"; "float32" on
            CPUs, and in place of float16 where the base trains.
    """
    if target is not None and target.platform == "cpu":
        return "float32"
    device = None if target is None else target.device
    if device is None or device.bf16 or not device.fp16:
        return "bfloat16"
    return "float32" if trains else "float16"


def settled_model(
    section: ModelSection, target: hardware.Target | None, trains: bool = False
) -> ModelSection:
    """The section with a dtype in the place of `auto`.

    Args:
        section: the section `model` of a configuration.
        target: see `dtype_of`.
        trains: whether the base itself trains.
    """
    if section.dtype != AUTO:
        return section
    return section.model_copy(update={"dtype": dtype_of(target, trains)})


def settled(cfg: RunConfig, target: hardware.Target | None) -> RunConfig:
    """The configuration with a dtype in the place of `auto`.

    Args:
        cfg: the configuration.
        target: see `dtype_of`.
    """
    if cfg.model.dtype != AUTO:
        return cfg
    trains = adapters.TABLE[cfg.adapter.method].gives_model
    model = settled_model(cfg.model, target, trains)
    return cfg.model_copy(update={"model": model})


def widens(dtype: str, target: hardware.Target) -> bool:
    """Whether activations are float32 although the weights are stored in 16 bits.

    On a CPU they are: products of 16-bit numbers are slower there, and no memory would
    be saved.

    Args:
        dtype: of the weights.
        target: what the model is to run on.
    """
    return target.platform == "cpu" and dtype != "float32"


def scales_loss(cfg: ModelConfig, dtype: str) -> bool:
    """Whether the loss has to be scaled: the backward pass is in float16.

    Args:
        cfg: the hyperparameters of the model, which say how it is run.
        dtype: of its weights.
    """
    return (cfg.activation_dtype or dtype) == "float16"


def check_trained(params: Any) -> None:
    """Checks that nothing trains in float16, beside a scaled loss.

    Gradients have the dtype of what trains, and so has what optimizers keep of them:
    unscaled and squared they are mostly less than float16's smallest number, 6e-8.
    `torch.amp.GradScaler` refuses them, too.

    Args:
        params: of the whole model, arrays or shapes.

    Raises:
        InputError: where something does.
    """
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    if any(x.dtype == jnp.float16 for x in jax.tree.leaves(trainable)):
        raise InputError(
            "model.dtype: found 'float16' where the base itself trains; most gradients "
            "of it would be 0 in that dtype: use float32, or bfloat16 on a device that "
            "has it, or an adapter, which trains in float32 beside a base in float16"
        )
