"""Prodigy: its estimate, gradients of zero, masks, and the dtype of its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import prodigyopt
import pytest
import torch

from jaxpeft.optim.prodigy import prodigy


def quadratic(tx, steps, start=3.0):
    """The parameters, estimates of d by step and the state, towards the origin."""
    params = {"w": jnp.full(4, start), "frozen": None}

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), state.estim_lr

    carry = (params, tx.init(params))
    (params, state), estimates = jax.jit(
        lambda carry: jax.lax.scan(body, carry, None, steps)
    )(carry)
    assert params["frozen"] is None
    return params["w"], estimates, state


def test_the_estimate_only_grows_to_about_the_distance():
    end, estimates, _ = quadratic(prodigy(), 400)
    assert np.all(np.diff(estimates) >= 0)
    assert 0.3 < estimates[-1] < 6.0 and np.max(np.abs(end)) < 0.3
    halved, small, _ = quadratic(prodigy(d_coef=0.5), 400)
    assert small[-1] < estimates[-1]


def test_gradients_of_zero_change_nothing_before_others_came():
    params = {"w": jnp.ones(3)}
    tx = prodigy(weight_decay=0.5)
    step, state = jax.jit(tx.update), tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, after = step(zero, state, params)
    assert not np.any(np.asarray(updates["w"]))
    jax.tree.map(np.testing.assert_array_equal, after._replace(asked=0), state)
    assert after.asked == 1
    updates, _ = step(params, after, params)
    assert np.all(np.asarray(updates["w"]) < 0)
    updates, _ = step({"w": jnp.full(3, jnp.nan, jnp.float32)}, state, params)
    assert np.all(np.isnan(updates["w"]))  # and what is wrong stays visible
    assert step._cache_size() == 1


@pytest.mark.parametrize("corrected", [False, True])
def test_steps_at_a_rate_of_zero_are_prodigyopt_s(corrected):
    """A warmup from zero, a pause, and an end at zero."""
    rates = np.array([0.0, 0.5, 1.0, 0.0, 1.0, 0.7, 0.0], np.float32)
    start, settings = [1.0, -2.0, 3.0], {"use_bias_correction": corrected, "d0": 1e-2}
    theirs = torch.nn.Parameter(torch.tensor(start))
    tool = prodigyopt.Prodigy([theirs], weight_decay=0.1, **settings)
    tx = prodigy(lambda n: jnp.asarray(rates)[n], weight_decay=0.1, **settings)
    params = jnp.array(start)
    state, step = tx.init(params), jax.jit(tx.update)
    for rate in rates:
        tool.param_groups[0]["lr"] = float(rate)
        theirs.grad = theirs.detach().clone()
        tool.step()
        updates, state = step(params, state, params)
        params = params + updates
        np.testing.assert_allclose(params, theirs.detach(), rtol=1e-5)
    assert np.max(np.abs(params - np.array(start))) > 1e-2
    assert state.count == 4 and state.asked == 7


@pytest.mark.parametrize("corrected", [False, True])
def test_decay_and_its_mask(corrected):
    params = {"w": jnp.full(3, 2.0), "b": jnp.full(3, 2.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    settings = {"d0": 1e-2, "use_bias_correction": corrected}

    def first(**more):
        tx = prodigy(lambda count: 0.5, **settings, **more)
        return jax.jit(tx.update)(grads, tx.init(params), params)[0]

    plain = first()
    found = first(weight_decay=0.3, mask={"w": True, "b": False})
    np.testing.assert_array_equal(found["b"], plain["b"])
    correction = np.sqrt(1 - 0.999) / (1 - 0.9) if corrected else 1.0
    shrunk = 0.5 * 1e-2 * correction * 0.3 * 2.0
    np.testing.assert_allclose(plain["w"] - found["w"], shrunk, rtol=1e-4)


def test_the_state_is_float32_and_its_own():
    params = {"w": jnp.ones(5, jnp.bfloat16)}
    tx = prodigy()
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    kinds = {x.dtype.name for x in jax.tree.leaves(state) if x.ndim}
    assert kinds == {"float32"} and sum(x.size for x in jax.tree.leaves(state)) == 24
    params = {"w": jnp.ones(5)}
    start = tx.init(params).params0["w"]
    assert start.unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
