"""Adapters of one's own models on the disk, exchanged with PEFT over a torch model."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxpeft import flax as adapt
from jaxpeft import kernel
from jaxpeft.errors import InputError
from jaxpeft.flax import linen

KEY = jax.random.key(0)
TARGETS = ["patches", "blocks.0", "words"]
SETTINGS = {"r": 3, "lora_alpha": 6, "use_rslora": True}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
WORDS = np.array([[1, 4], [8, 0]])


class Torch(torch.nn.Module):
    """Image patches and words, through two linear layers."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 6, (4, 2), stride=(4, 2), padding=(2, 1))
        self.words = torch.nn.Embedding(9, 6)
        self.blocks = torch.nn.ModuleList(
            [torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)]
        )

    def forward(self, images, words):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.words(words)], 1)
        return self.blocks[1](torch.tanh(self.blocks[0](x)))


class Flax(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        padding = [(2, 2), (1, 1)]
        self.patches = nnx.Conv(3, 6, (4, 2), (4, 2), padding=padding, rngs=rngs)
        self.words = nnx.Embed(9, 6, rngs=rngs)
        layers = [nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)]
        self.blocks = nnx.List(layers)

    def __call__(self, images, words):
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, 6)
        x = jnp.concatenate([x, self.words(words)], 1)
        return self.blocks[1](jnp.tanh(self.blocks[0](x)))


@pytest.fixture(scope="module")
def torch_model():
    torch.manual_seed(0)
    return Torch().eval()


@pytest.fixture(scope="module")
def model(torch_model):
    state = {name: t.numpy() for name, t in torch_model.state_dict().items()}
    flax = Flax(nnx.Rngs(0))
    flax.words.embedding.set_value(jnp.asarray(state["words.weight"]))
    kernel = state["patches.weight"].transpose(2, 3, 1, 0)
    flax.patches.kernel.set_value(jnp.asarray(kernel))
    flax.patches.bias.set_value(jnp.asarray(state["patches.bias"]))
    for i in range(2):
        layer = flax.blocks[i]
        layer.kernel.set_value(jnp.asarray(state[f"blocks.{i}.weight"].T))
        layer.bias.set_value(jnp.asarray(state[f"blocks.{i}.bias"]))
    return flax


@pytest.fixture(scope="module")
def trained(model):
    """With adapters away from their start."""
    rules = {**SETTINGS, "target_modules": TARGETS}
    adapted = adapt.inject(model, rules, KEY)
    rng = np.random.default_rng(3)

    def away(x):
        return jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    nnx.update(adapted, jax.tree.map(away, nnx.state(adapted, nnx.LoRAParam)))
    return adapted


@pytest.fixture
def folder(trained, tmp_path):
    adapt.save(trained, tmp_path / "adapter")
    return tmp_path / "adapter"


def of_torch(model):
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model(images, torch.from_numpy(WORDS)).numpy()


run = nnx.jit(lambda model: model(IMAGES, WORDS))


@pytest.mark.slow
def test_peft_computes_the_same_with_what_is_saved(torch_model, model, trained, folder):
    expected = run(trained)
    assert np.abs(expected - run(model)).max() > 0.1
    np.testing.assert_allclose(of_torch(torch_model), run(model), atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(torch_model), folder)
    np.testing.assert_allclose(of_torch(theirs.eval()), expected, rtol=1e-4, atol=1e-4)


def test_what_peft_saved_is_loaded(torch_model, model, tmp_path):
    torch.manual_seed(1)
    other = Torch()
    other.load_state_dict(torch_model.state_dict())
    config = peft.LoraConfig(
        target_modules=TARGETS,
        rank_pattern={"words": 2},
        alpha_pattern={"blocks.0": 20},
        **SETTINGS,
    )
    theirs = peft.get_peft_model(other, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours = adapt.load(model, tmp_path)
    expected = of_torch(theirs.eval())
    np.testing.assert_allclose(run(ours), expected, rtol=1e-4, atol=1e-4)


def test_a_saved_adapter_comes_back_bit_for_bit(model, trained, folder):
    again = adapt.load(model, folder)
    assert nnx.graphdef(again) == nnx.graphdef(trained)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(trained))


def test_names_that_end_others_are_kept_apart(tmp_path):
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(4, 4, rngs=rngs)
            self.deep = nnx.Dict(inner=nnx.Linear(4, 4, rngs=rngs))

    model = Pair(nnx.Rngs(0))
    adapted = adapt.inject(model, {"r": 2, "target_modules": "inner"}, KEY)
    adapt.save(adapted, tmp_path)
    again = adapt.load(model, tmp_path)
    assert nnx.graphdef(again) == nnx.graphdef(adapted)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.DenseGeneral((2, 3), name="split")(x).reshape(x.shape), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        settings = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(Layer, length=2, **settings)(name="layers")(x, None)[0]


def test_stacked_linen_layers_come_back_bit_for_bit(tmp_path):
    model, x = Stack(), jnp.ones((3, 6))
    variables = model.init(KEY, x)
    rules = {"r": 2, "init_lora_weights": False}
    params = linen.inject(model, variables, rules, KEY, x)
    linen.save(params, tmp_path)
    again = linen.load(model, variables, tmp_path, x)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    [node] = kernel.nodes(again).values()
    assert node.a.shape == (2, 6, 2)
    with pytest.raises(InputError, match="layers.split: has an adapter already"):
        linen.load(model, params, tmp_path, x)


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_does_not_belong_together_is_refused(model, trained, folder, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        adapt.save(model, tmp_path / "none")
    with pytest.raises(InputError, match="LoRAParam already"):
        adapt.load(trained, folder)
    with pytest.raises(InputError, match="adapter_config.json: missing"):
        adapt.load(model, tmp_path)
    change_config(folder, r=2)
    with pytest.raises(InputError, match=r"shape \(3, 6\), expected.*\(2, 6\)"):
        adapt.load(model, folder)
    change_config(folder, r=3, target_modules=["patches", "blocks"])
    with pytest.raises(InputError, match="words.*belongs to no module"):
        adapt.load(model, folder)
    change_config(folder, target_modules=[*TARGETS, "blocks.1"])
    with pytest.raises(InputError, match="blocks.1.*is missing"):
        adapt.load(model, folder)
