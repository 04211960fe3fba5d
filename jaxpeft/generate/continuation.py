"""One sequence that grows answer by answer, its keys and values kept in between."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft.generate.generation import State, advance, check, empty_cache, stop_array
from jaxpeft.models import ModelConfig
from jaxpeft.models.sampling import Sampling
from jaxpeft.models.transformer import Cache, decode, virtual_count

# Sizes are powers of two from these on, so that few of them compile.
LEAST_READ, LEAST_SLOTS = 32, 256


class Continuation:
    """A sequence that answers prompts one after another, token by token.

    Of a prompt that begins as the sequence before it (an earlier prompt and its answer)
    only the rest is read. The cache starts small and doubles when a longer sequence
    needs it.

    Args:
        params: of the whole model, adapters in.
        cfg: the model's hyperparameters.
        stop: ids that end an answer.
        sampling: how tokens are drawn.

    Attributes:
        reused: how many tokens of the last prompt were there already.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        cfg: ModelConfig,
        stop: Sequence[int],
        sampling: Sampling,
    ):
        self._params, self._cfg, self._sampling = params, cfg, sampling
        self._stop, self._warpers = stop_array(stop), sampling.warpers()
        self._cache: Cache | None = None
        self._tokens: list[int] = []  # whose keys and values the cache holds
        self.reused = 0

    def answer(
        self, prompt: Sequence[int], max_new_tokens: int, request: int = 0
    ) -> Iterator[int]:
        """The tokens that continue a prompt, without the one that stopped them.

        They are `generate`'s for the request of that number. The iterator may be left
        before its end, but not used once the next answer has begun.

        Args:
            prompt: token ids.
            max_new_tokens: the most tokens of the answer.
            request: its number, on which what is drawn depends.

        Raises:
            InputError: as `generation.check` does.
        """
        check(self._cfg, [prompt], max_new_tokens, self._sampling)
        return self._answer(list(prompt), max_new_tokens, request)

    def _answer(
        self, prompt: list[int], max_new_tokens: int, request: int
    ) -> Iterator[int]:
        state = self._read(prompt, max_new_tokens, request)
        state, token = self._step(state)
        self._tokens = list(prompt)
        for left in reversed(range(max_new_tokens)):
            before = token
            if left:  # under way while the token before it is looked at
                state, token = self._step(state)
            if (token_id := int(before[0, 0])) < 0:
                return
            if left:
                self._tokens.append(token_id)
            yield token_id

    def _step(self, state: State) -> tuple[State, Array]:
        self._cache = None  # given away, should anything interrupt here
        state, token = advance(
            self._params, state, self._stop, self._warpers, cfg=self._cfg, steps=1
        )
        self._cache = state.cache
        return state, token

    def _read(self, prompt: list[int], max_new_tokens: int, request: int) -> State:
        """The state before the first token, the cache brought to `prompt[:-1]`."""
        if self._cache is None:
            self._tokens = []
        start = _shared(self._tokens, prompt[:-1])
        new = prompt[start:-1]
        width = _power_of_two(max(len(new), LEAST_READ))
        needed = max(start + width, len(prompt) + max_new_tokens)
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(new)] = new
        cache, self._cache = self._room(needed), None
        cache = _extend(
            self._params,
            cache,
            tokens,
            np.int32(start),
            np.int32(len(new)),
            cfg=self._cfg,
        )
        self.reused, self._tokens, self._cache = start, prompt[:-1], cache
        seen = None
        if self._warpers.repetition_penalty is not None:
            seen = np.zeros((1, self._cfg.vocab_size), bool)
            seen[0, prompt] = True
        return State(
            cache=cache,
            token=jnp.array(prompt[-1:], jnp.int32),
            position=jnp.array([len(prompt) - 1], jnp.int32),
            done=jnp.zeros((1,), bool),
            count=jnp.int32(0),
            requests=jnp.array([request], jnp.int32),
            seen=None if seen is None else jnp.asarray(seen),
        )

    def _room(self, needed: int) -> Cache:
        """The cache with at least `needed` slots."""
        slots = _power_of_two(max(needed, LEAST_SLOTS))
        cache = self._cache
        if cache is None:
            return empty_cache(self._params, self._cfg, 1, slots)
        more = slots + virtual_count(self._params["model"]) - cache.valid.shape[1]
        if more <= 0:
            return cache
        wider = ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))
        return dataclasses.replace(
            cache,
            k=jnp.pad(cache.k, wider),
            v=jnp.pad(cache.v, wider),
            valid=jnp.pad(cache.valid, ((0, 0), (0, more))),
        )


@functools.partial(jax.jit, static_argnames=("cfg",), donate_argnames=("cache",))
def _extend(
    params: Mapping[str, Any],
    cache: Cache,
    tokens: Array,
    start: Array,
    count: Array,
    *,
    cfg: ModelConfig,
) -> Cache:
    """The cache with `start` tokens kept and `count` of `tokens` (1, width) after them.

    What stood in later slots, and the padding that is written there, is never seen: a
    token sees no slot after its own, and the next ones overwrite them.
    """
    offsets = jnp.arange(tokens.shape[1])
    first = virtual_count(params["model"]) + start
    _, cache = decode(
        params,
        tokens,
        cfg,
        dataclasses.replace(cache, length=first),
        positions=(start + offsets)[None],
        valid=(offsets < count)[None],
        last_only=True,
    )
    return dataclasses.replace(cache, length=first + count)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with in common."""
    pairs = enumerate(zip(one, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
