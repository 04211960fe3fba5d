"""The head of scores in an adapter's folder, as PEFT has it for classifiers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxpeft.errors import InputError
from jaxpeft.hf.peft import adapter_config
from jaxpeft.hf.peft.folder import opened
from jaxpeft.hf.peft.modules import PREFIX
from jaxpeft.models.scores import SCORE
from jaxpeft.models.spec import ModelConfig

SCORE_KEY = f"{PREFIX}{SCORE}.weight"


def adapter_labels(directory: str | Path) -> int | None:
    """How many scores a sequence gets by an adapter; None: it has no such head.

    Args:
        directory: The adapter's folder.

    Raises:
        InputError: Where it is damaged.
    """
    directory = Path(directory)
    if adapter_config.content(directory).get("task_type") != adapter_config.SCORES:
        return None
    file = opened(directory)
    if SCORE_KEY not in file.tensors:
        raise InputError(
            f"{file.path}: {SCORE_KEY!r} is missing, though {adapter_config.CONFIG} "
            f"says task_type {adapter_config.SCORES}; save the adapter with its head "
            "(modules_to_save: [score])"
        )
    return file.tensors[SCORE_KEY].shape[0]


def with_score(
    params: Mapping[str, Any], directory: Path, cfg: ModelConfig
) -> Mapping[str, Any]:
    """The params with a place for the head of scores that the adapter holds.

    Args:
        params: The model's.
        directory: The adapter's folder.
        cfg: The hyperparameters, which say how many labels there are.

    Raises:
        InputError: Where the adapter has another number of labels.
    """
    if not cfg.num_labels or SCORE in params:
        return params
    count = adapter_labels(directory)
    if count != cfg.num_labels:
        own = "no head of scores" if count is None else f"{count} labels"
        raise InputError(
            f"{directory}: the adapter has {own}, and the model {cfg.num_labels}; use "
            "the adapter of a run with the same objective and labels"
        )
    zeros = jnp.zeros((cfg.hidden_size, cfg.num_labels))
    return {**params, SCORE: {"kernel": zeros}}
