"""Answers to a batch, also where sequences outgrow the length that their angles suit.

With LongRoPE, all keys of a sequence have the angles of its length. One that gets
longer than the original context is therefore read anew, once, as transformers does for
Phi-3: row by row, so that each answer is that of its prompt alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxpeft import adapters, tree
from jaxpeft.generate.steps import State, advance, empty_cache, positions_of
from jaxpeft.models import ModelConfig, rope
from jaxpeft.models.cache import Cache, decode
from jaxpeft.models.past import virtual_count
from jaxpeft.models.sampling import Warpers

PART = 16  # tokens between two looks at whether a text has ended


def answers(
    params: Mapping[str, Any],
    state: State,
    prompts: Sequence[Sequence[int]],
    stop: np.ndarray,
    warpers: Warpers,
    *,
    cfg: ModelConfig,
    steps: int,
    ended: Callable[[list[int]], bool] | None = None,
) -> np.ndarray:
    """The tokens that continue the prompts of a batch.

    Args:
        params: of the whole model, adapters in.
        state: what `steps.start` gave; no longer usable afterwards.
        prompts: token ids of each row.
        stop: int32, see `steps.stop_array`.
        warpers: how tokens are drawn.
        cfg: the model's hyperparameters.
        steps: how many tokens.
        ended: whether the tokens of an answer so far end it; asked every `PART` tokens.

    Returns:
        (batch, steps) int32, -1 from a row's stop token on.
    """
    count = virtual_count(params["model"])
    lengths = [len(prompt) + count for prompt in prompts]
    crossed = crossings(cfg, lengths, steps)
    if not crossed and ended is None:
        _, found = advance(params, state, stop, warpers, cfg=cfg, steps=steps)
        return tree.to_host(found)
    found = np.full((len(prompts), steps), -1, np.int32)
    at = 0
    looks = () if ended is None else range(PART, steps, PART)
    for until in sorted({*crossed, *looks, steps}):
        more = np.int32(until - at)
        state, new = advance(params, state, stop, warpers, more, cfg=cfg, steps=steps)
        found[:, at:until] = tree.to_host(new)[:, :more]
        at = until
        for row in crossed.get(at, ()):
            if found[row, at - 1] >= 0:  # else it has ended
                sequence = [*prompts[row], *found[row, :at].tolist()]
                state = _read_anew(params, state, row, sequence, cfg)
        if ended is not None:
            done = [ended([t for t in row if t >= 0]) for row in found[:, :at].tolist()]
            state = dataclasses.replace(state, done=state.done | np.array(done))
            if tree.to_host(state.done).all():
                break
    return found


def crossings(
    cfg: ModelConfig, lengths: Sequence[int], steps: int
) -> dict[int, list[int]]:
    """When sequences get longer than one of the model's `rope.switches`.

    Args:
        cfg: the model's hyperparameters.
        lengths: of the prompts, virtual tokens counted.
        steps: the most tokens of an answer.

    Returns:
        {after so many answered tokens, ascending: which rows}, without the last step,
        whose token nothing reads.
    """
    found: dict[int, list[int]] = {}
    for end in rope.switches(cfg):
        for row, length in enumerate(lengths):
            if 0 < end + 1 - length < steps:
                found.setdefault(end + 1 - length, []).append(row)
    return dict(sorted(found.items()))


def _read_anew(
    params: Mapping[str, Any],
    state: State,
    row: int,
    sequence: Sequence[int],
    cfg: ModelConfig,
) -> State:
    """The state with the keys and values of a row as its whole sequence has them.

    sequence: the prompt and its answer, of which the cache holds all but the newest.
    """
    count = virtual_count(params["model"])
    tokens = np.zeros((1, state.cache.valid.shape[1] - count), np.int32)
    valid = np.zeros(tokens.shape, bool)
    end = int(tree.to_host(state.cache.length)) - count
    place = slice(end + 1 - len(sequence), end)
    tokens[0, place], valid[0, place] = sequence[:-1], True
    cache = _with_row(
        adapters.of_row(params, row),
        state.cache,
        np.int32(row),
        tokens,
        valid,
        np.array([len(sequence)], np.int32),
        cfg=cfg,
    )
    return dataclasses.replace(state, cache=cache)


@functools.partial(jax.jit, static_argnames=("cfg",), donate_argnames=("cache",))
def _with_row(
    params: Mapping[str, Any],
    cache: Cache,
    row: Array,
    tokens: Array,
    valid: Array,
    lengths: Array,
    *,
    cfg: ModelConfig,
) -> Cache:
    """The cache with one row read from tokens, (1, slots).

    lengths: (1,), how many tokens there are with the one that is read next.
    """
    _, one = decode(
        params,
        tokens,
        cfg,
        empty_cache(params, cfg, 1, tokens.shape[1], lengths),
        positions=positions_of(valid),
        valid=valid,
        last_only=True,
        lengths=lengths,
    )
    put = jax.lax.dynamic_update_slice_in_dim
    return dataclasses.replace(
        cache,
        k=put(cache.k, one.k, row, axis=1),
        v=put(cache.v, one.v, row, axis=1),
        valid=put(cache.valid, one.valid, row, axis=0),
    )
