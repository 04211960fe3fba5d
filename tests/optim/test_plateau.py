"""Rates that evaluations steer, against torch's and transformers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.optimization import GreedyLR

from jaxpeft.optim.schedules.greedy import GreedyState, scale_by_greedy
from jaxpeft.optim.schedules.plateau import (
    PlateauState,
    observe,
    rate_factor,
    scale_by_plateau,
)
from jaxpeft.optim.schedules.table import make_scale

RATE = 2**-10
PARAMS = {"a": jnp.arange(3.0), "hole": None, "b": jnp.ones((2, 2))}
# Sums and products of these are exact in float32 as in float64: so are all decisions,
# ties and thresholds included.
EXACT = {
    "plateau": {"factor": 0.5, "threshold": 2**-4, "min_lr": RATE / 64},
    "greedy": {
        "factor": 0.5,
        "threshold": 2**-4,
        "min_lr": RATE / 8,
        "max_lr": RATE * 4,
        "reset_start": 3,
    },
}
SCALES = {"plateau": scale_by_plateau, "greedy": scale_by_greedy}
THEIRS = {"plateau": ReduceLROnPlateau, "greedy": GreedyLR}


def expected(name, values, learning_rate, **own):
    """Their learning rate after each value, over the first one."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=learning_rate)
    scheduler = THEIRS[name](optimizer, **own)
    factors = []
    for value in values:
        scheduler.step(float(value))
        factors.append(optimizer.param_groups[0]["lr"] / learning_rate)
    return np.array(factors)


def found(name, values, learning_rate, **own):
    """The factor after each value, in one scan."""
    state = SCALES[name](learning_rate=learning_rate, **own).init(PARAMS)

    def after(state, value):
        state = observe(state, value)
        return state, rate_factor(state)

    _, factors = jax.lax.scan(after, state, jnp.asarray(values, jnp.float32))
    return np.asarray(factors)


def losses(seed, count=300, coarse=True):
    """A random walk that falls, rests and rises, in eighths where coarse."""
    rng = np.random.default_rng(seed)
    drift = np.repeat(rng.choice([-0.25, 0.0, 0.1], count // 10), 10)
    walk = 8 + np.cumsum(drift + rng.normal(0, 0.15, count))
    return np.round(walk * 8) / 8 if coarse else walk


SETTINGS = [
    {"patience": 2},
    {"patience": 0},
    {"patience": 1, "cooldown": 3},
    {"patience": 1, "threshold_mode": "abs"},
    {"patience": 1, "threshold_mode": "rel"},
    {"patience": 1, "mode": "max"},
    {"patience": 2, "mode": "max", "threshold_mode": "abs", "cooldown": 1},
    {"patience": 0, "mode": "max", "threshold_mode": "rel"},
    {"patience": 1, "eps": RATE / 5},
    {"patience": 1, "threshold": 0.0},
]
GREEDY = [
    {"patience": 1, "warmup": 2},
    {"patience": 0, "warmup": 2, "cooldown": 4},
    {"patience": 0, "reset_start": 0, "cooldown": 2},
    {"patience": 0, "reset_start": 1, "warmup": 1},
    {"patience": 1, "smooth": True, "window_size": 4},
    {"patience": 0, "smooth": True, "window_size": 8, "reset_start": 2},
]
CASES = [
    *(("plateau", own) for own in SETTINGS),
    *(("greedy", own) for own in SETTINGS + GREEDY),
]


@pytest.mark.parametrize("name, own", CASES)
def test_factors_are_exactly_theirs(name, own):
    own = {**EXACT[name], **own}
    moved = set()
    for seed in range(3):
        values = losses(seed)
        theirs = expected(name, values, RATE, **own)
        np.testing.assert_array_equal(found(name, values, RATE, **own), theirs)
        moved |= set(theirs)
    assert len(moved) > 2  # the factor had reason to move


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name, own",
    [
        ("plateau", {}),
        ("plateau", {"patience": 3, "factor": 0.3, "min_lr": 1e-5}),
        ("plateau", {"patience": 1, "factor": 0.1, "cooldown": 2}),
        ("greedy", {"min_lr": 1e-5}),
        ("greedy", {"min_lr": 1e-4, "max_lr": 4e-4, "patience": 1, "factor": 0.9}),
        ("greedy", {"min_lr": 1e-5, "patience": 2, "smooth": True}),
    ],
)
def test_factors_are_theirs_with_common_settings(name, own, seed):
    values = losses(seed, coarse=False)
    theirs = expected(name, values, 3e-4, **own)
    np.testing.assert_allclose(found(name, values, 3e-4, **own), theirs, rtol=1e-5)
    assert len(set(theirs)) > 1


@pytest.mark.parametrize("name", SCALES)
def test_a_value_that_is_not_a_number_is_no_better(name):
    values = np.array([4.0, np.nan, 2.0, np.nan, np.nan, 1.0, np.inf, np.nan, 3.0])
    own = {**EXACT[name], "patience": 1}
    theirs = expected(name, values, RATE, **own)
    np.testing.assert_array_equal(found(name, values, RATE, **own), theirs)
    assert theirs[-1] < 1


def test_a_nan_leaves_the_window():
    own = {**EXACT["greedy"], "patience": 0, "smooth": True, "window_size": 2}
    values = [4.0, np.nan, 4.0, 3.0, 2.0]
    # The first is better than nothing; then the mean is NaN for as long as it lasts.
    np.testing.assert_array_equal(
        found("greedy", values, RATE, **own), [2.0, 1.0, 0.5, 1.0, 2.0]
    )


def chained(name, **own):
    own = {**EXACT[name], **own}
    scale = SCALES[name](learning_rate=RATE, **own)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE), scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALES)
