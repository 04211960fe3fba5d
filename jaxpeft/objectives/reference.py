"""The model that answers are weighed against: what trains, as it was at first."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import adapters, models, tree
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.objectives.objective import Micro, Precomputed
from jaxpeft.objectives.sft import last_hidden
from jaxpeft.objectives.token_logps import token_logps

Reference = Literal["adapter_off", "start", "none"]
Wanted = Literal["auto", "adapter_off", "start", "none"]


def chosen(wanted: Wanted, *, continues: bool, base_trains: bool) -> Reference:
    """The reference of a run.

    Args:
        wanted: what the configuration says; auto: the model as the run finds it, which
            for a new adapter is the base with the adapter off.
        continues: whether an adapter is trained further (`adapter.init_from`).
        base_trains: whether the weights of the base train.

    Raises:
        InputError: there is no such reference.
    """
    if wanted == "auto":
        return "start" if continues or base_trains else "adapter_off"
    if wanted == "adapter_off" and base_trains:
        raise InputError(
            "objective.reference: found 'adapter_off' with an adapter.method that "
            "trains the base itself, so that there is no adapter to switch off; use "
            "start, which keeps a copy of what trains, or an adapter"
        )
    return wanted


def held(kind: Reference, params: Any) -> Any:
    """The copies that a reference keeps of what trains.

    Args:
        kind: which reference.
        params: before the first step, adapters in.
    """
    if kind == "adapter_off":
        return adapters.starts(params)
    if kind == "none":
        return {}
    trains, _ = tree.partition(params, adapters.trainable_mask(params))
    return jax.tree.map(jnp.copy, trains)


def model(kind: Reference, params: Any, held: Any) -> Any:
    """The params of the reference, through which no gradient goes.

    Args:
        kind: which reference; not "none".
        params: as they train, adapters in.
        held: of `held`.
    """
    if kind == "adapter_off":
        return jax.lax.stop_gradient(adapters.off(params, held))
    _, frozen = tree.partition(params, adapters.trainable_mask(params))
    return jax.lax.stop_gradient(tree.combine(held, frozen))


def logps(params: Any, rows: Micro, model: ModelConfig) -> Array:
    """The summed log-probabilities of the answers of a model, in nats.

    Args:
        params: of the whole model.
        rows: a batch.
        model: the hyperparameters.

    Returns:
        (rows,) float32.
    """
    hidden = last_hidden(params, rows, model)
    head = models.head(params, model)
    each = token_logps(hidden, head, rows["targets"], rows["supervised"])
    return jnp.sum(each, axis=1)


def before_training(kind: Reference, wanted: bool) -> Precomputed | None:
    """What is to be computed of a reference before the first step.

    Args:
        kind: which reference.
        wanted: what the configuration says (`precompute_reference`).

    Returns:
        It; None where nothing is to be.

    Raises:
        InputError: it is wanted of no reference.
    """
    if not wanted:
        return None
    if kind == "none":
        raise InputError(
            "objective.precompute_reference: found true with reference none, of which "
            "there is nothing to compute; remove it"
        )
    return Precomputed(kind, functools.partial(_at_first, kind))


def _at_first(kind: Reference, params: Any, rows: Micro, model: ModelConfig) -> Array:
    """`logps` of the reference that params before the first step have."""
    own = params if kind == "start" else adapters.off(params, adapters.starts(params))
    return logps(own, rows, model)
