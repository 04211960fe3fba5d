"""What every optimizer of the table keeps to, one table for all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import optim
from jaxpeft.assembly.step import TrainState
from jaxpeft.errors import InputError
from jaxpeft.optim import ranges
from jaxpeft.rundir.checkpoint import Checkpoints

# The rate and the settings at which each solves the problem; a new one adds its line.
SETTINGS = {
    "adafactor": {"learning_rate": 0.05},
    "adagrad": {"learning_rate": 0.3},
    "adalomo": {"learning_rate": 0.1},
    "adam_mini": {"learning_rate": 0.05},
    "adamw": {"learning_rate": 0.05},
    "adamw_4bit": {"learning_rate": 0.05, "min_quantized_size": 256},
    "adamw_8bit": {"learning_rate": 0.05, "min_quantized_size": 256},
    "ademamix": {"learning_rate": 0.02},
    "apollo": {"learning_rate": 0.05, "rank": 4},
    "apollo_mini": {"learning_rate": 0.05, "scale": 16.0},
    "came": {"learning_rate": 0.02},
    "galore": {"learning_rate": 0.05, "rank": 4, "scale": 1.0},
    "grokadamw": {"learning_rate": 0.02},
    "lion": {"learning_rate": 0.01},
    "lion_8bit": {"learning_rate": 0.01, "min_quantized_size": 256},
    "lomo": {"learning_rate": 0.5},
    "lora_muon": {"learning_rate": 0.05},
    "lora_rite": {"learning_rate": 0.05},
    "muon": {"learning_rate": 0.05, "weight_decay": 0.0},
    "prodigy": {"learning_rate": 1.0},
    "riemannian_adamw": {"learning_rate": 0.05},
    "rmsprop": {"learning_rate": 0.02},
    "schedule_free_adamw": {"learning_rate": 0.05},
    "schedule_free_radam": {"learning_rate": 0.05},
    "schedule_free_sgd": {"learning_rate": 0.5},
    "sgd": {"learning_rate": 0.2, "momentum": 0.9},
    "stable_adamw": {"learning_rate": 0.05},
}
NAMES = sorted(optim.OPTIMIZERS.entries)
STEPS = 150


def test_every_optimizer_is_in_the_table():
    assert set(NAMES) == set(SETTINGS)


def make(name):
    section = {"name": name, "max_grad_norm": None, **SETTINGS[name]}
    return optim.make(section, {"name": "constant"}, STEPS)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


BAD = {
    "b1": 1.5,
    "b2": -0.1,
    "momentum": 2.0,
    "eps": -1e-8,
    "weight_decay": -1.0,
    "alpha": -1.0,
    "clip_threshold": 0.0,
    "d0": 0.0,
    "ns_steps": 0,
    "learning_rate": -1.0,
}


def test_numbers_without_sense_are_refused_all_at_once(name):
    bad = {k: v for k, v in BAD.items() if k in optim.OPTIMIZERS.parameters(name)}
    if name == "adafactor":
        bad["eps"] = (1e-30, float("nan"))
    with pytest.raises(InputError) as caught:
        optim.OPTIMIZERS.entries[name](**bad)
    stated = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(stated) == sorted(f"optimizer.{key}" for key in bad)


@pytest.mark.parametrize(
    "rate",
    [
        *("1e-3", float("inf"), float("nan"), -1e-3, 1e39, True, 1j),
        *(np.float32("nan"), np.float64(-1), np.full(2, 1e-3), jnp.array(jnp.nan)),
    ],
    ids=str,
)
def test_a_rate_without_sense_is_refused(name, rate):
    with pytest.raises(InputError, match=r"^optimizer.learning_rate: found "):
        optim.OPTIMIZERS.entries[name](learning_rate=rate)


WRONG = ["0.9", None, True, np.float32("nan"), np.ones(2), lambda count: 0.1, 1e39]


@pytest.mark.parametrize("value", WRONG, ids=lambda x: type(x).__name__)
def test_what_is_no_number_is_refused_for_every_number(name, value):
    numbers = [
        key
        for key, parameter in optim.OPTIMIZERS.parameters(name).items()
        if isinstance(parameter.default, int | float)
        and not isinstance(parameter.default, bool)
        and key != "learning_rate"
    ]
    assert numbers
    with pytest.raises(InputError) as caught:
        optim.OPTIMIZERS.entries[name](**SETTINGS[name] | dict.fromkeys(numbers, value))
    stated = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(stated) == sorted(f"optimizer.{key}" for key in numbers)


def test_numbers_of_numpy_are_those_of_python():
    params, g = {"kernel": jnp.ones(4)}, {"kernel": jnp.arange(4.0)}

    def step(kind):
        tx = optim.adamw(kind(0.5), b1=kind(0.5), weight_decay=kind(0.25))
        return tx.update(g, tx.init(params), params)[0]["kernel"]

    np.testing.assert_array_equal(step(np.float32), step(float))
    assert optim.apollo(1e-3, rank=np.int64(4), update_proj_gap=np.int32(2))


def test_a_number_without_a_range_is_an_error_of_who_wrote_it():
    def made(learning_rate: float = 1.0, sharpness: float | None = None):
        return learning_rate, sharpness

    with pytest.raises(TypeError, match="made: sharpness is a number without a range"):
        ranges.in_range(made)


def normal(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return values.astype(np.float32)


# Two layers of a matrix and a norm's scale, and two parameters that no layer has.
START = {
    "head": {"kernel": normal(16, 8) / 4},
    "hole": None,
    "layers": {
        "mlp": {"kernel": normal(2, 16, 24) / 4, "bias": np.zeros((2, 24), np.float32)},
        "norm": {"scale": np.ones((2, 16), np.float32)},
    },
}
X, TARGET = normal(64, 16), normal(64, 8, seed=1)


def loss(params):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    x, layers = X, params["layers"]
    for i in range(2):
        h = jnp.tanh(x * layers["norm"]["scale"][i] @ layers["mlp"]["kernel"][i])
        x = x + (h + layers["mlp"]["bias"][i])[:, :16]
    return jnp.mean(jnp.square(x @ params["head"]["kernel"] - TARGET))


def started(dtype="float32"):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), START)


def advanced(tx, params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value)
    return optax.apply_updates(params, updates), state


def trained(tx, params, steps):
    def body(carry, _):
        return advanced(tx, *carry), None

    run = jax.jit(
        lambda params: jax.lax.scan(body, (params, tx.init(params)), None, steps)[0]
    )
    params, state = run(params)
    return optim.evaluation_params(state, params), state


def test_nothing_and_single_numbers_are_parameters_too(name):
    params = {"layers": {"no": jnp.zeros((2, 0)), "one": jnp.ones(())}, "none": {}}
    tx, grads = make(name), jax.tree.map(jnp.ones_like, params)
    state, new = tx.init(params), params
    for _ in range(6):
        updates, state = tx.update(grads, state, new)
        new = optax.apply_updates(new, updates)
    assert new["layers"]["no"].shape == (2, 0)
    assert new["layers"]["one"].shape == () and new["layers"]["one"] < 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state) if x.ndim)


@pytest.mark.slow
def test_it_converges_around_holes(name):
    params, _ = trained(make(name), started(), STEPS)
    assert params["hole"] is None
    assert loss(params) < 0.35 * loss(started())


def test_bfloat16_parameters_keep_their_averages(name):
    params, state = trained(make(name), started("bfloat16"), STEPS)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    # What adds up small amounts must not be rounded to 8 bits of mantissa.
    narrow = [x for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16]
    assert not narrow
    assert loss(params) < 0.5 * loss(started())


def test_each_layer_of_a_stack_is_a_tensor_of_its_own(name):
    tx = make(name)
    matrix, grads = normal(2, 16, 32) / 4, normal(3, 2, 16, 32, seed=1)

    def split(x):
        return {"mlp0": {"kernel": x[0]}, "mlp1": {"kernel": x[1]}}

    def joined(x):
        return {"layers": {"kernel": x}}

    def course(form):
        params = jax.tree.map(jnp.asarray, form(matrix))
        state = tx.init(params)
        update = jax.jit(tx.update)
        for g in np.tile(grads, (4, 1, 1, 1)):
            value = jnp.ones(())
            updates, state = update(form(jnp.asarray(g)), state, params, value=value)
            params = optax.apply_updates(params, updates)
        return params

    stacked, apart = course(joined)["layers"]["kernel"], course(split)
    apart = np.stack([apart[f"mlp{i}"]["kernel"] for i in range(2)])
    assert np.max(np.abs(apart - matrix)) > 1e-4
    np.testing.assert_allclose(stacked, apart, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if optim.OPTIMIZERS[n].elementwise])
def test_zeros_beside_a_tensor_change_nothing_where_elements_are_apart(name):
    """Points of several ranks are padded so, see `sweep.padding`."""
    random = np.random.default_rng(3)
    start, *grads = random.normal(size=(6, 2, 7, 3)).astype(np.float32)
    tx = make(name)

    def course(more):
        padded = [np.pad(x, ((0, 0), (0, more), (0, 0))) for x in (start, *grads)]
        params = {"layers": {"b": jnp.asarray(padded[0])}}
        state, update = tx.init(params), jax.jit(tx.update)
        for g in padded[1:]:
            updates, state = update(
                {"layers": {"b": jnp.asarray(g)}}, state, params, value=jnp.ones(())
            )
            params = optax.apply_updates(params, updates)
        seen = optim.evaluation_params(state, params)
        return [np.asarray(x["layers"]["b"]) for x in (params, seen)]

    for own, wide in zip(course(0), course(5), strict=True):
        assert np.max(np.abs(own - start)) > 1e-4
        np.testing.assert_allclose(wide[:, :7], own, rtol=1e-6, atol=1e-7)
        assert not wide[:, 7:].any()


@pytest.mark.slow
def test_steps_do_not_recompile_and_a_checkpoint_goes_on_exactly(name, tmp_path):
    tx, traces = make(name), []

    @jax.jit
    def step(state):
        traces.append(1)
        params, opt_state = advanced(tx, state.params, state.opt_state)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    state = TrainState.create(started(), tx, jax.random.key(0))
    for _ in range(2):
        state = step(state)
    with Checkpoints(tmp_path, save_total_limit=1, fingerprint={}) as checkpoints:
        checkpoints.save(2, state, {})
        checkpoints.wait()
        template = TrainState.create(started(), tx, jax.random.key(0))
        restored, _ = checkpoints.restore(template)
    straight, resumed = step(step(state)), step(step(restored))
    assert len(traces) == 1
    leaves = zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True)
    for one, other in leaves:
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


# Prodigy's first estimate divides by the rate.
@pytest.mark.parametrize("name", [n for n in NAMES if n != "prodigy"])
def test_nothing_moves_at_a_rate_of_0(name):
    section = {"name": name, **SETTINGS[name], "learning_rate": 0.0}
    params, _ = trained(optim.make(section, {"name": "constant"}, 3), started(), 3)
    jax.tree.map(np.testing.assert_array_equal, params, started())
