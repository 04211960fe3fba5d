"""Schedule-Free: the averages to evaluate, warmup, and the scalars behind both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedulefree
import torch

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.lora_plus import lora_plus
from jaxpeft.optim.schedule_free import (
    evaluation_params,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from jaxpeft.optim.sgd import sgd

RNG = np.random.default_rng(0)
START = {
    "a": RNG.normal(size=(6, 4)).astype(np.float32),
    "b": RNG.normal(size=4).astype(np.float32),
}
STEPS = 60
GRADS = {
    name: (v + 0.3 * RNG.normal(size=(STEPS, *v.shape))).astype(np.float32)
    for name, v in START.items()
}
PAIRS = {
    "sgd": (
        lambda: schedule_free_sgd(0.1, warmup_steps=5, weight_decay=0.1),
        lambda p: schedulefree.SGDScheduleFree(
            p, lr=0.1, warmup_steps=5, weight_decay=0.1
        ),
    ),
    "adamw": (
        lambda: schedule_free_adamw(0.01, b1=0.8, warmup_steps=5),
        lambda p: schedulefree.AdamWScheduleFree(
            p, lr=0.01, betas=(0.8, 0.999), warmup_steps=5
        ),
    ),
    "radam": (
        lambda: schedule_free_radam(0.01),
        lambda p: schedulefree.RAdamScheduleFree(p, lr=0.01),
    ),
}


def started():
    return {"hole": None, **jax.tree.map(jnp.asarray, START)}


def trained(tx, params, grads=GRADS):
    def body(carry, g):
        params, state = carry
        updates, state = tx.update({"hole": None, **g}, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(
        lambda p: jax.lax.scan(body, (p, tx.init(p)), jax.tree.map(jnp.asarray, grads))
    )(params)[0]


@pytest.mark.parametrize("name", PAIRS)
def test_the_averages_are_the_reference_s_in_eval_mode(name):
    make, theirs = PAIRS[name]
    params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in START.items()}
    optimizer = theirs(list(params.values()))
    optimizer.train()
    for step in range(STEPS):
        for n, p in params.items():
            p.grad = torch.tensor(GRADS[n][step])
        optimizer.step()
    y = {n: p.detach().numpy().copy() for n, p in params.items()}
    optimizer.eval()
    found, state = trained(make(), started())
    x = evaluation_params(state, found)
    assert x["hole"] is None
    for n, p in params.items():
        np.testing.assert_allclose(found[n], y[n], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x[n], p.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert np.max(np.abs(x[n] - found[n])) > 1e-3


def test_the_average_is_the_mean_of_z():
    tx = schedule_free_sgd(0.1)
    params, state = started(), tx.init(started())
    update, seen = jax.jit(tx.update), []
    for step in range(10):
        g = {"hole": None, **{n: v[step] for n, v in GRADS.items()}}
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(state.leaves["a"].z)
    x = evaluation_params(state, params)["a"]
    np.testing.assert_allclose(x, np.mean(seen, axis=0), rtol=1e-5, atol=1e-5)
    y = 0.9 * np.asarray(x) + 0.1 * np.asarray(seen[-1])
    np.testing.assert_allclose(params["a"], y, rtol=1e-5, atol=1e-6)


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx),
    "nested": lambda tx: optax.chain(optax.chain(optax.identity(), tx)),
    "accumulated": lambda tx: optax.MultiSteps(tx, 1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_state_is_found_wherever_it_is(name):
    expected = trained(schedule_free_adamw(0.01), started())
    found = trained(WRAPPED[name](schedule_free_adamw(0.01)), started())
    one, other = (evaluation_params(state, y) for y, state in (expected, found))
    assert np.max(np.abs(one["a"] - expected[0]["a"])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_two_of_them_each_average_their_own_leaves():
    tx = lora_plus(schedule_free_sgd, 0.05, 2.0)
    y, state = trained(tx, started())
    x = jax.jit(evaluation_params)(state, y)
    for name, rate in (("a", 0.05), ("b", 0.1)):
        alone, its = trained(schedule_free_sgd(rate), started())
        np.testing.assert_allclose(
            x[name], evaluation_params(its, alone)[name], rtol=1e-5, atol=1e-6
        )
    mixed = optax.partition(
        {"free": schedule_free_sgd(0.05), "plain": sgd(0.05)},
        {"a": "free", "b": "plain", "hole": None},
    )
    y, state = trained(mixed, started())
    x = evaluation_params(state, y)
    np.testing.assert_array_equal(x["b"], y["b"])
    assert np.max(np.abs(x["a"] - y["a"])) > 1e-3


def test_other_optimizers_parameters_are_their_own_averages():
    y, state = trained(optax.adam(1e-2), started())
    jax.tree.map(np.testing.assert_array_equal, evaluation_params(state, y), y)


@pytest.mark.parametrize(
    "tx, expected", [(schedule_free_sgd(1.0), 4), (schedule_free_adamw(1e-3), 8)]
)
def test_bytes_a_parameter(tx, expected):
    state = tx.init({"a": jnp.ones((6, 4), jnp.bfloat16)})
    assert tree.nbytes(state.leaves) == expected * 24
    assert {x.dtype for x in jax.tree.leaves(state.leaves)} == {jnp.dtype("float32")}


def test_the_first_step_of_a_warmup_is_neither_zero_nor_full():
    def first(tx):
        updates, _ = tx.update(
            {"hole": None, **jax.tree.map(lambda g: g[0], GRADS)},
            tx.init(started()),
            started(),
        )
        return updates["a"]

    full = first(schedule_free_sgd(1.0))
    # y moves by (b1 (1 - c) - 1) = -1 rates at the first step, where c is 1.
    np.testing.assert_allclose(full, -GRADS["a"][0], rtol=1e-5, atol=1e-6)
    slow = first(schedule_free_sgd(1.0, warmup_steps=10))
    np.testing.assert_allclose(slow, full / 10, rtol=1e-4, atol=1e-6)


def test_radam_waits_for_four_updates():
    few = {n: g[:4] for n, g in GRADS.items()}
    y, state = trained(schedule_free_radam(0.01), started(), few)
    np.testing.assert_array_equal(y["a"], START["a"])
    assert float(state.shared.weight_sum) == 0.0
    y, _ = trained(
        schedule_free_radam(0.01), started(), {n: g[:5] for n, g in GRADS.items()}
    )
    assert np.max(np.abs(y["a"] - START["a"])) > 1e-5


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_radam_s_factor_is_that_of_exact_arithmetic(b2):
    tx = schedule_free_radam(1.0, b2=b2, silent_sgd_phase=False)
    scale = jax.jit(lambda t: tx.leafwise.rule.advance(*start, t, {}).scale)
    start = tx.leafwise.rule.shared, jnp.ones(())
    longest = 2 / (1 - b2) - 1
    for t in [*range(1, 12), 100, 1000, 100000]:
        # The difference of large numbers wants more digits than a double's power has.
        power = np.exp(np.longdouble(t) * np.log(np.longdouble(b2)))
        rho = longest - 2 * t * power / (1 - power)
        ratio = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        expected = ratio**0.5 if rho > 4 else 1.0
        np.testing.assert_allclose(
            scale(jnp.int32(t)), float(expected), rtol=2e-4, err_msg=str(t)
        )


def test_bfloat16_parameters_do_not_stop_the_averaging():
    steps = 1500
    tx = schedule_free_sgd(1e-3)
    params = {"a": jnp.ones(4, jnp.bfloat16)}

    def body(carry, _):
        params, state = carry
        updates, state = tx.update({"a": jnp.ones(4, jnp.bfloat16)}, state, params)
        return (optax.apply_updates(params, updates), state), None

    _, state = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), None, steps)[0])(
        params
    )
    np.testing.assert_allclose(state.shared.weight_sum, steps * 1e-6, rtol=1e-4)
    np.testing.assert_allclose(state.shared.c, 1 / steps, rtol=1e-4)
    # Steps of 1e-3 are less than half a digit of a bfloat16 near 1, not of z.
    np.testing.assert_allclose(state.leaves["a"].z, 1 - steps * 1e-3, atol=1e-3)
    assert float(state.shared.b1) == np.float32(0.9)


def test_the_state_may_be_donated_with_the_parameters():
    tx, params = schedule_free_adamw(0.01), {"a": jnp.ones((6, 4))}
    state = tx.init(params)
    assert (
        state.leaves["a"].z.unsafe_buffer_pointer()
        != params["a"].unsafe_buffer_pointer()
    )


@pytest.mark.parametrize("steps", [0.1, 5.0, -1, True])
def test_a_warmup_that_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(InputError, match="optimizer.warmup_steps: found"):
        schedule_free_sgd(1.0, warmup_steps=steps)


def test_a_momentum_without_an_average_is_refused():
    for b1 in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="optimizer.b1: found"):
            schedule_free_adamw(1e-3, b1=b1)
    with pytest.raises(InputError, match="optimizer.momentum: found"):
        schedule_free_sgd(1e-3, momentum=1.5)
