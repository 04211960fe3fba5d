"""LOMO's rule: no state, clipping by value, the decay of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.lomo import lomo

PARAMS = {"w": jnp.array([2.0, -1.0, 0.5]), "hole": None}
GRADS = {"w": jnp.array([0.3, -5.0, 0.1]), "hole": None}


def test_it_keeps_a_counter_only():
    assert tree.nbytes(lomo(0.1).init(PARAMS)) == 4


def test_it_is_gradient_descent_on_the_cut_gradient():
    tx = lomo(0.1, clip_value=0.25, weight_decay=0.5)
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    p, g = np.asarray(PARAMS["w"]), np.array([0.25, -0.25, 0.1])
    np.testing.assert_allclose(updates["w"], -0.05 * p - 0.1 * g, rtol=1e-6)
    assert updates["hole"] is None and int(state.count) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_clip_that_lets_nothing_through_is_refused(value):
    with pytest.raises(InputError, match="optimizer.clip_value: found"):
        lomo(0.1, clip_value=value)
