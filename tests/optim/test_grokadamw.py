"""GrokAdamW: its signal, its numbering of tensors, and its two deviations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from oracles.projected import Quiet

from jaxpeft.errors import InputError
from jaxpeft.optim.grokadamw import grokadamw
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.schedules.plateau import observe, rate_factor

STACKS = Layout(stacked=r"(.*\.)?layers\..*")
RATE = 1e-3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first_step(tx, params):
    """The updates after a gradient of ones, over the rate."""
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return jax.tree.map(lambda u: np.asarray(u) / RATE, updates)


def test_losses_steer_the_average_and_are_remembered():
    start, gradients = normal(0, 5, 4), [normal(s, 5, 4) for s in range(1, 13)]
    told = {3: {"train_loss": 1.0}, 5: {"eval_loss": 4.0}, 9: {"eval_loss": 0.5}}
    parameter = torch.nn.Parameter(torch.tensor(start))
    settings = {"grokking_signal_decay_rate": 2.0, "gamma": 0.3}
    theirs = Quiet({"w": parameter}, **settings)
    tx, params = grokadamw(RATE, **settings), {"w": jnp.asarray(start)}
    state, plain, silent = tx.init(params), params, tx.init(params)
    update = jax.jit(tx.update)
    for step, g in enumerate(gradients):
        parameter.grad = torch.tensor(g)
        theirs.inner.param_groups[0].update(told.get(step, {}))
        theirs.step()
        updates, state = update({"w": g}, state, params, **told.get(step, {}))
        params = optax.apply_updates(params, updates)
        updates, silent = update({"w": g}, silent, plain)
        plain = optax.apply_updates(plain, updates)
    expected = parameter.detach().numpy()
    np.testing.assert_allclose(params["w"], expected, atol=1e-7)
    assert np.max(np.abs(plain["w"] - expected)) > 1e-4
    assert state.shared == (1.0, 0.5)


def test_an_evaluation_is_told_to_it_anywhere_in_a_chain():
    tx = optax.chain(optax.clip_by_global_norm(1.0), grokadamw(RATE))
    params = {"w": jnp.asarray(normal(0, 5, 4))}
    state = tx.init(params)
    _, state = tx.update({"w": normal(1, 5, 4)}, state, params, value=1.0)
    state = observe(state, 4.0)
    assert state[1].shared == (1.0, 4.0)
    assert float(state[1].shared.signal()) == 0.75
    assert float(rate_factor(state)) == 1.0


def test_late_tensors_begin_with_long_steps_unless_corrected():
    params = {"layers": {"w": jnp.zeros((25, 2))}}
    faithful = first_step(grokadamw(RATE, layout=STACKS), params)["layers"]["w"]
    expected = -(1 - 0.9 * 0.9 ** np.arange(25)) / (1 - 0.9)
    np.testing.assert_allclose(faithful[:, 0], expected, rtol=1e-3)
    assert expected[24] < -9
    tx = grokadamw(RATE, corrected_bias=True, layout=STACKS)
    np.testing.assert_allclose(first_step(tx, params)["layers"]["w"], -1, rtol=1e-3)


def test_layers_number_alike_whether_stacked_or_not():
    shape = (3, 2, 2)
    params = {
        "z": {"layers": {"a": jnp.zeros(shape), "b": jnp.zeros(shape)}},
        "unstacked": {"layers": {"2": {"a": jnp.zeros((2, 2))}}},
        "head": jnp.zeros((2, 2)),
    }
    layout = Layout(stacked=r"z\..*")
    found = first_step(grokadamw(RATE, index="layer", layout=layout), params)
    expected = [-(1 - 0.9 * 0.9**n) / 0.1 for n in range(3)]
    for leaf in found["z"]["layers"].values():
        np.testing.assert_allclose(leaf[:, 0, 0], expected, rtol=1e-3)
    alone = found["unstacked"]["layers"]["2"]["a"]
    np.testing.assert_allclose(alone, expected[2], rtol=1e-3)
    np.testing.assert_allclose(found["head"], -1, rtol=1e-3)


def test_stacked_layers_are_tensors_of_their_own():
    start, gradients = normal(0, 3, 8, 4), [normal(s, 3, 8, 4) for s in range(1, 4)]
    ends = []
    for tx, split in [
        (grokadamw(RATE, layout=STACKS), lambda x: {"layers": {"w": jnp.asarray(x)}}),
        (grokadamw(RATE), lambda x: dict(enumerate(jnp.asarray(x)))),
    ]:
        params, step = split(start), jax.jit(tx.update)
        state = tx.init(params)
        for g in gradients:
            updates, state = step(split(g), state, params)
            params = optax.apply_updates(params, updates)
        assert step._cache_size() == 1
        ends.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]))
    np.testing.assert_allclose(*ends, atol=1e-7)


def test_holes_bfloat16_and_losses_that_come_late():
    params = {"w": jnp.ones((8, 12), jnp.bfloat16), "frozen": None}
    tx = grokadamw(RATE)
    step = jax.jit(tx.update)
    updates, state = step(params, tx.init(params), params)
    assert updates["frozen"] is None and updates["w"].dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(state.leaves)} == {"float32"}
    assert len(jax.tree.leaves(state.leaves)) == 3
    losses = {"train_loss": jnp.float32(1), "eval_loss": jnp.float32(2)}
    for _ in range(2):
        _, state = step(params, state, params, **losses)
    assert step._cache_size() == 2  # without losses, and with


def test_momenta_outside_of_their_range():
    with pytest.raises(InputError, match="gamma: found 1.0") as caught:
        grokadamw(RATE, b1=-0.1, gamma=1.0)
    assert len(caught.value.problems) == 2
