"""What an objective is: everything about a run that depends on what it minimises.

An objective is a record of functions. What most of them share, batches of rows of
tokens, is what a new one has when it says nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import data
from jaxpeft.models import ModelConfig

Micro = Mapping[str, Array]
Shape = tuple[int, ...]


class Loss(NamedTuple):
    """The sums that a micro-batch adds to the loss of its step.

    The step's loss is the sum of all `total` over the sum of all `weight`, so that it
    is the same however a batch is cut for accumulation and over devices.

    Attributes:
        total: () float32, the sum of the losses.
        weight: () float32, such as the number of supervised tokens.
        metrics: further figures for the log, {name: (sum, weight)}, each () float32.
    """

    total: Array
    weight: Array
    metrics: Mapping[str, tuple[Array, Array]] = {}


class Head(NamedTuple):
    """A head that gives a sequence scores, in the place of the one of tokens.

    Attributes:
        count: how many scores.
        names: of the classes that they are of; empty: they have none.
    """

    count: int
    names: tuple[str, ...] = ()


REFERENCE = "reference_logps"  # of each row, in nats: what `Precomputed` has said


class Precomputed(NamedTuple):
    """What an objective wants computed of every example once, before the first step.

    It comes in a batch as the column `REFERENCE`.

    Attributes:
        kind: which reference it is of.
        logps: (params before the first step, batch, model) -> (rows,) float32.
    """

    kind: str
    logps: Callable[[Any, Micro, ModelConfig], Array]


class Predictions(NamedTuple):
    """What an objective says of single records.

    Attributes:
        scores: (params, batch, model) -> a tree of arrays with an axis of rows.
        lines: (those arrays, the batch, both on the host) -> what a file says of each
            record, rows of padding left out.
    """

    scores: Callable[[Any, Any, ModelConfig], Any]
    lines: Callable[[Any, Any], list[dict[str, Any]]]


def row_shapes(
    shape: Shape,
    packing: bool,
    columns: Mapping[str, str] | None = None,
    weights: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of rows of tokens, see `data.batches`.

    Args:
        shape: of each array, such as (accumulation, batch, seq).
        packing: whether a row holds several examples, which `segments` number.
        columns: {name: dtype} of the kind's columns, which have no axis `seq`.
        weights: whether tokens count unlike in the loss.

    Returns:
        {name: its shape and dtype}.
    """
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "positions": jnp.int32}
    kinds |= {"supervised": jnp.bool_} | ({"segments": jnp.int32} if packing else {})
    kinds |= {"weights": jnp.float32} if weights else {}
    arrays = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()}
    beside = {
        name: jax.ShapeDtypeStruct(shape[:-1], dtype)
        for name, dtype in (columns or {}).items()
    }
    return arrays | beside


def alone(batch: Micro) -> dict[str, Array]:
    """Nothing: no micro-batch needs to know of the others of its step.

    Args:
        batch: which is not looked at.
    """
    return {}


def nothing(params: Any) -> Any:
    """An empty tree: what an objective without a reference holds.

    Args:
        params: the params of the run, which are not looked at.
    """
    return ()


@dataclass(frozen=True)
class Objective:
    """A record of what a training step minimises and what an evaluation reports.

    Attributes:
        loss: (params, held, micro-batch, model, key) -> Loss. The params are of the
            whole model, adapters in; the key is for dropout (`kernel.with_dropout`).
        sums: (params, held, batch, model) -> a tree of () float32, sums over the batch
            that `report` divides. Nothing drops.
        report: their totals over all batches -> {name: figure}; `eval_loss` is among
            them, the lower the better.
        in_words: that report -> a line for a person.
        from_hidden: (hidden, head, micro-batch) -> Loss, of objectives whose loss reads
            nothing but the last hidden states (batch, seq, hidden) of one forward pass
            and the head; the fused backward pass needs it. None: it does more.
        embedding_noise: the alpha of the noise (`models.Noise`) that such an objective
            adds to the embeddings in training; None: none.
        head: the head of scores that it trains; None: it reads that of tokens.
        predictions: what it says of single records; None: nothing.
        precomputed: what batches are to bring along of the reference; None: nothing.
        held: params -> what it keeps frozen besides the base, such as a reference; made
            before the first step, and given to `loss` and `sums`. Copies (`jnp.copy`)
            of what trains: the steps overwrite that in place.
        load_train: as `data.load_train`; `functools.partial(data.load_train, kind=K)`
            of an objective with a kind of its own.
        load_eval: as `data.load_eval`, likewise.
        of_step: the batch of a step, (accumulation, batch, ...) -> what each of its
            micro-batches is given of the whole besides, (accumulation, ...) arrays.
        least_rows: how many sequences a micro-batch has at least, which are weighed
            against each other.
        batch_shapes: (shape, packing) -> the arrays of a batch. Every batch has
            `tokens`, and `segments` while it is still on the host: 0 is padding.
    """

    loss: Callable[[Any, Any, Micro, ModelConfig, Array], Loss]
    sums: Callable[[Any, Any, Micro, ModelConfig], Any]
    report: Callable[[Any], dict[str, float]]
    in_words: Callable[[Mapping[str, float]], str]
    from_hidden: Callable[[Array, Any, Micro], Loss] | None = None
    embedding_noise: float | None = None
    head: Head | None = None
    predictions: Predictions | None = None
    precomputed: Precomputed | None = None
    held: Callable[[Any], Any] = nothing
    load_train: Callable[..., data.Batches | data.StreamBatches] = data.load_train
    load_eval: Callable[..., data.EvalBatches | None] = data.load_eval
    of_step: Callable[[Micro], dict[str, Array]] = alone
    least_rows: int = 1
    batch_shapes: Callable[[Shape, bool], dict[str, jax.ShapeDtypeStruct]] = row_shapes
