"""CAME's state, and what its confidence does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import tree
from jaxpeft.optim.came import came


def test_the_state_is_a_mean_of_full_size_and_two_factored_moments():
    state = came(1e-3).init({"w": jnp.ones((30, 20)), "b": jnp.ones(20)})
    assert tree.nbytes(state.leaves["w"]) == 4 * (30 * 20 + 2 * (30 + 20))
    assert tree.nbytes(state.leaves["b"]) == 4 * 2 * 20
    assert state.leaves["b"].instability is None


def test_rows_whose_gradients_alternate_move_less():
    rng = np.random.default_rng(0)
    steady = rng.normal(size=(4, 6)).astype(np.float32)
    params, tx = {"w": jnp.zeros((4, 6))}, came(1e-3)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(30):
        sign = np.array([1, 1, (-1) ** step, (-1) ** step], np.float32)[:, None]
        updates, state = update({"w": jnp.asarray(steady * sign)}, state, params)
        params = optax.apply_updates(params, updates)
    rows = np.abs(np.asarray(updates["w"])).mean(1)
    # Without the confidence the ratio would be that of the means of the updates.
    means = np.abs(np.asarray(state.leaves["w"].mu)).mean(1)
    assert rows[2:].max() / rows[:2].min() < 0.8 * means[2:].max() / means[:2].min()
