"""Where activations lie, and in how many tiles: the same losses and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import adapters, kernel, models, tree
from jaxpeft.devices import host_memory, sharding
from jaxpeft.models import tiles

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def model(make_llama):
    return make_llama(num_hidden_layers=3, hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def parts(model):
    rules = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}
    rules["init_lora_weights"] = False
    params = adapters.inject(model.params, rules, jax.random.key(3))
    return tree.partition(params, adapters.trainable_mask(params))


def gradients(model, parts, **settings):
    """(loss, gradients by name) of a model that is run so."""
    cfg = dataclasses.replace(model.cfg, **settings)
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 61, (2, 50)))

    def loss(trainable, frozen):
        logits = models.forward(tree.combine(trainable, frozen), tokens, cfg)
        return jnp.mean(jnp.square(logits))

    value, grads = jax.jit(jax.value_and_grad(loss))(*parts)
    return np.asarray(value), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.slow
def test_offloaded_activations_change_no_bit(model, parts, remat):
    value, grads = gradients(model, parts, remat=remat)
    again, other = gradients(model, parts, remat=remat, offload="activations")
    assert value == again
    jax.tree.map(np.testing.assert_array_equal, grads, other)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.slow
def test_offloaded_weights_change_no_bit(model, parts, remat):
    value, grads = gradients(model, parts, remat=remat)
    trainable, frozen = parts
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    places = jax.tree.map(lambda x: sharding.replicated(mesh), frozen)
    layers = host_memory.placed_stacks(places, frozen)["model"]["layers"]
    places["model"]["layers"] = layers
    kinds = [place.memory_kind for place in jax.tree.leaves(layers)]
    assert kinds.count(host_memory.KIND) == 7
    there = trainable, jax.device_put(frozen, places)
    again, other = gradients(model, there, remat=remat, offload="both")
    assert value == again
    jax.tree.map(np.testing.assert_array_equal, grads, other)


# 50 tokens: tiles that divide them and tiles that do not, and one larger than all.
@pytest.mark.parametrize("tile", [25, 16, 64])
@pytest.mark.slow
def test_tiles_of_the_mlp_are_the_whole(model, parts, tile):
    value, grads = gradients(model, parts, remat="full")
    again, other = gradients(model, parts, remat="full", tile=tile)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for (name, g), (_, h) in zip(
        tree.named_leaves(grads), tree.named_leaves(other), strict=True
    ):
        scale = np.max(np.abs(g))
        assert scale > 0, name
        np.testing.assert_allclose(h, g, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_each_tile_drops_by_itself(model, parts):
    """Equal tokens come out unlike in two tiles, as they do in two places of one."""
    rules = {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj", "down_proj"]}
    rules |= {"init_lora_weights": False, "lora_dropout": 0.5}
    params = adapters.inject(model.params, rules, jax.random.key(3))
    dropping = kernel.with_dropout(params, jax.random.key(4))
    layer = up_proj(dropping)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(5), (16,)), (1, 32, 16))

    def own(part, number):
        weights = layer if number is None else kernel.with_part(layer, number)
        return kernel.linear(part, weights["up_proj"])[..., :16]

    out = tiles.over(own, x, 8).reshape(4, 8, -1)
    for other in out[1:]:
        assert not np.array_equal(other, out[0])
    # Without a key nothing differs between tiles.
    layer = up_proj(params)
    out = tiles.over(own, x, 8).reshape(4, 8, -1)
    np.testing.assert_array_equal(out, jnp.broadcast_to(out[:1], out.shape))


def up_proj(params):
    """The adapted kernel of one layer."""
    (node,) = (n for name, n in kernel.nodes(params).items() if "up_proj" in name)
    return {"up_proj": jax.tree.map(lambda x: x[0], node)}
