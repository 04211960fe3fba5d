"""Our models as NNX modules: the same results, composed with a head of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxpeft import adapters, hf, models, tree
from jaxpeft.flax import Model

KEY = jax.random.key(0)
RULES = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(make_torch, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_torch().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(folder, RULES, KEY)


class Classifier(nnx.Module):
    def __init__(self, body, rngs):
        self.body = body
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.body.hidden_states(tokens)[:, -1])


def arrays(model, *filters):
    state = nnx.to_flat_state(nnx.state(model, *filters))
    return {".".join(map(str, path)): np.array(v[...]) for path, v in state}


def test_the_logits_are_those_of_torch(model, make_torch, call):
    with torch.no_grad():
        expected = make_torch()(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(call(model, TOKENS), expected, atol=2e-5)


def test_the_values_are_the_params(model, folder):
    cfg = models.config(folder)
    params = adapters.inject(hf.load(folder, cfg, dtype="float32"), RULES, KEY)
    values = model.values()
    assert jax.tree.structure(values) == jax.tree.structure(params)
    assert tree.digest(values) == tree.digest(params)
    layer = "params.model.layers"
    trained = {
        f"{layer}.self_attn.q_proj.kernel.a",
        f"{layer}.self_attn.q_proj.kernel.b",
        f"{layer}.mlp.down_proj.kernel.a",
        f"{layer}.mlp.down_proj.kernel.b",
    }
    assert set(arrays(model, nnx.LoRAParam)) == trained
    scales = {name[:-1] + "scale" for name in trained}
    weights = set(arrays(model, nnx.Param)) - trained
    assert set(arrays(model)) == weights | trained | scales
    assert len(weights) == 12


@pytest.mark.slow
def test_a_head_of_one_s_own_trains_beside_the_adapters(model):
    classifier = Classifier(nnx.clone(model), nnx.Rngs(0))
    trains = nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))
    before, trained = arrays(classifier), set(arrays(classifier, trains))
    optimizer = nnx.Optimizer(classifier, optax.adam(1e-2), wrt=trains)

    def loss(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model(TOKENS), jnp.arange(3)
        )
        return losses.mean()

    @nnx.jit
    def step(model, optimizer):
        of = nnx.DiffState(0, trains)
        value, grads = nnx.value_and_grad(loss, argnums=of)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(classifier, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    for name, value in arrays(classifier).items():
        assert np.array_equal(value, before[name]) is (name not in trained), name
    assert len(trained) == 6


@pytest.mark.slow
def test_dropout_follows_train_and_eval(folder, model, call):
    rules = {**RULES, "lora_dropout": 0.5, "init_lora_weights": False}
    dropping = Model.load(folder, rules, KEY)
    one, other = call(dropping, TOKENS), call(dropping, TOKENS)
    assert np.abs(one - other).max() > 1e-3
    dropping.eval()
    still = call(dropping, TOKENS)
    np.testing.assert_array_equal(still, call(dropping, TOKENS))
    expected = models.forward(dropping.values(), TOKENS, dropping.cfg)
    np.testing.assert_allclose(still, expected, atol=1e-5)


def test_a_quantized_base_and_a_saved_adapter(folder, model, tmp_path):
    moved = nnx.clone(model)
    state = nnx.state(moved, nnx.LoRAParam)
    nnx.update(moved, jax.tree.map(lambda x: x + 0.1, state))
    hf.save_adapter(moved.values(), tmp_path, moved.cfg)
    again = Model.load(folder, adapter=tmp_path, quantization="int8")
    for name, value in arrays(moved, nnx.LoRAParam).items():
        np.testing.assert_array_equal(arrays(again, nnx.LoRAParam)[name], value)
    kinds = {v.dtype for v in arrays(again, nnx.Param).values()}
    assert kinds == {np.dtype("float32")}
    graphdef, *states = nnx.split(again, nnx.LoRAParam, ...)
    merged = nnx.merge(graphdef, *states)
    assert tree.digest(merged.values()) == tree.digest(again.values())
