"""The wording of configuration errors: what was found, and what is wanted."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from jaxpeft.errors import suggest

# Our key: what transformers, peft, trl, LLaMA-Factory and axolotl call it.
_NAMES_ELSEWHERE = {
    "model.path": "model_name_or_path model_name base_model pretrained_model",
    "model.dtype": "torch_dtype bf16 fp16 precision mixed_precision",
    "model.quantization": "quantization_bit load_in_4bit load_in_8bit",
    "model.remat": "gradient_checkpointing",
    "adapter.method": "finetuning_type peft_type use_dora adapter_type",
    "adapter.r": "lora_r lora_rank rank",
    "adapter.lora_alpha": "alpha",
    "adapter.lora_dropout": "dropout",
    "adapter.target_modules": "lora_target lora_target_modules",
    "adapter.init_from": "adapter_name_or_path lora_model_dir",
    "data.train": "dataset datasets dataset_dir train_file train_dataset data_path",
    "data.eval": "eval_dataset eval_file validation_file",
    "data.eval_split": "val_size val_set_size test_size validation_split",
    "data.train.fields": "columns",
    "data.max_length": "cutoff_len max_seq_length max_seq_len sequence_len",
    "data.packing": "sample_packing",
    "data.train_on": "train_on_prompt train_on_inputs",
    "data.eval_batch_size": "per_device_eval_batch_size",
    "optimizer.name": "optim",
    "optimizer.learning_rate": "lr",
    "optimizer.b1": "adam_beta1 beta1 betas",
    "optimizer.b2": "adam_beta2 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.max_grad_norm": "gradient_clipping clip_grad_norm",
    "schedule.name": "lr_scheduler_type lr_scheduler scheduler",
    "schedule.warmup_steps": "num_warmup_steps",
    "training.num_epochs": "num_train_epochs epochs",
    "training.max_steps": "total_steps num_steps",
    "training.batch_size": "per_device_train_batch_size train_batch_size "
    "micro_batch_size",
    "training.gradient_accumulation_steps": "accumulation_steps",
    "training.early_stopping_patience": "early_stopping_steps patience",
}
NAMES_ELSEWHERE = {
    name: key for key, names in _NAMES_ELSEWHERE.items() for name in names.split()
}

_WANTED = {
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be finite",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "dict_type": "must be a mapping, such as {{key: value}}",
    "model_type": "must be a mapping, such as {{key: value}}",
    "tuple_type": "must be a mapping, such as {{key: value}}, or a list of them",
}


def shown(value: Any) -> str:
    """The value as a person would write it in YAML, cut to 60 characters."""
    text = repr(value) if isinstance(value, str) else None
    if value is None or isinstance(value, bool):
        text = json.dumps(value)
    text = text or str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def wanted(error: ErrorDetails) -> str:
    """The words for what a value must be, such as "must be at least 1".

    Args:
        error: pydantic's account of why the value is refused.
    """
    kind, value = error["type"], error["input"]
    context = {k: str(v).removesuffix(".0") for k, v in error.get("ctx", {}).items()}
    # Pydantic's own words for the rarer kinds.
    default = error["msg"].replace("Input should be", "must be")
    text = _WANTED[kind].format(**context) if kind in _WANTED else default
    if kind in ("int_type", "float_type") and _is_quoted_number(value):
        text += ", written without quotes"
    if error["loc"][-1:] == ("learning_rate",) and kind == "float_type":
        text += ", such as 2e-4, or auto"
    if kind == "literal_error" and isinstance(value, str):
        choices = context["expected"].replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(value, [c.strip("'") for c in choices], n=1)
        text += suggest(value, near)
    return text


def _is_quoted_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def meant(section: str, key: str, keys: Mapping[str, Iterable[str]]) -> str:
    """The tail of the message about an unknown key: what stands for it, and where.

    Args:
        section: where the key was found; "" is the top.
        key: the key.
        keys: the known keys of each section.
    """
    places = {
        f"{place}.{known}": known for place in keys if place for known in keys[place]
    }
    elsewhere = [place for place, known in places.items() if known == key]
    if key in NAMES_ELSEWHERE:
        elsewhere = [NAMES_ELSEWHERE[key]]
    own = list(keys.get(section, ()))
    if not elsewhere and not difflib.get_close_matches(key, own):
        near = difflib.get_close_matches(key, places.values(), n=1, cutoff=0.75)
        elsewhere = [place for place, known in places.items() if known in near]
    if elsewhere:
        return "; did you mean " + " or ".join(map(repr, elsewhere)) + "?"
    return suggest(key, own)
