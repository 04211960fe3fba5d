"""DeepSpeed and FSDP as a mesh."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.convert_config import files
from jaxpeft.convert_config.draft import Draft

SPREAD = "the mesh says how devices share the work"


def spread(draft: Draft) -> None:
    """Sets the mesh by DeepSpeed and FSDP: what of the model is split over devices."""
    deepspeed, fsdp = draft.take("deepspeed"), draft.take("fsdp")
    draft.skip("fsdp_config", SPREAD)
    if deepspeed:
        _deepspeed(draft, deepspeed)
    elif fsdp and "no_shard" not in str(fsdp):
        _split(draft, "fsdp here")
        if "offload" in str(fsdp):
            draft.lack("fsdp: offload", _OFFLOAD)


_OFFLOAD = (
    "set optimizer.offload: true for the state, model.offload: activations for what "
    "layers keep, or weights for a frozen base, if `plan` says that it does not fit "
    "without"
)


def _deepspeed(draft: Draft, config: Any) -> None:
    """Sets the mesh by the stage in its content, or in its name (ds_z3_config.json)."""
    content = config if isinstance(config, Mapping) else files.json_object(str(config))
    if content is None:
        name = Path(str(config)).name.lower()
        match = _STAGE.search(name)
        stage = int(match[1]) if match else None
        offload, tensors = "offload" in name, "autotp" in name
    else:
        zero = files.inner(content, "zero_optimization")
        stage = zero.get("stage", 0)
        parts = [
            files.inner(zero, f"offload_{part}") for part in ("optimizer", "param")
        ]
        devices = [part.get("device", "cpu") for part in parts if part]
        offload = any(device not in ("none", None) for device in devices)
        offload = offload or zero.get("cpu_offload") is True
        tensors = "tensor_parallel" in content
    if stage in (1, 2):
        _split(
            draft, f"ZeRO {stage} splits state and gradients alone; here weights too"
        )
    elif stage == 3:
        _split(draft, "ZeRO 3 here")
    elif stage == 0:
        draft.skip("deepspeed", "weights are whole on every device, as is usual here")
    else:
        draft.lack("deepspeed", _NO_STAGE)
    if offload:
        draft.lack("deepspeed: offload", _OFFLOAD)
    if tensors:
        draft.lack("deepspeed: autotp", "split each layer with mesh.tensor: N")


# In the names of files: ds_z3_config.json, zero2.json, stage-1.json.
_STAGE = re.compile(r"(?:\bz|_z|zero|stage)[_-]?(?:stage[_-]?)?([0-3])(?!\d)")
_NO_STAGE = (
    "its stage is not known; if the weights are to be split over the devices, give "
    "mesh: {data: 1, fsdp: -1}"
)


def _split(draft: Draft, remark: str) -> None:
    draft.set("mesh.data", 1)
    draft.set("mesh.fsdp", -1, remark)
