"""The model that answers are weighed against: what trains, as it was at first."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpeft import adapters, tree
from jaxpeft.errors import InputError

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
