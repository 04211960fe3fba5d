"""Where the transforms work: every optimizer in every place equals its plain course."""

import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jaxpeft import flax as peft
from jaxpeft import optim
from jaxpeft.errors import InputError

# Settings under which the small tensors here are quantized, projected and moved.
BLOCKS = {"block_size": 8, "min_quantized_size": 8}
SETTINGS = {
    "adamw_4bit": BLOCKS,
    "adamw_8bit": BLOCKS,
    "apollo": {"rank": 2, "update_proj_gap": 2},
    "galore": {"rank": 2, "update_proj_gap": 2},
    "lion_8bit": BLOCKS,
    "prodigy": {"learning_rate": 1.0, "d0": 1e-2},
    "schedule_free_radam": {"silent_sgd_phase": False},
    "sgd": {"momentum": 0.9},
}
OWN = sorted(optim.OPTIMIZERS.entries)
THEIRS = {f"quantized {name}": name for name in ("adamw", "lion", "rmsprop")}
NAMES = [*OWN, *THEIRS]


def make(name, **changed):
    if name in THEIRS:
        return optim.quantize_state(getattr(optax, THEIRS[name])(1e-2), **BLOCKS)
    own = {"learning_rate": 1e-2, **SETTINGS.get(name, {}), **changed}
    return optim.OPTIMIZERS.entries[name](**own)


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tree(seed):
    return {
        "dense": {"bias": normal(16, seed=seed), "kernel": normal(8, 16, seed=seed)}
    }


START = jax.tree.map(jnp.asarray, tree(0))
GRADS = [jax.tree.map(jnp.asarray, tree(seed)) for seed in (1, 2, 3)]


# Those that go through a tensor in a loop, which would be compiled anew at every call.
LOOPING = ("adamw_4bit", "adamw_8bit", "lion_8bit")


def course(tx, params, grads, jit=True):
    """The parameters and the state after an update for each gradient."""
    state, update = tx.init(params), jax.jit(tx.update) if jit else tx.update
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def quick_course(name):
    """Operation by operation, which is quicker than to compile what does not loop."""
    return functools.partial(course, jit=name in LOOPING)


@functools.cache
def plain(name):
    return course(make(name), START, GRADS)


def same(found, expected, atol=1e-6):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=atol)
    jax.tree.map(close, found, expected)


def with_head(tree, value):
    return {**tree, "head": jnp.full((3,), value)}


class Layer(nnx.Module):
    def __init__(self, arrays):
        self.bias, self.kernel = (nnx.Param(arrays[key]) for key in ("bias", "kernel"))


class Model(nnx.Module):
    def __init__(self, arrays):
        self.dense = Layer(arrays["dense"])


def in_nnx(tx):
    model = Model(START)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    for g in GRADS:
        step(model, optimizer, nnx.state(Model(g)))
    return nnx.to_pure_dict(nnx.state(model))


def in_train_state(tx):
    state = TrainState.create(apply_fn=None, params=START, tx=tx)
    step = jax.jit(lambda state, g: state.apply_gradients(grads=g))
    for g in GRADS:
        state = step(state, g)
    return state.params


def in_multi_transform(tx, run=course):
    labels = {"dense": "ours", "head": "frozen"}
    tx = optax.multi_transform({"ours": tx, "frozen": optax.set_to_zero()}, labels)
    grads = [with_head(g, 1.0) for g in GRADS]
    params, _ = run(tx, with_head(START, 2.0), grads)
    np.testing.assert_array_equal(params.pop("head"), 2.0)
    return params


def in_masked(tx, run=course):
    tx = optax.masked(tx, {"dense": True, "head": False})
    grads = [with_head(g, 1.0) for g in GRADS]
    params, _ = run(tx, with_head(START, 2.0), grads)
    np.testing.assert_array_equal(params.pop("head"), 5.0)
    return params


def in_multi_steps(tx):
    tx = optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation()
    return course(tx, START, [g for g in GRADS for _ in range(2)])[0]


