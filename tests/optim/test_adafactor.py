"""Adafactor: its state, its errors, and optax's version of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import testbed

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim import factored
from jaxpeft.optim.adafactor import adafactor
from jaxpeft.optim.adalomo import adalomo
from jaxpeft.optim.layout import Group, Layout


def normal(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def stepped(tx, params, *grads):
    state, update = tx.init(params), jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("kind", [adafactor, adalomo])
def test_a_matrix_costs_its_rows_and_columns(kind):
    params = {"w": jnp.ones((30, 20)), "b": jnp.ones(20), "s": jnp.ones(())}
    state = kind(1e-3).init(params)
    assert tree.nbytes(state.leaves["w"]) == 4 * (30 + 20)
    assert tree.nbytes(state.leaves["b"]) == 4 * 20
    assert tree.nbytes(state.leaves["s"]) == 4


def test_a_first_moment_costs_a_matrix_more():
    state = adafactor(1e-3, beta1=0.9).init({"w": jnp.ones((30, 20))})
    assert tree.nbytes(state.leaves) == 4 * (30 + 20 + 30 * 20)


def test_the_moment_of_an_outer_product_is_exact():
    squares = np.outer(np.arange(1.0, 5), np.arange(1.0, 4)).astype(np.float32)
    moment = factored.averaged(factored.zeros(jnp.asarray(squares)), squares, 1.0)
    np.testing.assert_allclose(factored.inverse_root(moment), squares**-0.5, rtol=1e-6)


@pytest.mark.parametrize("kind", [adafactor, adalomo])
def test_three_axes_are_a_pile_of_matrices_with_one_clip(kind):
    params, grads = {"w": normal(3, 6, 4)}, {"w": normal(3, 6, 4, seed=1)}
    grads["w"] = grads["w"] * jnp.array([1.0, 10.0, 100.0])[:, None, None]
    _, state = stepped(kind(1e-2), params, grads)
    moment = state.leaves["w"].nu if kind is adafactor else state.leaves["w"]
    for i in range(3):
        g = np.asarray(grads["w"][i])
        np.testing.assert_allclose(moment.row[i], np.mean(g**2, 1), rtol=1e-5)
        np.testing.assert_allclose(moment.column[i], np.mean(g**2, 0), rtol=1e-5)
    # Independent layers have clips of their own, so that their result differs.
    apart = kind(1e-2, clip_threshold=0.3, layout=Layout(stacked="w"))
    whole = kind(1e-2, clip_threshold=0.3)
    one, _ = stepped(apart, params, grads)
    other, _ = stepped(whole, params, grads)
    assert not np.allclose(one["w"], other["w"], atol=1e-5)


OPTAX = {
    "plain": ({}, {}),
    "momentum and decay": (
        {"beta1": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay_rate": 1e-3 * 0.1},
    ),
    "scale": ({"scale_parameter": True}, {"multiply_by_parameter_scale": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTAX)
def test_optax_agrees_when_told_to_factor_all_and_to_scale_the_decay(name):
    ours, theirs = OPTAX[name]
    theirs = {"multiply_by_parameter_scale": False, **theirs}
    reference = optax.adafactor(1e-3, min_dim_size_to_factor=1, **theirs)
    at = testbed.problem()
    rng = np.random.default_rng(0)
    grads = {
        n: rng.normal(size=(50, *v.shape)).astype(np.float32)
        for n, v in at.start.items()
    }
    expected, _ = testbed.run_open(reference, at, grads)
    found, _ = testbed.run_open(adafactor(1e-3, **ours), at, grads)
    apart = testbed.distance(at.start, expected, found)
    assert apart.moved > 1e-3 and apart.within(1e-5, "max"), apart


def test_relative_steps_do_without_a_rate_and_groups_still_scale_them():
    params = {"a": normal(6, 4), "b": normal(6, 4)}
    tx = adafactor(relative_step=True, layout=Layout(groups=(Group("b", 0.5),)))
    grads = {"a": normal(6, 4, seed=1), "b": normal(6, 4, seed=1)}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert float(factored.rms(updates["a"])) == pytest.approx(1e-2, rel=1e-2)
    np.testing.assert_allclose(updates["b"], 0.5 * updates["a"], rtol=1e-4, atol=1e-7)


def test_warmup_init_starts_at_1e_6():
    params = {"a": normal(6, 4)}
    tx = adafactor(relative_step=True, warmup_init=True)
    _, state = stepped(tx, params)
    updates, _ = tx.update({"a": normal(6, 4, seed=1)}, state, params)
    assert float(factored.rms(updates["a"])) == pytest.approx(1e-6, rel=0.2)


def test_gradients_of_zero_move_nothing():
    params = {"a": normal(6, 4), "b": normal(4)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for tx in (adafactor(1e-2), adalomo(1e-2)):
        after, _ = stepped(tx, params, zeros, zeros)
        jax.tree.map(np.testing.assert_array_equal, after, params)


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"learning_rate": 1e-3, "relative_step": True}, "optimizer.relative_step"),
        ({}, "optimizer.learning_rate"),
        ({"learning_rate": 1e-3, "warmup_init": True}, "optimizer.warmup_init"),
        ({"learning_rate": 1e-3, "decay_rate": 0.8}, "optimizer.decay_rate"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, key):
    with pytest.raises(InputError, match=key):
        adafactor(**settings)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(InputError) as caught:
        adafactor(warmup_init=True, decay_rate=1.0)
    assert len(caught.value.problems) == 3
