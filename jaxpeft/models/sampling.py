"""How the next token is chosen: greedily, or drawn from what the warpers leave."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float32, Int32


@dataclass(frozen=True)
class Sampling:
    """What a person can set; each default leaves the logits as they are.

    The names and meanings are transformers', as is the order: penalty, temperature,
    top_k, top_p.

    Attributes:
        temperature: what the logits are divided by; 0 takes the most probable token.
        top_k: the draw is from so many of the most probable tokens; 0: from all.
        top_p: the draw is from the most probable tokens that make up this share
            (Holtzman et al., 2020).
        repetition_penalty: what the logits of tokens seen before are divided by, or
            multiplied with where they are negative (Keskar et al., 2019).
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def problems(self) -> list[str]:
        """The settings that cannot be used, a line for each."""
        problems = []
        if not 0 <= self.temperature < math.inf:
            problems.append(
                f"temperature: found {self.temperature}; it must be 0 or more"
            )
        if self.top_k < 0:
            problems.append(
                f"top-k: found {self.top_k}; it must be 1 or more, or 0 for all tokens"
            )
        if not 0 < self.top_p <= 1:
            problems.append(f"top-p: found {self.top_p}; it must be in (0, 1]")
        if not 0 < self.repetition_penalty < math.inf:
            problems.append(
                f"repetition-penalty: found {self.repetition_penalty}; it must be "
                "above 0; 1 changes nothing"
            )
        return problems

    def warpers(self) -> "Warpers":
        """The same settings as arrays for a compiled program."""
        penalty = self.repetition_penalty
        warpers = Warpers(
            repetition_penalty=None if penalty == 1 else np.float32(penalty)
        )
        if self.temperature == 0:
            return warpers
        return dataclasses.replace(
            warpers,
            key=np.asarray(jax.random.key_data(jax.random.key(self.seed))),
            temperature=np.float32(max(self.temperature, 1e-6)),
            top_k=np.int32(self.top_k) if self.top_k else None,
            top_p=np.float32(self.top_p) if self.top_p < 1 else None,
        )


@struct.dataclass
class Warpers:
    """`Sampling` inside a program, which has no part for what is None.

    The numbers are scalar arrays, so that another value needs no other program.

    Attributes:
        key: (2,) uint32, the data of a random key; None: the most probable token is
            taken.
        temperature: () float32.
        top_k: () int32.
        top_p: () float32.
        repetition_penalty: () float32.
    """

    key: Any = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    repetition_penalty: Any = None


def choose(
    logits: Float32[Array, "batch vocab"],
    seen: Bool[Array, "batch vocab"] | None,
    warpers: Warpers,
    requests: Array,
    count: Array,
) -> Int32[Array, " batch"]:
    """The next token of each row.

    A draw depends on `requests`, `count` and the key alone, and not on what else is in
    the batch.

    Args:
        logits: (batch, vocab) float32.
        seen: (batch, vocab) bool, which tokens the row holds; None without a penalty.
        warpers: how the token is chosen.
        requests: (batch,) int32, the number of the request that a row answers.
        count: () int32, how many tokens the rows have so far.

    Returns:
        (batch,) int32.
    """
    scores = process(logits, seen, warpers)
    if warpers.key is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    key = jax.random.wrap_key_data(warpers.key)

    def draw(row: Array, request: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, request), count)
        return jax.random.categorical(own, row)

    return jax.vmap(draw)(scores, requests).astype(jnp.int32)


def process(
    logits: Float32[Array, "batch vocab"],
    seen: Bool[Array, "batch vocab"] | None,
    warpers: Warpers,
) -> Float32[Array, "batch vocab"]:
    """The logits to choose by, -inf where a token is left out.

    They are what transformers' processors give in its order. Of tokens with equal
    logits at the edge of the nucleus all are kept.

    Args:
        logits: (batch, vocab) float32.
        seen: (batch, vocab) bool, which tokens the row holds; None without a penalty.
        warpers: which processors there are, and their numbers.

    Returns:
        (batch, vocab) float32.
    """
    if warpers.repetition_penalty is not None:
        assert seen is not None
        by = warpers.repetition_penalty
        logits = jnp.where(
            seen, jnp.where(logits < 0, logits * by, logits / by), logits
        )
    if warpers.temperature is not None:
        logits = logits / warpers.temperature
    if warpers.top_k is None and warpers.top_p is None:
        return logits
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    if warpers.top_k is not None:
        last = jnp.minimum(warpers.top_k, ordered.shape[-1]) - 1
        smallest = jnp.take_along_axis(ordered, jnp.full((len(ordered), 1), last), -1)
        logits, ordered = (_at_least(smallest, x) for x in (logits, ordered))
    if warpers.top_p is not None:
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        inside = jnp.where(before < warpers.top_p, ordered, jnp.inf)
        logits = _at_least(jnp.min(inside, axis=-1, keepdims=True), logits)
    return logits


def _at_least(smallest: Array, logits: Array) -> Array:
    return jnp.where(logits >= smallest, logits, -jnp.inf)
