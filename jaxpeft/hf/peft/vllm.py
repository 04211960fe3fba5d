"""LoRA nodes as vLLM takes them: one rank and one scale for all modules.

vLLM reads `r`, `lora_alpha` and `use_rslora` of an adapter and no patterns by module,
and refuses DoRA, biases and saved modules (`PEFTHelper` in its `lora/peft_helper.py`).
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import console, kernel, tree
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.targets import in_mixture
from jaxpeft.errors import InputError
from jaxpeft.hf.peft.save import save_adapter
from jaxpeft.models.spec import ModelConfig

# The values of vLLM's --max-lora-rank, of which 16 is the default.
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_RANK = 16


def save_for_vllm(
    params: Mapping[str, Any],
    directory: str | Path,
    cfg: ModelConfig,
    base: str | Path | None = None,
) -> None:
    """Writes LoRA nodes as an adapter that vLLM, and PEFT, load unmodified.

    It is written by `save_adapter`, so it is verified, and computes what `params` do. A
    warning is shown where the rank is above vLLM's default.

    Args:
        params: The params mapping with its LoRA nodes.
        directory: The folder to write.
        cfg: The model's configuration.
        base: The model's folder or hub id, noted in the config.

    Raises:
        InputError: As `save_adapter` does, for adapters other than LoRA, and for a rank
            that vLLM has no setting for.
        NumericsError: Where a weight is not finite.
    """
    same = uniform(params)
    nodes = filter(kernel.is_adapter, kernel.nodes(same).values())
    rank = max(node.rank for node in nodes)
    if rank > MAX_RANKS[-1]:
        raise InputError(
            f"--to: found 'vllm' with an adapter of rank {rank}; vLLM takes at most "
            f"{MAX_RANKS[-1]}: use --to merged"
        )
    save_adapter(same, directory, cfg, base)
    if rank > DEFAULT_MAX_RANK:
        needed = next(n for n in MAX_RANKS if n >= rank)
        console.warn(
            f"{directory}: the adapter has rank {rank}; start vLLM with "
            f"--max-lora-rank {needed}, its default is {DEFAULT_MAX_RANK}"
        )


def uniform(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params with LoRA nodes of one rank and one scale, rsLoRA made plain.

    Lower ranks are filled up with zeros to the largest, and what a module's scale
    differs from the common one goes into its B: the product stays the same but for a
    rounding of B where the quotient of the scales is no power of two.

    Args:
        params: The params mapping with its LoRA nodes.

    Raises:
        InputError: Where an adapter is no LoRA or stands in a router or experts, or
            where there is none whose scale is other than 0.
    """
    adapters = {
        n: node.plain() if isinstance(node, LoRA) else node
        for n, node in kernel.nodes(params).items()
        if kernel.is_adapter(node)
    }
    others = {n: node for n, node in adapters.items() if not isinstance(node, LoRA)}
    mixtures = [name for name in adapters if in_mixture(name)]
    if others or mixtures or not adapters:
        raise InputError(
            *(
                f"{name}: vLLM loads no {type(node).__name__} adapter; use --to merged"
                for name, node in others.items()
            ),
            *(
                f"{name}: vLLM loads no adapter of a router or of experts; use --to "
                "merged"
                for name in mixtures
            ),
            *([] if adapters else ["the params hold no adapter for vLLM to load"]),
        )
    scales = Counter(
        float(s) for node in adapters.values() for s in np.ravel(node.scale) if s != 0
    )
    if not scales:
        raise InputError(
            "the params hold no LoRA with a scale other than 0; vLLM would load nothing"
        )
    rank = max(node.rank for node in adapters.values())
    scale = scales.most_common(1)[0][0]
    changes = {name: _as_others(n, rank, scale) for name, n in adapters.items()}
    return tree.replace(params, changes)


def _as_others(node: LoRA, rank: int, scale: float) -> LoRA:
    lead, short = [(0, 0)] * (node.a.ndim - 2), rank - node.rank
    factor = (node.scale / np.float32(scale))[..., None, None]
    return dataclasses.replace(
        node,
        a=jnp.pad(node.a, [*lead, (0, 0), (0, short)]),
        b=jnp.pad(node.b * factor, [*lead, (0, short), (0, 0)]),
        scale=jnp.where(node.scale == 0, 0.0, jnp.float32(scale)),
        ranks=None,
        lora_alpha=0.0,  # not its own: saving finds the one that gives the scale
        use_rslora=False,
    )
