"""Greedy and sampled generation with a cache of keys and values."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig, start_cache
from jaxpeft.models.transformer import decode

PROMPT_MULTIPLE = 32  # prompts are padded to multiples, so that few lengths compile


def generate(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that continue each prompt, without the one that stopped it.

    prompts: token ids, of any lengths. stop: ids that end an answer. temperature 0 is
    greedy; otherwise the next token is drawn from the smallest set of tokens whose
    probabilities sum to `top_p` (Holtzman et al., 2020), by `seed`.
    Raises InputError for an empty prompt, settings out of range, and prompts that
    leave no room in the model's context.
    """
    _check(cfg, prompts, max_new_tokens, temperature, top_p)
    longest = max(map(len, prompts))
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = np.zeros((len(prompts), width), np.int32)
    valid = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):  # to the right: the answers start together
        tokens[row, width - len(prompt) :] = prompt
        valid[row, width - len(prompt) :] = True
    answers, lengths = _generate(
        params,
        tokens,
        valid,
        np.array(list(stop) or [-1], np.int32),
        np.asarray(jax.random.key_data(jax.random.key(seed))),
        np.float32(max(temperature, 1e-6)),
        np.float32(top_p),
        cfg=cfg,
        max_new_tokens=max_new_tokens,
        greedy=temperature == 0.0,
    )
    pairs = zip(tree.to_host(answers), tree.to_host(lengths), strict=True)
    return [answer[:length].tolist() for answer, length in pairs]


def _check(
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    problems = []
    if not prompts or not all(len(prompt) for prompt in prompts):
        problems.append("prompt: it is empty; give at least one token")
    if max_new_tokens < 1:
        problems.append(f"max-new-tokens: found {max_new_tokens}; it must be 1 or more")
    if temperature < 0:
        problems.append(f"temperature: found {temperature}; it must be 0 or more")
    if not 0 < top_p <= 1:
        problems.append(f"top-p: found {top_p}; it must be in (0, 1]")
    needed = max(map(len, prompts), default=0) + max_new_tokens
    if needed > cfg.max_position_embeddings:
        problems.append(
            f"prompt: {needed - max_new_tokens} tokens and max-new-tokens "
            f"{max_new_tokens} exceed the model's context of "
            f"{cfg.max_position_embeddings}; shorten either"
        )
    if problems:
        raise InputError(*problems)


@functools.partial(jax.jit, static_argnames=("cfg", "max_new_tokens", "greedy"))
def _generate(
    params: Mapping[str, Any],
    tokens: Array,
    valid: Array,
    stop: Array,
    key: Array,
    temperature: Array,
    top_p: Array,
    *,
    cfg: ModelConfig,
    max_new_tokens: int,
    greedy: bool,
) -> tuple[Array, Array]:
    """(answers (batch, max_new_tokens), lengths (batch,)); one program for both parts.

    tokens, valid: (batch, width), the prompts padded on the left. key: its data.
    """
    key = jax.random.wrap_key_data(key)
    batch, width = tokens.shape
    embedding = params["model"]["embed_tokens"]["embedding"]
    dtype = cfg.activation_dtype or embedding.dtype
    cache = start_cache(params, cfg, batch, width + max_new_tokens, dtype)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    logits, cache = decode(
        params, tokens, cfg, cache, positions=positions, valid=valid, last_only=True
    )

    def choose(logits: Array, index: Array) -> Array:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _draw(logits / temperature, top_p, jax.random.fold_in(key, index))

    def body(carry: tuple) -> tuple:
        index, done, lengths, answers, logits, position, cache = carry
        token = choose(logits[:, -1], index)
        done = done | jnp.any(token[:, None] == stop[None, :], axis=-1)
        lengths = lengths + (~done).astype(jnp.int32)
        answers = answers.at[:, index].set(token)
        logits, cache = decode(
            params,
            token[:, None],
            cfg,
            cache,
            positions=position[:, None],
            valid=jnp.ones((batch, 1), bool),
            last_only=True,
        )
        return index + 1, done, lengths, answers, logits, position + 1, cache

    def unfinished(carry: tuple) -> Array:
        index, done, *_ = carry
        return (index < max_new_tokens) & ~jnp.all(done)

    done, counts = jnp.zeros((batch,), bool), jnp.zeros((batch,), jnp.int32)
    answers = jnp.zeros((batch, max_new_tokens), jnp.int32)
    start = (jnp.int32(0), done, counts, answers, logits, positions[:, -1] + 1, cache)
    _, _, lengths, answers, *_ = jax.lax.while_loop(unfinished, body, start)
    return answers, lengths


def _draw(logits: Array, top_p: Array, key: Array) -> Array:
    """A token for each row, of the most probable ones that make up `top_p`."""
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
    kept = jnp.where(logits >= smallest, logits, -jnp.inf)
    return jax.random.categorical(key, kept).astype(jnp.int32)
