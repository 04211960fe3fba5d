"""One sequence that grows answer by answer, its keys and values kept in between."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft.generate.generation import check
from jaxpeft.generate.steps import State, advance, empty_cache, stop_array
from jaxpeft.models import ModelConfig, rope
from jaxpeft.models.cache import Cache, decode
from jaxpeft.models.past import virtual_count
from jaxpeft.models.sampling import Sampling

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
        self._kind = 0  # of angles that they have
        virtual = virtual_count(params["model"])
        self._ends = tuple(end - virtual for end in rope.switches(cfg))
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
        state = self._start(prompt, max_new_tokens, request)
        state, token = self._step(state)
        self._tokens = list(prompt)
        for left in reversed(range(max_new_tokens)):
            before = token
            if left and self._crosses(len(self._tokens) + 1):
                state = self._read_anew(state, int(before[0, 0]), left)
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

    def _crosses(self, length: int) -> bool:
        """Whether a sequence of so many tokens has other angles than the cache."""
        return self._kind != self._kind_of(length)

    def _kind_of(self, length: int) -> int:
        """Which of the model's sets of angles a sequence of so many tokens has."""
        return sum(length > end for end in self._ends)

    def _read(self, sequence: list[int], room: int) -> Cache:
        """The cache brought to all tokens but the last, with room for some more."""
        if self._crosses(len(sequence)):
            self._cache = None  # no key of it has the angles of this length
        if self._cache is None:
            self._tokens = []
        self._kind = self._kind_of(len(sequence))
        start = _shared(self._tokens, sequence[:-1])
        new = sequence[start:-1]
        width = _power_of_two(max(len(new), LEAST_READ))
        lengths = jnp.array([len(sequence)], jnp.int32)
        needed = max(start + width, len(sequence) + room)
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(new)] = new
        cache, self._cache = self._room(needed, lengths), None
        cache = _extend(
            self._params,
            cache,
            tokens,
            np.int32(start),
            np.int32(len(new)),
            lengths,
            cfg=self._cfg,
        )
        self._tokens, self._cache = sequence[:-1], cache
        return cache

    def _read_anew(self, state: State, newest: int, room: int) -> State:
        """The state with all keys as the sequence with its newest token has them."""
        if newest < 0:  # it has ended
            return state
        cache = self._read([*self._tokens, newest], room)
        return dataclasses.replace(state, cache=cache)

    def _start(self, prompt: list[int], max_new_tokens: int, request: int) -> State:
        """The state before the first token."""
        if self._cache is None or self._crosses(len(prompt)):
            self._tokens = []
        self.reused = _shared(self._tokens, prompt[:-1])
        cache, seen = self._read(prompt, max_new_tokens), None
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

    def _room(self, needed: int, lengths: Array) -> Cache:
        """The cache with at least `needed` slots, begun for rows of these lengths."""
        slots = _power_of_two(max(needed, LEAST_SLOTS))
        cache = self._cache
        if cache is None:
            return empty_cache(self._params, self._cfg, 1, slots, lengths)
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
    lengths: Array,
    *,
    cfg: ModelConfig,
) -> Cache:
    """The cache with `start` tokens kept and `count` of `tokens` (1, width) after them.

    lengths: (1,), of the sequence with the token that is read next.

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
        lengths=lengths,
    )
    return dataclasses.replace(cache, length=first + count)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with in common."""
    pairs = enumerate(zip(one, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