def in_apply_if_finite(tx):
    broken = jax.tree.map(lambda x: x * jnp.nan, GRADS[0])
    tx = optax.apply_if_finite(tx, max_consecutive_errors=5)
    return course(tx, START, [GRADS[0], broken, *GRADS[1:]])[0]


def in_vmap(tx):
    def two(x):
        return jnp.stack([x, -2 * x])

    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(two, START)
    state, step = jax.vmap(tx.init)(params), jax.jit(jax.vmap(step))
    for g in GRADS:
        params, state = step(params, state, jax.tree.map(two, g))
    return jax.tree.map(lambda x: x[0], params)


def in_scan(tx):
    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params, grads):
        return jax.lax.scan(body, (params, tx.init(params)), grads)[0][0]

    return run(START, jax.tree.map(lambda *x: jnp.stack(x), *GRADS))


@jax.tree_util.register_dataclass
@dataclass
class Module:
    """What stands for a layer in libraries whose modules are trees that are called."""

    bias: Any
    kernel: Any

    def __call__(self, x):
        raise AssertionError("an optimizer has nothing to call a layer for")


def in_modules(tx, run=course):
    def modules(tree):
        return {"dense": Module(**tree["dense"])}

    params, _ = run(tx, modules(START), map(modules, GRADS))
    return {"dense": vars(params["dense"])}


def beside_nothing(tx, run=course):
    def with_empty(tree):
        return {**tree, "nothing": jnp.zeros((0, 4)), "none": None}

    params, _ = run(tx, with_empty(START), map(with_empty, GRADS))
    assert params.pop("nothing").shape == (0, 4) and params.pop("none") is None
    return params


def mesh_of(kind):
    """Two axes of four devices, or of the one there is: the types are the same."""
    shape = (2, 2) if jax.device_count() >= 4 else (1, 1)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(kind, kind))


def on_mesh(tx, mesh):
    """The course of split parameters, whose state lies where they do."""
    places = {"dense": {"bias": Spec("model"), "kernel": Spec("data", "model")}}
    places = jax.tree.map(functools.partial(NamedSharding, mesh), places)
    params = jax.device_put(START, places)
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    apply = jax.jit(optax.apply_updates)
    for g in GRADS:
        updates, new = update(jax.device_put(g, places), state, params)
        like = jax.tree.map(lambda x: x.sharding, (new, updates))
        if mesh.axis_types[0] == AxisType.Explicit:
            assert like == jax.tree.map(lambda x: x.sharding, (state, params))
        params, state = apply(params, updates), new
    return jax.device_get(params)


def on_explicit_mesh(tx):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        return on_mesh(tx, mesh)


def on_auto_mesh(tx):
    return on_mesh(tx, mesh_of(AxisType.Auto))


def in_shard_map(tx):
    """Every device has the parameters, and its own gradients are averaged."""
    mesh = mesh_of(AxisType.Auto)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(Spec(), Spec(), Spec("data")),
        out_specs=Spec(),
    )
    def step(params, state, g):
        g = jax.tree.map(lambda x: jax.lax.pmean(x[0], "data"), g)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params, state = START, tx.init(START)
    for g in GRADS:
        own = jax.tree.map(lambda x: jnp.stack([x] * mesh.shape["data"]), g)
        params, state = step(params, state, own)
    return jax.device_get(params)


# Place -> from a transformation to the parameters after the updates by GRADS.
PLACES: dict[str, Callable] = {
    "nnx.Optimizer": in_nnx,
    "flax TrainState": in_train_state,
    "optax.multi_transform": in_multi_transform,
    "optax.masked": in_masked,
    "optax.MultiSteps": in_multi_steps,
    "optax.apply_if_finite": in_apply_if_finite,
    "jax.vmap": in_vmap,
    "jax.lax.scan": in_scan,
    "modules that are trees": in_modules,
    "empty leaves": beside_nothing,
    "jax.shard_map": in_shard_map,
    "a mesh with Explicit axes": on_explicit_mesh,
    "a mesh with Auto axes": on_auto_mesh,
}
OTHERS = (
    "optax.inject_hyperparams",
    "complex parameters",
    "16-bit parameters",
    "leaves of 5 axes",
    "msgpack",
    "Orbax",
)
WRAPPED = (in_multi_transform, in_masked, in_modules, beside_nothing)


