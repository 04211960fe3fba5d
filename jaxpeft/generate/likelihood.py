"""Log-likelihoods of given continuations, in batches of few shapes."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpeft import models, tree
from jaxpeft.data import buckets
from jaxpeft.devices import per_device, sharding
from jaxpeft.models import ModelConfig
from jaxpeft.objectives import chunks

# Row lengths that the batches of a call may have; each is compiled once, which takes as
# long as some batches do.
LENGTHS, BATCHES_A_LENGTH = 8, 8


class Likelihood(NamedTuple):
    """What the model thinks of a continuation.

    Attributes:
        log_probability: of all its tokens, in nats.
        greedy: whether each of them is the most probable one at its place.
    """

    log_probability: float
    greedy: bool


class Row(NamedTuple):
    """What is read once: continuations that differ in their last token alone share it.

    Attributes:
        tokens: all but the last token.
        count: tokens of the continuation.
        last: the last tokens that continuations have after it, all different.
    """

    tokens: tuple[int, ...]
    count: int
    last: list[int]


def likelihoods(
    params: Mapping[str, Any],
    cfg: ModelConfig,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    told: Callable[[Mapping[int, Likelihood]], None] = lambda found: None,
) -> list[Likelihood]:
    """The likelihood of each continuation after its context.

    Of a pair that is longer than the model's context and one token, which is only
    predicted, the last tokens are read.

    Args:
        params: of the whole model, adapters in.
        cfg: the model's hyperparameters.
        pairs: token ids of contexts and continuations, one or more of each; no
            continuation is longer than the model's context.
        batch_size: sequences that are read together.
        mesh: the devices that they are split over; None: none.
        told: called after each batch with what it found, by the pairs' numbers; it may
            raise.
    """
    rows, places = _rows(pairs, cfg.max_position_embeddings)
    asked: dict[int, list[int]] = {}
    for number, (row, _) in enumerate(places):
        asked.setdefault(row, []).append(number)
    most = max((len(row.last) for row in rows), default=1)
    most = 1 << (most - 1).bit_length()
    found: list[Likelihood | None] = [None] * len(pairs)
    for chosen, width in batches(
        [len(row.tokens) for row in rows], batch_size, cfg.max_position_embeddings
    ):
        full = [rows[n] for n in [*chosen, *chosen[:1] * (batch_size - len(chosen))]]
        batch: Mapping[str, Any] = _batch(full, width, most)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            batch = batch if mesh is None else sharding.put_batch(batch, mesh)
            scores = tree.to_host(_scores(params, batch, cfg=cfg))
        new = {
            number: Likelihood(
                float(scores[0][at, places[number][1]]),
                bool(scores[1][at, places[number][1]]),
            )
            for at, row in enumerate(chosen)
            for number in asked[row]
        }
        for number, likelihood in new.items():
            found[number] = likelihood
        told(new)
    return [one for one in found if one is not None]


def batches(
    lengths: Sequence[int], batch_size: int, limit: int
) -> Iterator[tuple[list[int], int]]:
    """Which sequences are read together, the longest first, and how wide rows are.

    Args:
        lengths: tokens of each sequence.
        batch_size: sequences that are read together.
        limit: no row is wider than so many tokens, which hold the longest sequence.

    Returns:
        (the numbers of the sequences, the tokens of a row) of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    if not parts:
        return
    longest = np.array([lengths[part[0]] for part in parts])
    widths = buckets.choose_lengths(
        longest,
        np.ones(len(parts)),
        buckets=min(LENGTHS, -(-len(parts) // BATCHES_A_LENGTH)),
        longest=int(longest[0]),
        limit=limit,
    )
    for part, needed in zip(parts, longest.tolist(), strict=True):
        yield part, next(width for width in widths if width >= needed)


def _rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int
) -> tuple[list[Row], list[tuple[int, int]]]:
    """The rows to read, and of each pair its row and its place among `Row.last`."""
    rows: dict[tuple, Row] = {}
    numbers: dict[tuple, int] = {}
    places = []
    for context, continuation in pairs:
        tokens = tuple([*context, *continuation][-(longest + 1) :])
        key = (tokens[:-1], len(continuation))
        row = rows.setdefault(key, Row(*key, []))
        if tokens[-1] not in row.last:
            row.last.append(tokens[-1])
        number = numbers.setdefault(key, len(numbers))
        places.append((number, row.last.index(tokens[-1])))
    return list(rows.values()), places


def _batch(rows: Sequence[Row], width: int, most: int) -> dict[str, np.ndarray]:
    """Rows padded on the right, as data has them."""
    shape = (len(rows), width)
    tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
    supervised, end = np.zeros(shape, bool), np.zeros(shape, bool)
    last = np.zeros((len(rows), most), np.int32)
    for at, row in enumerate(rows):
        length = len(row.tokens)
        tokens[at, :length] = row.tokens
        targets[at, : length - 1] = row.tokens[1:]
        positions[at, :length] = np.arange(length)
        supervised[at, length - row.count : length - 1] = True
        end[at, length - 1] = True
        last[at, : len(row.last)] = row.last
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "supervised": supervised,
        "end": end,
        "last": last,
    }


@functools.partial(jax.jit, static_argnames=("cfg",))
def _scores(
    params: Mapping[str, Any], batch: Mapping[str, Array], *, cfg: ModelConfig
) -> tuple[Array, Array]:
    """Log-probabilities in nats and whether all is greedy, (batch, last) each."""
    hidden = models.hidden_states(
        params, batch["tokens"], cfg, positions=batch["positions"]
    )
    head = models.head(params, cfg)

    def of_rows(rows: tuple, head: Any) -> tuple:
        hidden, targets, supervised, end, last = rows
        before, greedy = _before(hidden, targets, supervised, head)
        at_end = jnp.argmax(end, axis=1)[:, None, None]
        hidden = jnp.take_along_axis(hidden, at_end, axis=1)[:, 0]
        logits = (hidden @ head).astype(jnp.float32)
        found = jnp.take_along_axis(logits, last, axis=1)
        found -= jax.nn.logsumexp(logits, axis=1, keepdims=True)
        is_most = last == jnp.argmax(logits, axis=1)[:, None]
        return (), (before[:, None] + found, greedy[:, None] & is_most)

    names = ("targets", "supervised", "end", "last")
    rows = (hidden, *(batch[name] for name in names))
    # Each row is summed, and asked for its end: it has to be there whole.
    return per_device.on_each_part(of_rows, rows, head, cuts=False)[1]


def _before(
    hidden: Array, targets: Array, supervised: Array, head: Any
) -> tuple[Array, Array]:
    """The same of the tokens before the last, (batch,) each; few logits at a time."""
    order = chunks.supervised_first(supervised)
    parts = chunks.cut(head, order, hidden, targets, supervised)

    def add(total: tuple[Array, Array], chunk: tuple) -> tuple:
        h, target, mask = chunk

        def form() -> tuple[Array, Array]:
            logits = (h @ head).astype(jnp.float32)
            found = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
            found = jnp.where(mask, found - jax.nn.logsumexp(logits, axis=-1), 0.0)
            greedy = (jnp.argmax(logits, axis=-1) == target) | ~mask
            return total[0] + jnp.sum(found, axis=1), total[1] & jnp.all(greedy, axis=1)

        return jax.lax.cond(jnp.any(mask), form, lambda: total), None

    rows = len(hidden)
    zero = (jnp.zeros(rows, jnp.float32), jnp.ones(rows, bool))
    return jax.lax.scan(add, zero, parts)[0]
