"""How a checkpoint says that its weights are stored in few bits."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.errors import InputError

BNB = "bitsandbytes"
REMEDY = "point model.path at the unquantized model"


def quantization(content: Mapping[str, Any]) -> str | None:
    """How the layers' kernels are stored, by the content of a config.json.

    None: as they are; "nf4" or "nf4_single": by bitsandbytes in 4 bits, with or
    without double quantization, as the kernels of these names. Raises InputError where
    `quantization_config` says anything else.
    """
    found = content.get("quantization_config")
    if found is None:
        return None
    name = "config.json: quantization_config"
    if not isinstance(found, Mapping):
        raise InputError(f"{name}: found {found!r}; restore the file")
    problems = [
        f"{name}.{key}: found {found.get(key)!r}; handled is {wanted} alone: {REMEDY}"
        for key, wanted, valid in (
            ("quant_method", "'bitsandbytes'", found.get("quant_method", BNB) == BNB),
            ("load_in_4bit", "true", found.get("load_in_4bit") is True),
            ("bnb_4bit_quant_type", "'nf4'", found.get("bnb_4bit_quant_type") == "nf4"),
        )
        if not valid
    ]
    double = found.get("bnb_4bit_use_double_quant", False)
    if not isinstance(double, bool):
        problems.append(
            f"{name}.bnb_4bit_use_double_quant: found {double!r}; it must be true or "
            "false: restore the file"
        )
    if problems:
        raise InputError(problems[0])
    return "nf4" if double else "nf4_single"


def check(kind: str, wanted: str | None) -> None:
    """Raises InputError where weights stored as `kind` are wanted in other few bits.

    wanted: `model.quantization`; "none" and None say nothing.
    """
    if wanted not in (None, "none", kind):
        raise InputError(
            f"model.quantization: found {wanted!r}, but the checkpoint is stored in "
            f"{kind}; use {kind}, or {REMEDY}"
        )
