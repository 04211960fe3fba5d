"""StableAdamW: the clip of a tensor's step, and its two kinds of decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.stable_adamw import stable_adamw

PARAMS = {"w": jnp.full((4, 3), 2.0)}


def test_it_costs_eight_bytes_a_parameter():
    assert tree.nbytes(stable_adamw(1e-3).init(PARAMS).leaves) == 8 * 12


def test_a_jump_of_the_gradient_shrinks_the_step():
    tx = stable_adamw(1e-3, weight_decay=0.0)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(50):
        _, state = update({"w": jnp.full((4, 3), 0.01)}, state, PARAMS)
    mu, nu = np.asarray(state.leaves["w"].mu), np.asarray(state.leaves["w"].nu)
    updates, state = update({"w": jnp.full((4, 3), 1.0)}, state, PARAMS)
    kept = [b * (1 - b**50) / (1 - b**51) for b in (0.9, 0.99)]
    mu = kept[0] * mu + (1 - kept[0]) * 1.0
    nu = kept[1] * nu + (1 - kept[1]) * 1.0
    excess = np.sqrt(np.mean(1.0 / nu))
    assert excess > 4
    expected = -1e-3 / excess * mu / (np.sqrt(nu) + 1e-6)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "settings, share", [({}, 1e-3), ({"decouple_lr": True, "max_lr": 4e-3}, 0.25)]
)
def test_the_decay_follows_the_rate_or_its_share_of_the_highest(settings, share):
    tx = stable_adamw(lambda step: 1e-3, weight_decay=0.1, **settings)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -2.0 * share * 0.1, rtol=1e-3)


def test_a_schedule_needs_its_highest_rate_told():
    with pytest.raises(InputError, match="optimizer.max_lr: is missing"):
        stable_adamw(lambda step: 1e-3, decouple_lr=True)
    with pytest.raises(InputError, match="optimizer.max_lr: found 0"):
        stable_adamw(1e-3, max_lr=0.0)