def test_updates_are_multiplied(name):
    tx, plain = chained(name, patience=0), optax.adamw(RATE)
    plain = optax.chain(optax.clip_by_global_norm(1.0), plain)
    grads = jax.tree.map(lambda p: p - 0.3, PARAMS)
    state, other = tx.init(PARAMS), plain.init(PARAMS)
    for factor in (1.0, 0.5, 0.25):
        updates, state = tx.update(grads, state, PARAMS)
        expected, other = plain.update(grads, other, PARAMS)
        expected = jax.tree.map(lambda u, f=factor: u * f, expected)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        if factor == 1.0 and name == "plateau":
            state = observe(state, 1.0)  # the first is always better
        state = observe(state, np.nan)
        assert rate_factor(state) == factor / 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_keep_their_type(dtype):
    tx = scale_by_plateau(patience=0, factor=0.5)
    state = observe(tx.init(PARAMS), np.nan)
    updates, _ = tx.update({"a": jnp.full(3, 0.75, dtype)}, state)
    assert updates["a"].dtype == dtype
    np.testing.assert_array_equal(updates["a"], np.full(3, 0.375))


@pytest.mark.parametrize("name", SCALES)
def test_observe_leaves_all_else_untouched(name):
    state = chained(name).init(PARAMS)
    new = observe(state, 1.0)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(a is b for a, b in zip(jax.tree.leaves(new[:2]), jax.tree.leaves(state)))
    assert new[2].best == 1.0 and np.isinf(state[2].best)


def test_states_are_found_anywhere():
    scale = scale_by_plateau(patience=0, factor=0.5)
    state = {"deep": [(optax.EmptyState(), scale.init(PARAMS), None)], "count": 3}
    new = observe(state, np.nan)
    assert isinstance(new["deep"][0][1], PlateauState)
    assert rate_factor(new) == 0.5 and new["count"] == 3


def test_without_such_a_state_nothing_changes():
    state = optax.adamw(RATE).init(PARAMS)
    new = observe(state, 1.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state)))
    assert rate_factor(state) == 1.0 and rate_factor(state).dtype == jnp.float32


@pytest.mark.parametrize("name", SCALES)
def test_a_compiled_step_goes_on(name):
    """Ahead of time, on a mesh, the state donated: as the training loop does it."""
    tx = chained(name, patience=0)
    mesh = jax.make_mesh((1,), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(tx.init(PARAMS), whole)
    grads = jax.device_put(PARAMS, whole)
    step = jax.jit(lambda g, s: tx.update(g, s, g), donate_argnums=1)
    program = step.lower(grads, state).compile()
    for value in (2.0, 1.0, 3.0, np.float64(5.0), jnp.float32(4.0)):
        _, state = program(grads, state)
        old = jax.tree.map(lambda x: (x.aval, x.sharding), state)
        state = observe(state, value)
        assert jax.tree.map(lambda x: (x.aval, x.sharding), state) == old
    assert rate_factor(state) != 1.0


@pytest.mark.parametrize("name", SCALES)
def test_observe_is_the_same_under_jit(name):
    state = chained(name, patience=1).init(PARAMS)
    traces = []

    @jax.jit
    def compiled(state, value):
        traces.append(1)
        return observe(state, value)

    inside = state
    for value in losses(0, 40):
        state, inside = observe(state, value), compiled(inside, value)
    jax.tree.map(np.testing.assert_array_equal, state, inside)
    assert len(traces) == 1 and rate_factor(state) != 1.0


@pytest.mark.parametrize("name", SCALES)
def test_only_arrays_are_stored_and_the_settings_are_those_of_now(name):
    """A restored state is made of the new run's tree and the old run's arrays."""
    old, new = (chained(name, patience=p).init(PARAMS) for p in (0, 9))
    old = observe(observe(old, np.nan), np.nan)
    restored = jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(old))
    for _ in range(9):
        factor, restored = rate_factor(restored), observe(restored, np.nan)
        assert rate_factor(restored) == factor
    assert rate_factor(observe(restored, np.nan)) == factor / 2


def test_scales_from_configuration():
    section = {"name": "reduce_lr_on_plateau", "patience": 0, "min_lr": 1e-4}
    scale = make_scale({**section, "warmup_steps": 2}, 3e-4)
    assert scale is not None
    state = observe(scale.init(PARAMS), np.nan)
    np.testing.assert_allclose(rate_factor(state), 1 / 3, rtol=1e-6)
    scale = make_scale({"name": "greedy", "min_lr": 1e-6, "smooth": True}, 3e-4)
    assert scale is not None
    state = scale.init(PARAMS)
    assert isinstance(state, GreedyState) and state.window.shape == (50,)
    assert make_scale({"name": "cosine"}, 3e-4) is None
