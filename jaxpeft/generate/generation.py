"""Greedy and sampled generation with a cache of keys and values."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.generate import crossing
from jaxpeft.generate.steps import start, stop_array
from jaxpeft.models import ModelConfig
from jaxpeft.models.sampling import Sampling

PROMPT_MULTIPLE = 32  # prompts are padded to multiples, so that few lengths compile
GREEDY = Sampling()


def generate(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    sampling: Sampling = GREEDY,
    first_request: int = 0,
    ended: Callable[[list[int]], bool] | None = None,
    width: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> list[list[int]]:
    """The tokens that continue each prompt, without the one that stopped it.

    Args:
        params: of the whole model, adapters in.
        cfg: the model's hyperparameters.
        prompts: token ids, of any lengths.
        max_new_tokens: the most tokens of an answer.
        stop: ids that end an answer.
        sampling: how tokens are drawn.
        first_request: the number of the first prompt among those of several calls: what
            is drawn for a request depends on the seed and its number, not on the batch
            that it is in.
        ended: whether the tokens of an answer so far end it; asked every few tokens, so
            that an answer may be longer.
        width: tokens that prompts are padded to, so that those of several calls are
            read by one program; None: see `padded`.
        mesh: the devices that the batch is split over, as the weights are; None: none.

    Raises:
        InputError: as `check` does.
    """
    check(cfg, prompts, max_new_tokens, sampling)
    width = width or padded(max(map(len, prompts)))
    tokens = np.zeros((len(prompts), width), np.int32)
    valid = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):  # to the right: the answers start together
        tokens[row, width - len(prompt) :] = prompt
        valid[row, width - len(prompt) :] = True
    warpers = sampling.warpers()
    batch: Mapping[str, Any] = {"tokens": tokens, "valid": valid}
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        batch = batch if mesh is None else sharding.put_batch(batch, mesh)
        state = start(
            params,
            batch["tokens"],
            batch["valid"],
            first_request + np.arange(len(prompts), dtype=np.int32),
            cfg=cfg,
            slots=width + max_new_tokens,
            remember=warpers.repetition_penalty is not None,
        )
        answers = crossing.answers(
            params,
            state,
            prompts,
            stop_array(stop),
            warpers,
            cfg=cfg,
            steps=max_new_tokens,
            ended=ended,
        )
    return [[t for t in row if t >= 0] for row in answers.tolist()]


def padded(longest: int) -> int:
    """The tokens that prompts are padded to, of which few numbers occur.

    Args:
        longest: tokens of the longest prompt.
    """
    return -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE


def check(
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    places: Sequence[str] | None = None,
) -> None:
    """Checks that prompts can be answered with these settings.

    Args:
        cfg: the model's hyperparameters.
        prompts: token ids.
        max_new_tokens: the most tokens of an answer.
        sampling: how tokens are drawn.
        places: what each prompt is called in messages, by default "prompt".

    Raises:
        InputError: for settings out of range, for empty prompts, and for ones that
            leave no room in the model's context.
    """
    problems = [] if prompts else ["prompt: it is empty; give at least one token"]
    if max_new_tokens < 1:
        problems.append(f"max-new-tokens: found {max_new_tokens}; it must be 1 or more")
    problems += sampling.problems()
    room = cfg.context - max_new_tokens
    for place, prompt in zip(places or ["prompt"] * len(prompts), prompts):
        if not len(prompt):
            problems.append(f"{place}: it is empty; give at least one token")
        elif len(prompt) > room:
            problems.append(
                f"{place}: {len(prompt)} tokens and max-new-tokens {max_new_tokens} "
                f"exceed the model's context of {cfg.context}; "
                "shorten either"
            )
    if problems:
        raise InputError(*problems)
