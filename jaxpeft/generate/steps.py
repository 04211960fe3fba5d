"""Answers token by token: prompts are read into a cache, then steps are taken."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpeft.models import ModelConfig, start_cache
from jaxpeft.models.cache import Cache, decode
from jaxpeft.models.sampling import Warpers, choose


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


def stop_array(stop: Sequence[int]) -> np.ndarray:
    """The stop tokens as `advance` takes them; -1, which is no token, for none."""
    return np.array(list(stop) or [-1], np.int32)


@functools.partial(jax.jit, static_argnames=("cfg", "slots", "remember"))
def start(
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

    Args:
        params: of the whole model, adapters in.
        tokens: (batch, width) int32, the prompts padded on the left.
        valid: (batch, width) bool, false at padding.
        requests: (batch,) int32, see `sampling.choose`.
        cfg: the model's hyperparameters.
        slots: tokens of a row that the cache has room for.
        remember: whether the tokens of each row are wanted in `State.seen`.
    """
    batch, positions = len(tokens), positions_of(valid)
    lengths = positions[:, -1] + 1
    _, cache = decode(
        params,
        tokens[:, :-1],
        cfg,
        empty_cache(params, cfg, batch, slots, lengths),
        positions=positions[:, :-1],
        valid=valid[:, :-1],
        last_only=True,
        lengths=lengths,
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


def positions_of(valid: Array) -> Array:
    """The positions of tokens that are padded on the left.

    Args:
        valid: (batch, width) bool, false at padding.

    Returns:
        (batch, width) int32; 0 at padding.
    """
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)


def empty_cache(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    batch: int,
    slots: int,
    lengths: Array | None = None,
) -> Cache:
    """An empty cache in the dtype that the model's activations have.

    Args:
        params: of the whole model.
        cfg: its hyperparameters.
        batch: rows.
        slots: tokens of a row that it has room for.
        lengths: (batch,) int32, how many tokens each row will have, see `decode`.
    """
    dtype = cfg.activation_dtype or params["model"]["embed_tokens"]["embedding"].dtype
    return start_cache(params, cfg, batch, slots, dtype, lengths)


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
    until: Array | None = None,
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
        until: () int32, to end after so many tokens; None: after all.
        cfg: the model's hyperparameters.
        steps: how many tokens.

    Returns:
        (state, tokens (batch, steps) int32), which are -1 from a row's stop token on.
    """
    batch, end = len(state.token), steps if until is None else until

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
        return (step < end) & ~jnp.all(state.done)

    answers = jnp.full((batch, steps), -1, jnp.int32)
    start = (jnp.int32(0), state, answers)
    _, state, answers = jax.lax.while_loop(unfinished, body, start)
    return state, answers
