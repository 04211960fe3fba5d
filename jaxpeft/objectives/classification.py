"""Classification: the cross-entropy of a sequence's class, by a head of its own."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import Field

from jaxpeft import data, kernel, models
from jaxpeft.config import DataSection
from jaxpeft.data import labelled
from jaxpeft.data.labelled import LABEL, WEIGHT, Labels
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.objectives.objective import (
    Head,
    Loss,
    Micro,
    Objective,
    Predictions,
    row_shapes,
)

Several = Annotated[int, Field(ge=2, le=labelled.MOST)]


class Sums(NamedTuple):
    """Sums over the sequences of a batch; divide by `weight` for means.

    Attributes:
        loss: () float32, cross-entropy in nats.
        correct: () float32, sequences whose class has the highest score.
        weight: () float32, the weights of all of them.
        count: () float32, how many there are.
    """

    loss: Array
    correct: Array
    weight: Array
    count: Array


def classification(
    num_labels: Several | None = None, labels: tuple[str | int, ...] | None = None
) -> Objective:
    """The cross-entropy in nats of the class of a whole sequence, a mean over them.

    As transformers' models "ForSequenceClassification" with one label a record.

    Args:
        num_labels: how many classes there are; null: as the labels say.
        labels: their names, in the order of their numbers; null: those of the training
            data, in the order of the alphabet, or none where labels are numbers.

    Raises:
        InputError: where the two disagree.
    """
    names = tuple(map(str, labels or ()))
    if num_labels is not None and names and num_labels != len(names):
        raise InputError(
            f"objective.num_labels: found {num_labels} beside {len(names)} labels; "
            "give one of the two, or make them agree"
        )
    if labels is not None and len(set(names)) < max(len(names), 2):
        raise InputError(
            f"objective.labels: found {list(names)}; there have to be two or more, "
            "each once"
        )
    classes = Labels(num_labels or len(names), names)
    kind = labelled.kind(classes)
    return Objective(
        loss=loss,
        sums=sums,
        report=report,
        in_words=in_words,
        head=Head(*classes),
        predictions=Predictions(_scores, functools.partial(lines, names=names)),
        load_train=functools.partial(data.load_train, kind=kind),
        load_eval=functools.partial(data.load_eval, kind=kind),
        batch_shapes=functools.partial(row_shapes, columns=kind.columns),
    )


def labels_of(options: Mapping[str, Any], section: DataSection) -> dict[str, Any]:
    """The section's keys with what the training data say of the classes.

    Args:
        options: the keys that are given.
        section: the section `data`.

    Raises:
        InputError: where the data have other labels than the keys say.
    """
    given = options.get("num_labels")
    if options.get("labels") is not None:
        return {"num_labels": len(options["labels"])} if given is None else {}
    found = labelled.found(section)
    if given is None:
        said: dict[str, Any] = {"num_labels": found.count}
        return said | ({"labels": list(found.names)} if found.names else {})
    if given < found.count or (found.names and given != found.count):
        names = ", ".join(found.names[:10]) or f"0 to {found.count - 1}"
        raise InputError(
            f"objective.num_labels: found {given}; the training data have "
            f"{found.count} labels: {names}"
        )
    return {"labels": list(found.names)} if found.names else {}


def loss(params: Any, held: Any, micro: Micro, model: ModelConfig, key: Array) -> Loss:
    """The summed losses of a micro-batch, and its number of sequences.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        micro: `tokens` and `positions`, (batch, seq) each, `label` and `weight`,
            (batch,) each.
        model: the hyperparameters.
        key: for dropout.
    """
    found = _sums(kernel.with_dropout(params, key), micro, model)
    accuracy = {"accuracy": (found.correct, found.weight)}
    return Loss(found.loss, found.weight, accuracy)


def sums(params: Any, held: Any, batch: Micro, model: ModelConfig) -> Sums:
    """Loss and accuracy of a batch, summed over its sequences.

    Args:
        params: of the whole model, adapters in.
        held: nothing.
        batch: as for `loss`; rows of padding have the weight 0.
        model: the hyperparameters.
    """
    return _sums(params, batch, model)


def _sums(params: Any, batch: Micro, model: ModelConfig) -> Sums:
    scores = models.scores(params, batch, model)
    label, weight = batch[LABEL], batch[WEIGHT]
    logs = jax.nn.log_softmax(scores)
    losses = -jnp.take_along_axis(logs, label[:, None], axis=1)[:, 0]
    hit = jnp.argmax(scores, axis=1) == label
    return Sums(
        loss=jnp.sum(jnp.where(weight > 0, losses * weight, 0.0)),
        correct=jnp.sum(jnp.where(hit, weight, 0.0)),
        weight=jnp.sum(weight),
        count=jnp.sum(weight > 0).astype(jnp.float32),
    )


def report(totals: tuple[float, float, float, float]) -> dict[str, float]:
    """The means over all sequences, each by its weight.

    Args:
        totals: `Sums` of the whole data set, as numbers.

    Returns:
        `eval_loss` in nats per sequence, `eval_accuracy`, the share of sequences whose
            class has the highest score, and `eval_examples`.
    """
    total, correct, weight, count = totals
    return {
        "eval_loss": total / weight,
        "eval_accuracy": correct / weight,
        "eval_examples": int(count),
    }


def in_words(report: Mapping[str, float]) -> str:
    """Loss and accuracy in a few words.

    Args:
        report: what `report` returns.
    """
    return f"loss {report['eval_loss']:.4f}, accuracy {report['eval_accuracy']:.1%}"


def _scores(params: Any, batch: Micro, model: ModelConfig) -> Array:
    return models.scores(params, batch, model)


def lines(
    scores: np.ndarray, batch: Micro, *, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What is said of each sequence: its class, the one that it got, and all scores.

    Args:
        scores: (rows, labels).
        batch: `label` and `weight`, (rows,) each; rows without weight are padding.
        names: of the classes; empty: their numbers stand for them.
    """
    called = names or tuple(range(scores.shape[1]))
    return [
        {
            "label": called[int(label)],
            "prediction": called[int(np.argmax(row))],
            "scores": [float(x) for x in row],
        }
        for row, label, weight in zip(scores, batch[LABEL], batch[WEIGHT], strict=True)
        if weight > 0
    ]
