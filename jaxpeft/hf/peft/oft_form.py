"""OFT in PEFT's files: `oft_R.weight`, (blocks, entries above the diagonal)."""

import re
from collections.abc import Mapping, Set
from typing import Any

from jaxpeft import console
from jaxpeft.adapters.oft import OFT, size_of
from jaxpeft.errors import InputError
from jaxpeft.hf.peft import adapter_config
from jaxpeft.hf.peft.form import Form

# What PEFT's config says of all modules alike: {its key, a field of ours: its default}.
SETTINGS: dict[str, Any] = {
    "r": 0,
    "oft_block_size": 32,
    "block_share": False,
    "use_cayley_neumann": True,
    "num_cayley_neumann_terms": 5,
}


def _build(
    base: Any,
    stacks: Mapping[str, Any],
    scale: Any,
    name: str,
    config: Mapping[str, Any],
    shared: Any,
) -> OFT:
    if "oft_block_size" not in config:
        raise InputError(
            f"{adapter_config.CONFIG}: oft_block_size: is missing, as in files of PEFT "
            "0.13 and before, whose OFT is another one; train it anew, or merge it "
            "there"
        )
    said = {key: config.get(key, value) for key, value in SETTINGS.items()}
    for key, value in said.items():
        if type(value) is not type(SETTINGS[key]):
            raise InputError(
                f"{adapter_config.CONFIG}: {key}: found {value!r}; PEFT writes one "
                f"like {SETTINGS[key]!r}"
            )
    if said["use_cayley_neumann"] and _is_before_018(config.get("peft_version")):
        console.remark(
            f"{adapter_config.CONFIG}: use_cayley_neumann: the series was another one "
            "before PEFT 0.18, by which this adapter may have been trained; compare "
            "its answers, or merge it there"
        )
    if config.get("coft"):
        raise InputError(
            f"{adapter_config.CONFIG}: coft: found true, which is not handled; merge "
            "the adapter into its model with PEFT's merge_and_unload instead"
        )
    entries, blocks = stacks["skew"].shape[-2:]
    size, d_in = size_of(entries), base.shape[-2]
    if d_in % size or blocks != (1 if said["block_share"] else d_in // size):
        raise InputError(
            f"{adapter_config.WEIGHTS}: {name!r} has {blocks} blocks of {size}, which "
            f"do not make up its {d_in} inputs: the adapter was made for another base; "
            "set model.path to that"
        )
    return OFT(base, stacks["skew"], scale, **said)


def _settings(nodes: Mapping[str, Any], _: Set[str]) -> dict[str, Any]:
    node = next(iter(nodes.values()))
    said = {key: getattr(node, key) for key in SETTINGS}
    # PEFT asks for its version, since its series was another one before.
    fixed = {"coft": False, "module_dropout": 0.0, "peft_version": "0.18.0"}
    return {**said, **fixed, "bias": "none"}


def _is_before_018(version: Any) -> bool:
    """Whether PEFT was older than 0.18, or did not say its version, as before that."""
    numbers = re.match(r"(\d+)\.(\d+)", version if isinstance(version, str) else "")
    return numbers is None or (int(numbers[1]), int(numbers[2])) < (0, 18)


FORM = Form("OFT", {"skew": "oft_R.weight"}, _settings, _build)
