"""Lion, SGD, RMSprop and Adagrad: state and corners; the courses are elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adagrad import adagrad
from jaxpeft.optim.lion import lion
from jaxpeft.optim.rmsprop import rmsprop
from jaxpeft.optim.sgd import sgd

PARAMS = {"w": jnp.full((5, 2), 2.0), "hole": None}
ZEROS = {"w": jnp.zeros((5, 2)), "hole": None}

BYTES = {
    "lion": (lion(1e-3), 4),
    "sgd": (sgd(1e-3), 0),
    "sgd, momentum": (sgd(1e-3, momentum=0.9), 4),
    "rmsprop": (rmsprop(1e-3), 4),
    "rmsprop, all": (rmsprop(1e-3, momentum=0.9, centered=True), 12),
    "adagrad": (adagrad(1e-3), 4),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_a_parameter(name):
    tx, expected = BYTES[name]
    assert tree.nbytes(tx.init(PARAMS).leaves) == expected * 10


def test_lion_stands_still_without_a_gradient_and_decays_apart_from_it():
    tx = lion(0.1, weight_decay=0.5, mask={"w": True, "hole": None})
    updates, _ = jax.jit(tx.update)(ZEROS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=1e-6)


def test_the_decay_of_sgd_is_part_of_the_gradient():
    tx = sgd(0.1, momentum=0.9, weight_decay=0.5)
    _, state = tx.update(ZEROS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(state.leaves["w"], 0.5 * 2.0)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_without_a_plain_momentum_is_refused(settings):
    with pytest.raises(InputError, match="optimizer.nesterov: found true"):
        sgd(0.1, nesterov=True, **settings)


def test_a_constant_gradient_does_not_break_the_centered_variance():
    tx = rmsprop(1e-3, alpha=0.5, centered=True)
    grads = {"w": jnp.full((5, 2), 0.3), "hole": None}
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(60):
        updates, state = update(grads, state, PARAMS)
    assert np.isfinite(updates["w"]).all()
