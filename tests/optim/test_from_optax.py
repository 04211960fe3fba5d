"""Optimizers of optax by name: reached, checked, in 8 bits, resumed."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxpeft import config, optim
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.assembly.step import TrainState
from jaxpeft.errors import InputError
from jaxpeft.optim import from_optax
from jaxpeft.quant import Blockwise
from jaxpeft.rundir.checkpoint import Checkpoints

CONSTANT = {"name": "constant"}
NEEDS = {"galore": {"rank": 4}, "scale_by_galore": {"rank": 4}}
NAMES = from_optax.names()


def normal(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values, jnp.float32) / 4


def made(name, **keys):
    short = name.rpartition(".")[2]
    section = {"name": name, "max_grad_norm": None, **NEEDS.get(short, {}), **keys}
    if not optim.OPTIMIZERS[name].finds_rate:
        section = {"learning_rate": 0.02, **section}
    return optim.make(section, CONSTANT, 10)


def course(tx, params, grads):
    """The parameters after an update for each gradient, and the state."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
    return params, state


def test_what_is_not_reached_is_refused_with_a_reason():
    """No transformation of optax with a learning rate is forgotten."""
    for home in (optax, optax.contrib):
        for name, function in vars(home).items():
            known = inspect.isfunction(function) or type(function) is functools.partial
            if name.startswith("_") or not known:
                continue
            if "learning_rate" in inspect.signature(function).parameters:
                assert (name in NAMES) != (name in from_optax.REFUSED), name


@pytest.mark.parametrize("name", NAMES)
def test_each_moves_and_sees_the_layers_of_a_stack_apart(name):
    tx, matrices = made(f"optax.{name}"), normal(2, 4, 6)
    grads = [normal(2, 4, 6, seed=seed) for seed in (1, 2)]

    def split(x):
        return {"mlp0": {"kernel": x[0]}, "mlp1": {"kernel": x[1]}, "none": None}

    whole, state = course(
        tx,
        {"layers": {"kernel": matrices, "none": None}},
        [{"layers": {"kernel": g, "none": None}} for g in grads],
    )
    whole = whole["layers"]["kernel"]
    assert np.isfinite(whole).all() and np.any(whole != matrices)
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))
    if name == "noisy_sgd":
        return  # the noise is drawn by leaf
    apart, _ = course(tx, split(matrices), map(split, grads))
    apart = np.stack([apart[f"mlp{i}"]["kernel"] for i in range(2)])
    np.testing.assert_allclose(whole, apart, rtol=1e-5, atol=1e-7)