# What one device has nothing to say of; on four there is a test of its own.
SPREAD = ("jax.shard_map", "a mesh with Auto axes") if jax.device_count() < 4 else ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [place for place in PLACES if place not in SPREAD])
def test_it_goes_its_plain_course(name, place):
    params, _ = plain(name)
    moved = np.abs(params["dense"]["kernel"] - START["dense"]["kernel"])
    assert np.max(moved) > 1e-3
    how = {"run": quick_course(name)} if PLACES[place] in WRAPPED else {}
    same(PLACES[place](make(name), **how), params)


@pytest.mark.slow
def test_it_goes_its_plain_course_on_four_devices(of_devices):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "plain_course and (mesh or shard_map)"],
        env=of_devices(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def settings(name):
    """All settings of an optimizer; of optax's own, the rate alone."""
    if name in THEIRS:
        return {"learning_rate": 1e-2}
    parameters = inspect.signature(optim.OPTIMIZERS.entries[name]).parameters
    defaults = {k: p.default for k, p in parameters.items()}
    return defaults | {"learning_rate": 1e-2} | SETTINGS.get(name, {})


def whole_numbers(name):
    """The settings of which `optax.inject_hyperparams` would make arrays."""
    return [k for k, value in settings(name).items() if type(value) is int]


def injected(name, static_args, **changed):
    def theirs(learning_rate):
        tx = getattr(optax, THEIRS[name])(learning_rate)
        return optim.quantize_state(tx, **BLOCKS)

    own = name not in THEIRS
    factory = optim.OPTIMIZERS.entries[name] if own else theirs
    given = {"learning_rate": 1e-2, **SETTINGS.get(name, {}), **changed}
    return optax.inject_hyperparams(factory, static_args)(**given)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_may_be_injected(name):
    tx = injected(name, whole_numbers(name))
    params, state = course(tx, START, GRADS)
    # Numbers are float32 there: 1 - 0.9999 has three digits, as in the plain ones.
    numbers = {
        k: float(np.float32(x)) for k, x in settings(name).items() if type(x) is float
    }
    plainly = make(name) if name in THEIRS else make(name, **numbers)
    same(params, quick_course(name)(plainly, START, GRADS)[0], atol=3e-6)
    assert state.hyperparams.keys() >= numbers.keys()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "prodigy"])
def test_injected_numbers_go_along_to_an_explicit_mesh(name):
    mesh, tx = mesh_of(AxisType.Explicit), injected(name, whole_numbers(name))
    with jax.set_mesh(mesh):
        found = on_mesh(tx, mesh)
    same(found, plain(name)[0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if whole_numbers(name)])
def test_whole_numbers_are_not_injected(name):
    names = ", ".join(map(repr, whole_numbers(name)))
    with pytest.raises(InputError, match=rf"give static_args=\[{names}\]$"):
        injected(name, ()).init(START)


def test_an_injected_number_may_change_between_updates():
    tx = injected("adamw", (), b1=lambda count: 0.9 - 0.3 * count)
    state, update = tx.init(START), jax.jit(tx.update)
    _, state = update(GRADS[0], state, START)
    state.hyperparams["weight_decay"] = jnp.float32(0.5)
    found, _ = update(GRADS[1], state, START)

    first = make("adamw").init(START)
    _, first = make("adamw").update(GRADS[0], first, START)
    then = optim.adamw(1e-2, b1=0.6, weight_decay=0.5)
    same(found, then.update(GRADS[1], first, START)[0])


