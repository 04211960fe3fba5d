"""A frozen base in the host's memory: the same bits, and where its arrays lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import adapters, hf, models, quant, tree
from jaxpeft.adapters.dora import column_squares
from jaxpeft.assembly import configuration
from jaxpeft.assembly.places import check_offload, make_places
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.devices import host_memory, sharding
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError

ADAM = optax.adam(1e-2)
TARGETS = ["q_proj", "down_proj"]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}
RULES = {
    "lora": {**LORA, "init_lora_weights": False},
    "pissa": {**LORA, "init_lora_weights": "pissa"},
    "saved": {**LORA, "modules_to_save": ["up_proj"]},
}


@pytest.fixture(scope="module")
def model(make_llama):
    return make_llama(num_hidden_layers=3, hidden_size=64, intermediate_size=64)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 61, (2, 2, 12)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=-1),
        "supervised": np.ones(tokens.shape, bool),
        "positions": np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape),
    }


def base_of(model, storage):
    """The base with its layers' kernels stored so."""
    if storage == "none":
        return model.params
    make = jax.vmap(lambda matrix: quant.KERNELS[storage](matrix, "float32"))
    kernels = {
        name: make(value)
        for name, value in tree.walk(model.params)
        if name.startswith("model.layers.") and name.endswith(".kernel")
    }
    return tree.replace(model.params, kernels)


def trained(cfg, base, rules, mesh, batch):
    """(state after two steps, frozen), the base where `cfg` wants it from the start."""
    bare = make_places(base, cfg, mesh, ADAM).params
    params = adapters.inject(sharding.put(base, bare), rules, jax.random.key(3))
    places = make_places(params, cfg, mesh, ADAM)
    params = sharding.put(jax.tree.map(jnp.copy, params), places.params)
    trainable, frozen = tree.partition(params, places.mask)
    state = TrainState.create(trainable, ADAM, jax.random.key(7))
    state = jax.device_put(state, places.state)
    step = Compiled(
        make_train_step(cfg, ADAM), "step", lambda text: None, carries=True, mesh=mesh
    )
    for _ in range(2):
        state, metrics = step(state, Frozen(frozen), batch)
    return state, frozen, float(metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "method", "offload", "remat"),
    [
        ("none", "saved", "both", "none"),
        ("fp8", "lora", "weights", "full"),
        ("int8", "pissa", "both", "dots"),
    ],
)
def test_weights_in_the_hosts_memory_stay_there_and_change_no_bit(
    model, mesh, batch, storage, method, offload, remat
):
    base, found = base_of(model, storage), []
    for where in ("none", offload):
        cfg = dataclasses.replace(model.cfg, remat=remat, offload=where)
        state, frozen, loss = trained(cfg, base, RULES[method], mesh, batch)
        found.append((loss, *map(np.asarray, jax.tree.leaves(state.params))))
        theirs = frozen["model"]["layers"]
        kinds = {
            name: x.sharding.memory_kind
            for name, x in tree.named_leaves(theirs)
            if x.ndim >= 3 and "start_" not in name
        }
        wanted = "device" if where == "none" else host_memory.KIND
        assert len(kinds) >= 6 and set(kinds.values()) == {wanted}, kinds
        # All else is where it is read at once.
        others = [
            frozen["model"]["embed_tokens"],
            state.params,
            theirs["input_layernorm"],
        ]
        for x in jax.tree.leaves((others, state.params)):
            assert x.sharding.memory_kind == "device"
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dora_begins_with_the_norms_of_what_lies_in_the_hosts_memory(mesh):
    stack = jax.random.normal(jax.random.key(0), (3, 5, 4))
    there = host_memory.placed(sharding.replicated(mesh))
    squares = column_squares(jax.device_put(stack, there))
    np.testing.assert_array_equal(squares, column_squares(stack))


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "nf4"])
def test_weights_are_read_straight_into_the_hosts_memory(asset_model, mesh, storage):
    loaded = [
        hf.load(
            asset_model,
            models.config(asset_model, offload=offload),
            mesh=mesh,
            quantization=storage,
        )
        for offload in ("none", "weights")
    ]
    for (name, one), (_, other) in zip(*map(tree.named_leaves, loaded), strict=True):
        np.testing.assert_array_equal(one, other)
        there = "model.layers." in name and one.ndim >= 3
        wanted = host_memory.KIND if there else "device"
        assert (one.sharding.memory_kind, other.sharding.memory_kind) == (
            "device",
            wanted,
        ), name


@pytest.mark.parametrize("offload", ["weights", "both"])
def test_weights_that_train_stay_on_the_devices(mesh, offload):
    more = [f"model.offload={offload}", "output_dir=nowhere"]
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", more)
    check_offload(cfg, mesh)
    full = [*more, "adapter={method: full}"]
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", full)
    told = rf"model\.offload: found '{offload}' with adapter\.method full; .* set "
    with pytest.raises(InputError, match=told + r"model\.offload: activations"):
        check_offload(cfg, mesh)