PLAIN = {
    "optax.adamax": optax.adamax(0.02, b1=0.8),
    "optax.contrib.ademamix": optax.contrib.ademamix(0.02, b1=0.8),
    "optax.nadam": optax.nadam(0.02, b1=0.8),
    "optax.scale_by_yogi": optax.chain(
        optax.scale_by_yogi(b1=0.8), optax.scale_by_learning_rate(0.02)
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_optax_s_own_with_the_keys_given(name):
    params = {"kernel": normal(4, 6)}
    grads = [{"kernel": normal(4, 6, seed=seed)} for seed in (1, 2, 3)]
    found, expected = (
        course(tx, params, grads)[0]
        for tx in (made(name, b1=0.8), optax.with_extra_args_support(PLAIN[name]))
    )
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["optax.adamw", "optax.nadam", "optax.scale_by_adam"])
def test_weight_decay_is_decoupled_and_leaves_out_norms(name):
    """With it or without it in optax's signature, as in our own."""
    params = {"norm": {"scale": jnp.ones(3)}, "mlp": {"kernel": jnp.ones((2, 3))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    new, _ = course(made(name, weight_decay=0.5), params, [zero])
    np.testing.assert_allclose(new["mlp"]["kernel"], 1 - 0.02 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new["norm"]["scale"], 1.0)
    new, _ = course(made(name, weight_decay=0.5, decay_all=True), params, [zero])
    np.testing.assert_allclose(new["norm"]["scale"], 1 - 0.02 * 0.5, rtol=1e-6)


def test_the_layers_of_a_stack_decay_as_it_does():
    params = {"layers": {"norm": {"scale": jnp.ones((2, 3))}, "k": jnp.ones((2, 2, 3))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    new, _ = course(made("optax.lamb", weight_decay=0.5), params, [zero])
    np.testing.assert_array_equal(new["layers"]["norm"]["scale"], 1.0)
    assert np.all(new["layers"]["k"] < 1)


def test_a_decay_that_optax_cannot_mask_is_refused_where_a_norm_trains():
    tx = made("momo", weight_decay=0.1)
    assert tx.init({"kernel": jnp.ones((2, 3))})
    with pytest.raises(InputError, match="optimizer.weight_decay: .*norm.scale is"):
        tx.init({"norm": {"scale": jnp.ones(3)}})
    tx = made("momo", weight_decay=0.1, decay_all=True)
    assert tx.init({"norm": {"scale": jnp.ones(3)}})


def test_the_schedule_reaches_it():
    section = {"name": "optax.sign_sgd", "learning_rate": 1.0, "max_grad_norm": None}
    tx = optim.make(section, {"name": "linear", "warmup_steps": 2}, 4)
    params, state = {"k": jnp.zeros(())}, None
    state, moved = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"k": jnp.ones(())}, state, params)
        moved.append(-float(updates["k"]))
    np.testing.assert_allclose(moved, [0.0, 0.5, 1.0, 0.5])


def test_those_that_find_their_rate_have_one_of_1_unless_it_is_given():
    for name in ("dog", "optax.contrib.dowg", "prodigy", "mechanic"):
        assert config.parse_section(
            "optimizer", {"name": name}, optim.OPTIMIZERS
        ).learning_rate == (1.0)
    given = {"name": "dog", "learning_rate": 0.5}
    section = config.parse_section("optimizer", given, optim.OPTIMIZERS)
    assert section.learning_rate == 0.5 and section.name == "optax.contrib.dog"
    with pytest.raises(InputError, match="finds its rate by itself"):
        optim.make_parts({"name": "momo"}, CONSTANT, 10, lambda count: 0.1)


def finding():
    """The names of all that find their rate, optax's and our own."""
    names = [*optim.OPTIMIZERS.entries, *(f"optax.{name}" for name in NAMES)]
    rows = {name: optim.OPTIMIZERS[name] for name in names}
    return sorted(name for name, row in rows.items() if row.finds_rate)


@pytest.mark.parametrize("name", finding())
def test_those_that_find_their_rate_move_after_a_warmup_from_zero(name):
    """Or say that they cannot begin so."""
    schedule = {"name": "cosine", "warmup_steps": 3}
    try:
        tx = optim.make({"name": name}, schedule, 40)
    except InputError as error:
        assert "the schedule begins at zero" in str(error)
        assert optim.OPTIMIZERS[name].divides_by_rate
        return
    params = {"k": normal(3, 4)}
    state, start = tx.init(params), params["k"]

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: jnp.sum(p["k"] ** 2))(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    assert np.all(np.isfinite(params["k"]))
    assert np.abs(params["k"] - start).max() > 1e-4


def test_mechanic_goes_around_another():
    params, grads = {"k": normal(3, 4)}, [{"k": normal(3, 4, seed=1)}] * 3
    inner = {"name": "optax.sgd", "momentum": 0.5}
    tx = made("mechanic", base_optimizer=inner, s_init=0.01)
    found, _ = course(tx, params, grads)
    plain = optax.contrib.mechanize(optax.sgd(1.0, momentum=0.5), s_init=0.01)
    expected, _ = course(optax.with_extra_args_support(plain), params, grads)
    np.testing.assert_allclose(found["k"], expected["k"], atol=1e-5)
    assert np.abs(found["k"] - params["k"]).max() > 1e-4
    for wrong, said in (
        ({"name": "optax.sgd", "momentun": 0.5}, "base_optimizer.momentun: found 0.5"),
        ("adamw", "optimizer.base_optimizer: found 'adamw'"),
        ("optax.lbfgs", "found 'optax.lbfgs'; it computes the loss again"),
    ):
        with pytest.raises(InputError, match=said):
            made("mechanic", base_optimizer=wrong)


MISTAKES = {
    "unknown": ({"name": "optax.adamaxx"}, "did you mean 'optax.adamax'"),
    "private": ({"name": "optax._adamw"}, "no optimizer of that name"),
    "a class": ({"name": "optax.GradientTransformation"}, "no optimizer of that name"),
    "no optimizer": ({"name": "optax.clip", "max_delta": 1.0}, "has no learning rate"),
    "line search": ({"name": "optax.lbfgs"}, "computes the loss again"),
    "curvature": ({"name": "optax.contrib.sophia"}, "asks for the loss as a function"),
    "averages": ({"name": "optax.contrib.schedule_free_adamw"}, "use our own"),
    "key": ({"name": "optax.adam", "beta1": 0.8}, "optimizer.beta1: .*of 'optax.adam'"),
    "type": ({"name": "optax.adam", "b1": "high"}, "optimizer.b1: .*must be a number"),
    "range": ({"name": "optax.adam", "b1": 1.5}, "optimizer.b1: found 1.5; must be a"),
    "flag": ({"name": "optax.adam", "nesterov": 1}, "optimizer.nesterov: .*true or"),
    "whole": ({"name": "optax.muon", "ns_steps": 2.5}, "optimizer.ns_steps: .*whole"),
    "dtype": ({"name": "optax.adam", "mu_dtype": "int8"}, "optimizer.mu_dtype: found"),
    "mask": ({"name": "optax.adamw", "mask": None}, "optimizer.mask: .*by the run"),
    "settings": (
        {"name": "optax.galore", "rank": 0},
        "optax refuses its settings: .*rank",
    ),
    "groups": (
        {"name": "optax.adam", "lora_plus_ratio": 4.0},
        "lora_plus_ratio: 'optax.adam' has one rate",
    ),
    "8 bits of 8 bits": (
        {"name": "adamw_8bit", "quantize_state": True},
        "optimizer.quantize_state: .*'adamw_8bit' keeps its state in few bits",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    section, message = MISTAKES[name]
    with pytest.raises(InputError, match=message) as caught:
        optim.make(section, CONSTANT, 10)
    assert len(caught.value.problems) == 1


def test_a_batch_size_has_no_rule_for_a_rate_that_is_found():
    sections = {
        "model": {"path": "x"},
        "data": {"train": {"path": "y"}},
        "optimizer": {"name": "dog"},
        "training": {"lr_scaling": "sqrt", "lr_reference_batch_size": 8},
    }
    with pytest.raises(InputError, match="lr_scaling: .*finds the rate by itself"):
        config.parse({"output_dir": "z", **sections}, tables=TABLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamax", "lamb", "contrib.ademamix", "dog", "momo"])
def test_in_8_bits_a_checkpoint_goes_on_exactly(name, tmp_path):
    name = name if name in optim.OPTIMIZERS.aliases else f"optax.{name}"
    tx = made(name, quantize_state=True)
    params = {"layers": {"kernel": normal(2, 64, 64)}}
    grads = [{"layers": {"kernel": normal(2, 64, 64, seed=seed)}} for seed in range(3)]

    @jax.jit
    def step(state, g):
        updates, opt_state = tx.update(g, state.opt_state, state.params, value=2.0)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    state = TrainState.create(params, tx, jax.random.key(0))
    kinds = jax.tree.leaves(state.opt_state, is_leaf=lambda x: type(x) is Blockwise)
    # DoG has two sums and the parameters' start, of which a code would be a step off.
    assert any(isinstance(x, Blockwise) for x in kinds) or name == "dog"
    state = step(state, grads[0])
    with Checkpoints(tmp_path, save_total_limit=1, fingerprint={}) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        fresh = TrainState.create(params, tx, jax.random.key(0))
        restored, _ = checkpoints.restore(fresh)
    straight, resumed = state, restored
    for g in grads[1:]:
        straight, resumed = step(straight, g), step(resumed, g)
    same = np.testing.assert_array_equal
    jax.tree.map(same, straight.params, resumed.params)
    jax.tree.map(same, straight.opt_state, resumed.opt_state)
