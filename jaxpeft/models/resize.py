"""More rows for an embedding and its head, for tokens added to a tokenizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import kernel, tree
from jaxpeft.errors import InputError
from jaxpeft.models.spec import ModelConfig

SPREAD = 1e-9  # of the new rows' covariance over that of the old ones, as transformers


def resize_embeddings(
    params: Mapping[str, Any], cfg: ModelConfig, rows: int, key: Array
) -> tuple[dict[str, Any], ModelConfig]:
    """A model whose embedding, and head if it has one, are of more tokens.

    What there was stays bit for bit. New rows are drawn as `resize_token_embeddings` of
    transformers does by default (mean_resizing): about the mean of the old ones, with
    a billionth of their covariance (Hewitt, 2021, nlp.stanford.edu/~johnhew/
    vocab-expansion.html), so that a new token is as likely as an average one.

    Args:
        params: of a base without adapters.
        cfg: its hyperparameters.
        rows: how many tokens there are to be.
        key: of the draw.

    Returns:
        The params and the hyperparameters, `vocab_size` in them.

    Raises:
        InputError: there are more rows already, or an adapter stands in one of the
            tables.
    """
    if rows < cfg.vocab_size:
        raise InputError(
            f"rows: found {rows}; the embedding has {cfg.vocab_size} rows "
            "(config.json: vocab_size), and none is taken away: give at least that"
        )
    leaves, changes = dict(tree.walk(params)), {}
    ends = (("model.embed_tokens.embedding", 0), ("lm_head.kernel", 1))
    for number, (name, axis) in enumerate(ends):
        if name not in leaves:
            continue  # a head that is the embedding
        if kernel.is_node(leaves[name]):
            raise InputError(
                f"{name}: holds an adapter; resize the base, then add adapters to it"
            )
        table = jnp.moveaxis(leaves[name], axis, 0)
        drawn = _drawn(table, rows - len(table), jax.random.fold_in(key, number))
        whole = jnp.concatenate([table, drawn.astype(table.dtype)])
        changes[name] = jnp.moveaxis(whole, 0, axis)
    return tree.replace(params, changes), cfg.with_rows(rows)


def _drawn(table: Array, count: int, key: Array) -> Array:
    """Rows from a normal distribution with a table's mean and `SPREAD` covariance.

    A sum of the centred rows with independent normal weights has their covariance, so
    that no root of it is needed.
    """
    table = table.astype(jnp.float32)
    mean = jnp.mean(table, axis=0)
    weights = jax.random.normal(key, (count, len(table))) * (SPREAD / len(table)) ** 0.5
    return mean + weights @ table - jnp.sum(weights, axis=1, keepdims=True) * mean
