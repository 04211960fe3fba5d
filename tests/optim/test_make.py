"""Optimizers from configuration: names, aliases, keys, clipping, the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import optim
from jaxpeft.errors import InputError

CONSTANT = {"name": "constant"}
PARAMS = {"w": jnp.zeros(4)}


def steps(tx, grads):
    """The update of each gradient in turn."""
    state, found = tx.init(PARAMS), []
    for grad in grads:
        updates, state = tx.update({"w": jnp.asarray(grad)}, state, PARAMS)
        found.append(np.asarray(updates["w"]))
    return found


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS.aliases))
def test_aliases_mean_the_same(name):
    grads = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    named, meant = (
        steps(optim.make({"name": n, "learning_rate": 0.1}, CONSTANT, 3), grads)
        for n in (name, optim.OPTIMIZERS.aliases[name])
    )
    np.testing.assert_array_equal(named, meant)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused"])
def test_transformers_names_are_known(name):
    assert optim.OPTIMIZERS.resolve(name) == "adamw"


def test_the_schedule_sets_the_rate():
    tx = optim.make(
        {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.0},
        {"name": "linear", "warmup_steps": 2},
        4,
    )
    # Equal gradients give Adam steps of the rate itself.
    found = [float(-u[0]) for u in steps(tx, [np.full(4, 1e-3)] * 4)]
    np.testing.assert_allclose(found, [0.0, 0.05, 0.1, 0.05], rtol=1e-3)


def test_the_global_norm_is_clipped_before_the_moments():
    def second(limit):
        section = {"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.0}
        tx = optim.make({**section, "max_grad_norm": limit}, CONSTANT, 2)
        return steps(tx, [np.full(4, 50.0), np.full(4, 0.1)])[1]

    # Clipped to norm 1, an entry of 50 counts as 0.5.
    mu = (0.9 * 0.1 * 0.5 + 0.1 * 0.1) / (1 - 0.9**2)
    nu = (0.999 * 0.001 * 0.25 + 0.001 * 0.01) / (1 - 0.999**2)
    np.testing.assert_allclose(second(1.0), -mu / nu**0.5, rtol=1e-4)
    assert not np.allclose(second(1.0), second(None), rtol=1e-2)
    assert not np.allclose(second(1.0), second(0.5), rtol=1e-2)


def test_keys_reach_the_optimizer():
    section = {"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.0}
    tx = optim.make({**section, "eps": 1.0, "max_grad_norm": None}, CONSTANT, 1)
    np.testing.assert_allclose(steps(tx, [np.ones(4)])[0], -0.5, rtol=1e-5)


def problems(optimizer, schedule=CONSTANT):
    with pytest.raises(InputError) as caught:
        optim.make(optimizer, schedule, 10)
    return caught.value.problems


MISTAKES = {
    "name": ({"name": "adamm"}, "optimizer.name: found 'adamm'.*did you mean 'adamw'"),
    "key": ({"name": "adamw", "beta1": 0.8}, "optimizer.beta1: found 0.8.*b1'"),
    "type": ({"name": "adamw", "b1": "high"}, "optimizer.b1: found 'high'.*number"),
    "given": ({"name": "adamw", "mask": None}, "optimizer.mask"),
    "rate": ({"name": "adamw", "learning_rate": -1.0}, "optimizer.learning_rate"),
    "clipping": ({"name": "adamw", "max_grad_norm": 0.0}, "optimizer.max_grad_norm"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    section, message = MISTAKES[name]
    found = problems(section)
    assert len(found) == 1
    with pytest.raises(InputError, match=message):
        raise InputError(*found)


def test_several_mistakes_at_once():
    section = {"name": "adamw", "b3": 1.0, "eps": "tiny", "learning_rate": "fast"}
    assert len(problems(section)) == 3


def test_the_transformation_works_under_jit_without_recompiling():
    tx = optim.make({"name": "adamw"}, {"name": "cosine"}, 10)
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(1)
        return tx.update(grads, state, PARAMS)

    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = update({"w": jnp.ones(4)}, state)
    assert len(traces) == 1
