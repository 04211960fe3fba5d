"""Greedy and sampled generation with a cache of keys and values."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig, start_cache
from jaxpeft.models.sampling import Sampling, Warpers, choose
from jaxpeft.models.transformer import Cache, decode

PROMPT_MULTIPLE = 32  # prompts are padded to multiples, so that few lengths compile
GREEDY = Sampling()


@struct.dataclass
class State:
    """The state of the answers of a batch, between two tokens.

    Attributes:
        cache: of all tokens but the newest.
        token: (batch,) int32, the newest tokens.
        position: (batch,) int32, their places.
        done: (batch,) bool, which rows have met a stop token.
        count: () int32, the steps made.
        requests: (batch,) int32, see `sampling.choose`.
        seen: (batch, vocab) bool, the tokens in each row; None where nobody asks.
    """

    cache: Cache
    token: Array
    position: Array
    done: Array
    count: Array
    requests: Array
    seen: Array | None


def generate(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    sampling: Sampling = GREEDY,
    first_request: int = 0,
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

    Raises:
        InputError: as `check` does.
    """
    check(cfg, prompts, max_new_tokens, sampling)
    longest = max(map(len, prompts))
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = np.zeros((len(prompts), width), np.int32)
    valid = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):  # to the right: the answers start together
        tokens[row, width - len(prompt) :] = prompt
        valid[row, width - len(prompt) :] = True
    warpers = sampling.warpers()
    state = _start(
        params,
        tokens,
        valid,
        first_request + np.arange(len(prompts), dtype=np.int32),
        cfg=cfg,
        slots=width + max_new_tokens,
        remember=warpers.repetition_penalty is not None,
    )
    _, answers = advance(
        params, state, stop_array(stop), warpers, cfg=cfg, steps=max_new_tokens
    )
    return [[t for t in row if t >= 0] for row in tree.to_host(answers).tolist()]


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
    room = cfg.max_position_embeddings - max_new_tokens
    for place, prompt in zip(places or ["prompt"] * len(prompts), prompts):
        if not len(prompt):
            problems.append(f"{place}: it is empty; give at least one token")
        elif len(prompt) > room:
            problems.append(
                f"{place}: {len(prompt)} tokens and max-new-tokens {max_new_tokens} "
                f"exceed the model's context of {cfg.max_position_embeddings}; "
                "shorten either"
            )
    if problems:
        raise InputError(*problems)


def stop_array(stop: Sequence[int]) -> np.ndarray:
    """The stop tokens as `advance` takes them; -1, which is no token, for none."""
    return np.array(list(stop) or [-1], np.int32)


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "remember"))
def _start(
    params: Mapping[str, Any],
    tokens: Array,
    valid: Array,
    requests: Array,
    *,
    cfg: ModelConfig,
    slots: int,
    remember: bool,
) -> State:
    """The state before the first answered token.

    tokens, valid: (batch, width), the prompts padded on the left. slots: the cache's.
    """
    batch = len(tokens)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    _, cache = decode(
        params,
        tokens[:, :-1],
        cfg,
        empty_cache(params, cfg, batch, slots),
        positions=positions[:, :-1],
        valid=valid[:, :-1],
        last_only=True,
    )
    return State(
        cache=cache,
        token=tokens[:, -1],
        position=positions[:, -1],
        done=jnp.zeros((batch,), bool),
        count=jnp.int32(0),
        requests=requests,
        seen=seen_in(tokens, valid, cfg) if remember else None,
    )


def empty_cache(
    params: Mapping[str, Any], cfg: ModelConfig, batch: int, slots: int
) -> Cache:
    """An empty cache in the dtype that the model's activations have.

    Args:
        params: of the whole model.
        cfg: its hyperparameters.
        batch: rows.
        slots: tokens of a row that it has room for.
    """
    dtype = cfg.activation_dtype or params["model"]["embed_tokens"]["embedding"].dtype
    return start_cache(params, cfg, batch, slots, dtype)


def seen_in(tokens: Array, valid: Array, cfg: ModelConfig) -> Array:
    """The tokens that each row holds; those not valid do not count.

    Args:
        tokens: (batch, width) int32.
        valid: (batch, width) bool.
        cfg: the model's hyperparameters.

    Returns:
        (batch, vocab) bool.
    """
    seen = jnp.zeros((len(tokens), cfg.vocab_size), bool)
    return seen.at[jnp.arange(len(tokens))[:, None], tokens].max(valid)


@functools.partial(
    jax.jit, static_argnames=("cfg", "steps"), donate_argnames=("state",)
)
def advance(
    params: Mapping[str, Any],
    state: State,
    stop: Array,
    warpers: Warpers,
    *,
    cfg: ModelConfig,
    steps: int,
) -> tuple[State, Array]:
    """The state some tokens later, and these tokens.

    When all rows have met their stop tokens nothing is computed any more.

    Args:
        params: of the whole model, adapters in.
        state: no longer usable afterwards.
        stop: int32, see `stop_array`.
        warpers: how tokens are drawn.
        cfg: the model's hyperparameters.
        steps: how many tokens.

    Returns:
        (state, tokens (batch, steps) int32), which are -1 from a row's stop token on.
    """
    batch = len(state.token)

    def body(carry: tuple[Array, State, Array]) -> tuple[Array, State, Array]:
        step, state, answers = carry
        logits, cache = decode(
            params,
            state.token[:, None],
            cfg,
            state.cache,
            positions=state.position[:, None],
            valid=jnp.ones((batch, 1), bool),
            last_only=True,
        )
        token = choose(logits[:, 0], state.seen, warpers, state.requests, state.count)
        done = state.done | jnp.any(token[:, None] == stop[None, :], axis=-1)
        answers = answers.at[:, step].set(jnp.where(done, -1, token))
        seen = state.seen
        if seen is not None:
            seen = seen.at[jnp.arange(batch), token].set(True)
        state = dataclasses.replace(
            state,
            cache=cache,
            token=token,
            position=state.position + 1,
            done=done,
            count=state.count + 1,
            seen=seen,
        )
        return step + 1, state, answers

    def unfinished(carry: tuple[Array, State, Array]) -> Array:
        step, state, _ = carry
        return (step < steps) & ~jnp.all(state.done)

    answers = jnp.full((batch, steps), -1, jnp.int32)
    start = (jnp.int32(0), state, answers)
    _, state, answers = jax.lax.while_loop(unfinished, body, start)
    return state, answers
