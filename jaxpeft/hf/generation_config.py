"""A model's own generation_config.json: where answers end, and how they are drawn."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.data.render import end_of_turn
from jaxpeft.errors import InputError
from jaxpeft.models.sampling import Sampling

NAME = "generation_config.json"
# What would choose other tokens and is not handled, and the values that say nothing.
UNHANDLED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "min_p": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "top_h": (None,),
    "typical_p": (None, 1),
}


def stop_ids(directory: str | Path, tokenizer: Any, *, turns: bool = True) -> list[int]:
    """The tokens that end an answer, ascending.

    They are all of the generation config's `eos_token_id`, the tokenizer's eos, and
    what the chat template writes after an assistant's turn: base models often name
    another token, and one that was fine-tuned would never stop.

    Args:
        directory: The model's folder.
        tokenizer: The model's tokenizer, of transformers.
        turns: Whether an answer is a turn of a chat, which its template ends.

    Raises:
        InputError: Where the generation config is no JSON object.
    """
    stored = _content(directory).get("eos_token_id")
    ids = stored if isinstance(stored, list) else [stored]
    ids = [*ids, tokenizer.eos_token_id, end_of_turn(tokenizer) if turns else None]
    return sorted({i for i in ids if type(i) is int})


def sampling(
    directory: str | Path,
    remedy: str = "leave out --generation-config and give the settings themselves",
) -> Sampling:
    """How a model's generation config says that tokens are drawn.

    It is read as by transformers: without `do_sample` decoding is greedy, and
    temperature 1 and top_k 50 hold where it says nothing.

    Args:
        directory: The model's folder.
        remedy: What helps against a field that is not handled.

    Raises:
        InputError: For fields that are damaged, or that would choose other tokens than
            can be chosen here.
    """
    content, path = _content(directory), Path(directory) / NAME
    problems = [
        f"{path}: {name}: found {content[name]!r}, which is not handled; {remedy}"
        for name, neutral in UNHANDLED.items()
        if content.get(name) not in neutral
    ]
    settings: dict[str, Any] = {}
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    for name, default in usual.items():
        value = content.get(name)
        settings[name] = default if value is None else value
        if not _is_number(settings[name]) or (name == "top_k" and settings[name] % 1):
            problems.append(f"{path}: {name}: found {value!r}, which is no number")
    if content.get("do_sample") not in (None, True, False):
        value = content["do_sample"]
        problems.append(f"{path}: do_sample: found {value!r}; write true or false")
    if problems:
        raise InputError(*problems)
    settings["top_k"] = int(settings["top_k"])
    if not content.get("do_sample"):
        return Sampling(repetition_penalty=settings["repetition_penalty"])
    return Sampling(**settings)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _content(directory: str | Path) -> Mapping[str, Any]:
    """The object in the file; an empty one where there is no file."""
    path = Path(directory) / NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); copy the model's own again, "
            "or remove it"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: found {type(content).__name__}, expected an object; copy the "
            "model's own again, or remove it"
        )
    return content
