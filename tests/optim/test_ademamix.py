"""AdEMAMix: settings that it refuses, holes and dtypes; its courses are elsewhere."""

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.errors import InputError
from jaxpeft.optim.ademamix import ademamix


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(InputError, match="b3: found 1.0") as caught:
        ademamix(1e-3, b3=1.0, t_alpha=0, t_beta3=-1)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="b1: found 0"):
        ademamix(1e-3, b1=0.0)


def test_holes_and_bfloat16():
    params = {"w": jnp.ones((8, 12), jnp.bfloat16), "frozen": None}
    tx = ademamix(1e-3, t_alpha=10, t_beta3=10)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["frozen"] is None and updates["w"].dtype == jnp.float32
    kinds = [x.dtype.name for x in jax.tree.leaves(state.leaves)]
    assert kinds == ["float32"] * 3
