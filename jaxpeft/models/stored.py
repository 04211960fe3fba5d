"""How a checkpoint says that its weights are stored in few bits."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.errors import InputError

BNB = "bitsandbytes"
REMEDY = "point model.path at the unquantized model"


def quantization(content: Mapping[str, Any]) -> str | None:
    """How the layers' kernels are stored, by the content of a config.json.

    Args:
        content: of the file.

    Returns:
        "nf4" or "nf4_single" for bitsandbytes in 4 bits, with or without double
        quantization, as the kernels of these names; None for weights as they are.

    Raises:
        InputError: `quantization_config` says anything else.
    """
    entry = content.get("quantization_config")
    if entry is None:
        return None
    name = "config.json: quantization_config"
    if not isinstance(entry, Mapping):
        raise InputError(f"{name}: found {entry!r}; restore the file")
    problems = [
        f"{name}.{key}: found {entry.get(key)!r}; handled is {wanted} alone: {REMEDY}"
        for key, wanted, valid in (
            (
                "quant_method",
                "'bitsandbytes'",
                entry.get("quant_method", BNB) == BNB,
            ),
            ("load_in_4bit", "true", entry.get("load_in_4bit") is True),
            (
                "bnb_4bit_quant_type",
                "'nf4'",
                entry.get("bnb_4bit_quant_type") == "nf4",
            ),
        )
        if not valid
    ]
    double = entry.get("bnb_4bit_use_double_quant", False)
    if not isinstance(double, bool):
        problems.append(
            f"{name}.bnb_4bit_use_double_quant: found {double!r}; it must be true or "
            "false: restore the file"
        )
    if problems:
        raise InputError(problems[0])
    return "nf4" if double else "nf4_single"


def check(kind: str, wanted: str | None) -> None:
    """Checks that weights stored in few bits are not wanted in others.

    Args:
        kind: how they are stored, as `quantization` says it.
        wanted: `model.quantization`; "none" and None say nothing.

    Raises:
        InputError: they are wanted in other few bits.
    """
    if wanted not in (None, "none", kind):
        raise InputError(
            f"model.quantization: found {wanted!r}, but the checkpoint is stored in "
            f"{kind}; use {kind}, or {REMEDY}"
        )