def test_a_mask_is_not_injected():
    factory = optax.inject_hyperparams(optim.adamw)
    with pytest.raises(InputError, match=r"static_args=\['mask'\]$"):
        factory(1e-2, mask=lambda params: False).init(START)


@pytest.mark.parametrize(
    "make",
    [optim.adamw, functools.partial(optim.prodigy, d0=1.0)],
    ids=["adamw", "prodigy"],
)
def test_a_mask_that_can_be_called_is_a_tree(make):
    make = functools.partial(make, 1e-2, weight_decay=0.5)
    mask = {"dense": Module(False, True)}
    params, grads = ({"dense": Module(**x["dense"])} for x in (START, GRADS[0]))

    def step(mask):
        tx = make(mask=mask)
        return vars(tx.update(grads, tx.init(params), params)[0]["dense"])

    found, decayed, plain = step(mask), step(None), step(lambda params: False)
    same(found, {"bias": plain["bias"], "kernel": decayed["kernel"]})
    assert np.abs(decayed["bias"] - plain["bias"]).max() > 1e-4
    same(step(functools.partial(lambda mask, params: mask, mask)), found)


@pytest.mark.parametrize("name", NAMES)
def test_complex_parameters_are_refused_with_the_wrapper_that_trains_them(name):
    def complex_of(tree, other):
        return jax.tree.map(lambda x, y: x + 1j * y, tree, other)

    params, g = complex_of(START, GRADS[2]), complex_of(*GRADS[:2])
    if name in OWN:
        message = r"^dense.bias: found complex64; .*contrib.split_real_and_imaginary"
        with pytest.raises(InputError, match=message):
            make(name).init(params)
    wrapped = optax.contrib.split_real_and_imaginary(make(name))
    updates, _ = wrapped.update(g, wrapped.init(params), params)
    assert all(np.abs(x.imag).min() > 0 for x in jax.tree.leaves(updates))


def updated(name, tx, g, params):
    update = jax.jit(tx.update) if name in LOOPING else tx.update
    return update(g, tx.init(params), params)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_16_bits_get_the_change_of_their_values(name):
    def narrow(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    params, g = narrow(START), narrow(GRADS[0])
    tx = getattr(optax, THEIRS[name])(1e-2) if name in THEIRS else make(name)
    if name in OWN:  # in float32, whatever the parameters are
        wide_params, wide_g = (
            jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (params, g)
        )
    else:  # as optax has it, whose state is that of the parameters
        wide_params, wide_g = params, g
    expected, _ = updated(name, tx, wide_g, wide_params)
    found, _ = updated(name, make(name), g, params)
    same(found, expected)
    assert found["dense"]["kernel"].dtype == expected["dense"]["kernel"].dtype
    trained = optax.apply_updates(params, found)
    assert trained["dense"]["kernel"].dtype == jnp.bfloat16


# Those that keep means by rows and columns of the last two axes.
FACTORED = ("adafactor", "adalomo", "came")


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_of_5_axes_is_no_matrix(name):
    """It trains as the same numbers in one row do, or in a pile of matrices."""
    # The last axis is no multiple of a block, which then are those of the flat leaf.
    shape = (2, 1, 2, 3, 6)
    other = (4, 3, 6) if name in FACTORED else (72,)
    arrays = [jnp.asarray(normal(*shape, seed=seed)) for seed in range(3)]
    deep, flat = (
        quick_course(name)(make(name), *run)[0]["deep"]
        for run in (
            ({"deep": arrays[0]}, [{"deep": g} for g in arrays[1:]]),
            (
                {"deep": arrays[0].reshape(other)},
                [{"deep": g.reshape(other)} for g in arrays[1:]],
            ),
        )
    )
    assert np.abs(deep - arrays[0]).max() > 1e-4
    same(deep.reshape(other), flat)


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_through_msgpack(name):
    _, state = plain(name)
    data = serialization.to_bytes(state)
    assert_identical(serialization.from_bytes(make(name).init(START), data), state)


@pytest.mark.slow
def test_every_state_goes_through_orbax(tmp_path):
    states = {name: plain(name)[1] for name in NAMES}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        fresh = {name: make(name).init(START) for name in NAMES}
        assert_identical(checkpointer.restore(tmp_path / "states", fresh), states)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_adapters_train_in_nnx_as_the_readme_says(name):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs))
    rules = {"r": 4, "target_modules": r"layers\.[01]"}
    model = peft.inject(model, rules, jax.random.key(0))
    tx = optax.chain(optax.clip_by_global_norm(1.0), make(name))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    start = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    grads = [
        jax.tree.map(lambda x, seed=seed: normal(*x.shape, seed=seed), start)
        for seed in range(2)
    ]

    def step(model, optimizer, g):
        optimizer.update(model, g)

    step = nnx.jit(step) if name in LOOPING else step
    for g in grads:
        state = nnx.state(model, nnx.LoRAParam)
        nnx.replace_by_pure_dict(state, g)
        step(model, optimizer, state)
    trained = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    same(trained, quick_course(name)(tx, start, grads)[0])
    assert optimizer.step[...] == 2


