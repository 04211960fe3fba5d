"""BitFit: the biases of the base train, nothing else (Ben Zaken et al., 2022)."""

from collections.abc import Mapping
from typing import Any

from jax import Array

from jaxpeft import tree
from jaxpeft.adapters import saved
from jaxpeft.errors import InputError


def bitfit(params: Mapping[str, Any], key: Array) -> dict[str, Any]:
    """BitFit (Ben Zaken et al., 2022): the biases of the base train, nothing else.

    Args:
        params: of a base; every bias in it becomes a float32 copy that trains.
        key: not used; nothing is random.

    Returns:
        The params with those copies.

    Raises:
        InputError: the base has no biases.
    """
    del key
    leaves = dict(tree.walk(params))
    names = saved.biases(params, "all", {})
    if not names:
        raise InputError(
            "adapter.method: found 'bitfit', and this model has no biases (Qwen2 and "
            "GPT-2 have); use lora, or ia3, which trains as few parameters"
        )
    return tree.replace(params, {name: saved.save(leaves[name]) for name in names})
