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
