"""The most probable of possible answers: nothing is generated."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import models, tree
from jaxpeft.devices import sharding
from jaxpeft.generate.generation import padded
from jaxpeft.models import ModelConfig
from jaxpeft.objectives.token_logps import token_logps


def most_probable(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """The most probable choice after each prompt, by its number.

    Args:
        params: of the whole model, adapters in.
        cfg: the model's hyperparameters.
        prompts: token ids.
        choices: token ids of the possible answers to each prompt.
        batch_size: sequences that are read together.
        mesh: the devices that they are split over; None: none.
        told: called with the number of batches done, after each; it may raise.
    """
    pairs = [(prompt, choice) for prompt in prompts for choice in choices]
    width = padded(max(len(p) + len(c) for p, c in pairs))
    found: list[float] = []
    for number, start in enumerate(range(0, len(pairs), batch_size), 1):
        rows = pairs[start : start + batch_size]
        full = [*rows, *rows[:1] * (batch_size - len(rows))]
        batch: Mapping[str, Any] = _batch(full, width)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            batch = batch if mesh is None else sharding.put_batch(batch, mesh)
            sums = tree.to_host(_log_probabilities(params, batch, cfg=cfg))
        found += sums[: len(rows)].tolist()
        told(number)
    table = np.reshape(found, (len(prompts), len(choices)))
    return np.argmax(table, axis=1).tolist()


def batches(prompts: int, choices: int, batch_size: int) -> int:
    """How many batches `most_probable` reads.

    Args:
        prompts: how many there are.
        choices: how many each has.
        batch_size: sequences that are read together.
    """
    return -(-prompts * choices // batch_size)


def _batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
) -> dict[str, np.ndarray]:
    """Rows of a prompt and a choice, padded on the right, as data has them."""
    shape = (len(pairs), width)
    tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
    supervised = np.zeros(shape, bool)
    for row, (prompt, choice) in enumerate(pairs):
        whole = [*prompt, *choice]
        tokens[row, : len(whole)] = whole
        targets[row, : len(whole) - 1] = whole[1:]
        positions[row, : len(whole)] = np.arange(len(whole))
        supervised[row, len(prompt) - 1 : len(whole) - 1] = True
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "supervised": supervised,
    }


@functools.partial(jax.jit, static_argnames=("cfg",))
def _log_probabilities(
    params: Mapping[str, Any], batch: Mapping[str, Array], *, cfg: ModelConfig
) -> Array:
    """The log-probability in nats of what is supervised in each row, (batch,)."""
    hidden = models.hidden_states(
        params, batch["tokens"], cfg, positions=batch["positions"]
    )
    found = token_logps(
        hidden, models.head(params, cfg), batch["targets"], batch["supervised"]
    )
    return jnp.sum(found, axis=1)