def test_what_flax_says_of_a_parameter_holds_for_the_arrays_of_its_shape():
    kernel = nnx.Param(START["dense"]["kernel"], meaning="in, out")
    model = Model({"dense": {**START["dense"], "kernel": kernel[...]}})
    model.dense.kernel = kernel
    optimizer = nnx.Optimizer(model, optim.adafactor(1e-2, beta1=0.9), wrt=nnx.Param)
    state = optimizer.opt_state.leaves["dense"]["kernel"]
    assert state.mu.get_metadata()["meaning"] == "in, out"
    assert "meaning" not in state.nu.row.get_metadata()

    boxed = {"kernel": linen.Partitioned(START["dense"]["kernel"], ("in", "out"))}
    tx = optim.adafactor(1e-2, beta1=0.9)
    specs = linen.get_partition_spec(tx.init(boxed)).leaves["kernel"]
    assert specs.mu == jax.sharding.PartitionSpec("in", "out")
    assert specs.nu.row == jax.sharding.PartitionSpec()
    grads = [{"kernel": boxed["kernel"].replace(value=GRADS[0]["dense"]["kernel"])}] * 2
    done, _ = course(tx, boxed, grads)
    want, _ = course(tx, *linen.unbox((boxed, grads)))
    np.testing.assert_array_equal(done["kernel"].value, want["kernel"])


def test_averages_are_read_from_the_state_in_nnx():
    tx, model = optim.schedule_free_sgd(0.1), Model(START)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for g in GRADS:
        optimizer.update(model, nnx.state(Model(g)))
    params = nnx.state(model, nnx.Param)
    averaged = optim.evaluation_params(optimizer.opt_state, params)
    trained, state = course(tx, START, GRADS)
    want = optim.evaluation_params(state, trained)
    same(nnx.to_pure_dict(averaged), want)
    assert np.abs(want["dense"]["kernel"] - trained["dense"]["kernel"]).max() > 1e-3


def test_evaluations_steer_the_rate_in_nnx():
    tx = optax.chain(make("adamw"), optim.scale_by_plateau(factor=0.5, patience=0))
    model = Model(START)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for loss in (1.0, 2.0):
        optimizer.opt_state = nnx.data(optim.observe(optimizer.opt_state, loss))
    assert optim.rate_factor(optimizer.opt_state) == 0.5
    optimizer.update(model, nnx.state(Model(GRADS[0])))
    whole, _ = course(make("adamw"), START, GRADS[:1])
    half = jax.tree.map(lambda x, y: (x + y) / 2, START, whole)
    same(nnx.to_pure_dict(nnx.state(model)), half)


def test_the_documentation_lists_the_places():
    pages = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
    table = pages.split("## Where they work")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE) == [*PLACES, *OTHERS]
