"""From transformers' TrainingArguments as JSON, and PEFT's config beside them."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.convert import peft_config, trainer
from jaxpeft.convert.draft import Draft

MODEL, DATA = "MODEL", "train.json"


def from_training_arguments(
    keys: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
    *,
    devices: int = 1,
    model: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
) -> Draft:
    """What `TrainingArguments.to_json_string()` says, in our keys.

    adapter: the content of PEFT's adapter_config.json; None: the whole model trains, as
    the Trainer does with a plain model. devices: over how many the batch was spread.
    model, data, eval_data: paths, which the Trainer is handed in Python and its
    arguments do not know. Raises InputError, all problems at once, for what cannot be
    trained here.
    """
    draft = Draft(keys)
    if adapter is None:
        draft.set("adapter.method", "full", "no --peft was given")
        base = None
    else:
        base = peft_config.translate(draft, adapter)
    if model or base:
        draft.set("model.path", model or base)
    else:
        draft.set("model.path", MODEL, "TODO: a local folder or a hub id")
        draft.lack("model", "is no training argument; give --model, or model.path")
    _precision(draft)
    if data:
        draft.set("data.train", {"path": data})
    else:
        remark = "TODO: your file, and its format if it is not alpaca"
        draft.set("data.train", {"path": DATA}, remark)
        draft.lack(
            "train_dataset", "is no training argument; give --data, or data.train"
        )
    if eval_data:
        draft.set("data.eval", {"path": eval_data})
    trainer.translate(draft, devices)
    draft.apply(trainer.ROWS)
    return draft


def _precision(draft: Draft) -> None:
    half, brain = draft.flag("fp16"), draft.flag("bf16")
    if half and not brain:
        draft.set("model.dtype", "float16", "no loss scaling; bfloat16 is safer")
    elif brain:
        draft.set("model.dtype", "bfloat16")
    else:
        remark = "that of the model there, which its arguments do not say"
        draft.set("model.dtype", "bfloat16", remark)
    checkpointing = [
        draft.flag(f"{kind}_checkpointing") for kind in ("gradient", "activation")
    ]
    if any(checkpointing):
        draft.set("model.remat", "full")
