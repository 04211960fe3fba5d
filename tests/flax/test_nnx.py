"""LoRA on NNX models of one's own: the start, training, merging, what is adapted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxpeft.flax import nnx as adapt

KEY = jax.random.key(0)
VIT = r"patches|head|blocks\..*"
GEMMA = r"embed|layers\..*"


def rules(pattern, **settings):
    return {"r": 2, "lora_alpha": 6, "target_modules": pattern, **settings}


def moved(model):
    """The model with its adapters' arrays away from their start, at random."""
    rng = np.random.default_rng(5)
    model = nnx.clone(model)
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), state))
    return model


def arrays(model, *filters):
    state = nnx.to_flat_state(nnx.state(model, *filters))
    return {".".join(map(str, path)): np.array(v[...]) for path, v in state}


@pytest.fixture(scope="module", params=["vit", "gemma"])
def case(request):
    """(plain model, adapted model away from its start, an input)"""
    if request.param == "vit":
        model, x, pattern = "vit", "images", VIT
    else:
        model, x, pattern = "gemma", "tokens", GEMMA
    model, x = (request.getfixturevalue(name) for name in (model, x))
    return model, adapt.inject(model, rules(pattern), KEY), x


@pytest.mark.slow
def test_nothing_changes_at_the_start(case, call):
    model, adapted, x = case
    np.testing.assert_array_equal(call(adapted, x), call(model, x))


def test_merged_equals_unmerged(case, call):
    model, adapted, x = case
    adapted = moved(adapted)
    merged = adapt.merge(adapted)
    assert jax.tree.structure(nnx.state(merged)) == jax.tree.structure(nnx.state(model))
    assert np.abs(call(adapted, x) - call(model, x)).max() > 0.1
    np.testing.assert_allclose(call(merged, x), call(adapted, x), atol=2e-5)


@pytest.mark.slow
def test_a_short_training_run_moves_the_adapters_alone(case):
    model, adapted, x = case
    original, adapted = arrays(model), nnx.clone(adapted)
    before = arrays(adapted)
    optimizer = nnx.Optimizer(adapted, optax.adam(1e-2), wrt=nnx.LoRAParam)

    def loss(model):
        logits = model(x)
        labels = jnp.arange(logits[..., 0].size).reshape(logits.shape[:-1]) % 5
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @nnx.jit
    def step(model, optimizer):
        trains = nnx.DiffState(0, nnx.LoRAParam)
        value, grads = nnx.value_and_grad(loss, argnums=trains)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(adapted, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    after, trained = arrays(adapted), arrays(adapted, nnx.LoRAParam)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) is (name not in trained), name
    assert {name.rsplit(".", 1)[-1] for name in trained} == {"lora_a", "lora_b"}
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, original[name])


@pytest.mark.slow
def test_dropout_follows_train_and_eval(vit, images, call):
    settings = {"lora_dropout": 0.5, "init_lora_weights": False}
    model = adapt.inject(vit, rules(VIT, **settings), KEY)
    first, second = call(model, images), call(model, images)
    assert np.abs(first - second).max() > 1e-3
    model.eval()
    still = call(model, images)
    np.testing.assert_array_equal(still, call(model, images))
    np.testing.assert_allclose(call(adapt.merge(model), images), still, atol=1e-4)
    again = adapt.inject(vit, rules(VIT, **settings), KEY)
    np.testing.assert_array_equal(call(again, images), first)


class Stack(nnx.Module):
    """Three layers in one module, run by scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,))
        def make(rngs):
            return nnx.Linear(6, 6, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, layer):
            return jnp.tanh(layer(x))

        return through(x, self.layers)


@pytest.mark.slow
def test_layers_stacked_in_one_module_are_adapted_one_by_one(call):
    settings = {"lora_dropout": 0.1, "init_lora_weights": False}
    model = adapt.inject(Stack(nnx.Rngs(0)), rules("layers", **settings), KEY)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    assert np.abs(call(model, x) - call(model, x)).max() > 1e-4
    model.eval()
    layers = model.layers
    expected = np.asarray(x)
    for i in range(3):
        update = np.asarray(layers.lora_a[i]) @ np.asarray(layers.lora_b[i])
        weight = np.asarray(layers.base.kernel[i]) + 3.0 * update
        expected = np.tanh(expected @ weight + np.asarray(layers.base.bias[i]))
    np.testing.assert_allclose(call(model, x), expected, atol=1e-5)
    np.testing.assert_allclose(call(adapt.merge(model), x), expected, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.slow
def test_an_update_that_begins_in_the_base(init, vit, images, call, tmp_path):
    settings = rules(VIT, init_lora_weights=init, exclude_modules=["head"])
    model = adapt.inject(vit, settings, KEY)
    np.testing.assert_allclose(call(model, images), call(vit, images), atol=1e-5)
    up = model.blocks[0].up
    values = np.linalg.svd(np.asarray(up.base.kernel[...]), compute_uv=False)
    started = np.asarray(up.lora_scale[...] * up.lora_start_a @ up.lora_start_b[...])
    if init == "pissa":
        found = np.linalg.svd(started, compute_uv=False)[:2]
        np.testing.assert_allclose(found, values[:2], rtol=1e-4)
    model = moved(model)
    expected = call(model, images)
    assert np.abs(expected - call(vit, images)).max() > 0.1
    np.testing.assert_allclose(call(adapt.merge(model), images), expected, atol=1e-4)
    adapt.save(model, tmp_path)
    np.testing.assert_allclose(
        call(adapt.load(vit, tmp_path), images), expected, atol=1e-4
    )


def test_ranks_and_exclusions_by_name(vit):
    patterns = {"rank_pattern": {"blocks.0.*": 3}, "alpha_pattern": {"down": 9}}
    settings = rules("all-linear", exclude_modules=r".*\.up|head", **patterns)
    model = adapt.inject(vit, settings, KEY)
    assert model.blocks[0].down.lora_a.shape == (24, 3)
    assert model.blocks[1].down.lora_a.shape == (24, 2)
    assert float(model.blocks[0].down.lora_scale[...]) == 3.0
    assert float(model.blocks[1].attention.query.lora_scale[...]) == 3.0
    frozen = adapt.inject(vit, rules(["up"], method="lora_fa"), KEY)
    assert {n.rsplit(".", 1)[-1] for n in arrays(frozen, nnx.LoRAParam)} == {"lora_b"}
    assert isinstance(model.blocks[0].up, nnx.Linear)
    assert isinstance(model.head, nnx.Linear) and isinstance(model.patches, nnx.Conv)
