"""The head that an objective wants, on the base that a configuration names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxpeft import kernel, models, tree
from jaxpeft.adapters.vocabulary import EMBEDDING_LEAF
from jaxpeft.assembly.base import Base
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.models.scores import LEAF, SCORE, drawn
from jaxpeft.objectives import Head


def fitted(base: Base, head: Head | None) -> Base:
    """The base with the head that an objective wants.

    Args:
        base: the opened model.
        head: see `Objective.head`.

    Raises:
        InputError: see `fitted_config`.
    """
    pad = base.tokenizer.pad_token_id
    cfg = fitted_config(base.cfg, head, pad if isinstance(pad, int) else None)
    has_head = base.cfg.num_labels is not None or head is None
    return dataclasses.replace(base, cfg=cfg, has_head=has_head)


def fitted_config(
    cfg: ModelConfig, head: Head | None, pad: int | None = None
) -> ModelConfig:
    """The hyperparameters of a base with the head that an objective wants.

    Args:
        cfg: those of the base.
        head: see `Objective.head`.
        pad: the token of padding; None: the one that config.json names.

    Raises:
        InputError: where the base has another head, or its family none of the kind.
    """
    own = cfg.num_labels
    if head is None:
        require_tokens(cfg, "model.path")
        return cfg
    if own is not None and own != head.count:
        raise InputError(
            f"model.path: config.json has {own} labels (id2label), and the objective "
            f"has {head.count}; give as many, or start from the model without that head"
        )
    names = models.names_in(cfg.hf)
    if own is not None and names and head.names and names != head.names:
        raise InputError(
            f"objective.labels: found {', '.join(head.names)}; the model's own labels "
            f"are {', '.join(names)} (config.json: id2label): give these, in that order"
        )
    return models.with_scores(cfg, head.count, head.names or names, pad)


def require_tokens(cfg: ModelConfig, key: str) -> None:
    """Checks that a model has a head that gives tokens logits.

    Args:
        cfg: its hyperparameters.
        key: begins the message.

    Raises:
        InputError: where its head gives sequences scores.
    """
    if cfg.num_labels is not None:
        raise InputError(
            f"{key}: this model gives a sequence {cfg.num_labels} scores "
            f"({models.scores_named(cfg)}), and has no head that writes text; use it "
            "with objective.name classification or reward, or evaluate --predictions"
        )


def with_head(
    params: Mapping[str, Any], cfg: ModelConfig, key: jax.Array
) -> dict[str, Any]:
    """The params with a new head of scores, where one is wanted and they have none.

    It has the dtype of the embedding, in which transformers draws it, too.

    Args:
        params: the base's weights.
        cfg: its hyperparameters.
        key: that the run's adapter is drawn with.
    """
    if not cfg.num_labels or SCORE in params:
        return dict(params)
    dtype = kernel.dtype_of(dict(tree.walk(params))[EMBEDDING_LEAF])
    return {**params, SCORE: drawn(cfg, key, dtype)}


def trains(params: Mapping[str, Any]) -> bool:
    """Whether the head of scores, if there is one, trains beside an adapter."""
    head = dict(tree.walk(params)).get(LEAF)
    return head is None or kernel.is_adapter(head)
