"""What every adapter method keeps to, one table for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import adapters, kernel, models, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step

# Settings for each entry of METHODS; a new method adds its line.
SETTINGS = {
    "bottleneck": {"reduction_factor": 2.0},
    "dora": {"r": 4, "lora_alpha": 16},
    "ia3": {},
    "lora": {"r": 4, "lora_alpha": 16},
    "lora_fa": {"r": 4, "lora_alpha": 16},
    "vera": {"r": 6},
}
METHODS = sorted(adapters.METHODS)
# Networks, for which there is no matrix that does the same.
UNMERGED = {"bottleneck"}
MERGED = [method for method in METHODS if method not in UNMERGED]
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)
BATCH = {
    "tokens": TOKENS[None],
    "targets": np.roll(TOKENS, -1, axis=1)[None],
    "supervised": np.ones((1, 2, 12), bool),
    "positions": np.broadcast_to(np.arange(12, dtype=np.int32), (1, 2, 12)),
}
forward = jax.jit(models.forward, static_argnums=2)


def test_every_method_is_in_the_table():
    assert set(METHODS) == set(SETTINGS)


def build(method, base, key=KEY):
    given = {"module": "mlp.up_proj"} if method == "ia3" else {}
    return adapters.METHODS[method](base, key, **SETTINGS[method], **given)


def moved(params, size=0.1):
    """Every trainable leaf away from its start, at random."""
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    rng = np.random.default_rng(5)

    def away(x):
        return jnp.asarray(x + size * rng.normal(size=x.shape), jnp.float32)

    return tree.combine(jax.tree.map(away, trainable), frozen)


def normal(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


@functools.cache
def node_and_input(method):
    node = moved({"kernel": build(method, normal(24, 10))})["kernel"]
    return node, normal(3, 5, 24)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def rules(method):
    everywhere = {"target_modules": "all-linear"}
    return {"method": method, **everywhere, **SETTINGS[method]}


@pytest.fixture
def injected(rules, llama):
    return adapters.inject(llama.params, rules, KEY)


def test_nothing_changes_at_the_start(method, injected, llama):
    expected = forward(llama.params, TOKENS, llama.cfg)
    np.testing.assert_allclose(
        forward(injected, TOKENS, llama.cfg), expected, atol=1e-6
    )
    nodes = kernel.nodes(injected).items()
    assert len(nodes) == 7
    originals = dict(tree.walk(llama.params))
    if method in MERGED:
        for name, node in nodes:
            np.testing.assert_allclose(
                node.dense(), originals[name], atol=1e-6, err_msg=name
            )


def test_a_node_is_a_kernel(method):
    node, _ = node_and_input(method)
    assert isinstance(node, kernel.Kernel) and kernel.is_node(node)
    assert node.shape == (24, 10)
    axes = node.axes(("embed", "mlp"))
    for name, leaf in tree.named_leaves(node):
        found = functools.reduce(getattr, name.split("."), axes)
        assert len(found) == leaf.ndim, name


@pytest.mark.parametrize("method", MERGED, indirect=True)
def test_the_product_is_that_of_the_dense_matrix(method):
    node, x = node_and_input(method)
    dense = node.dense()
    assert dense.dtype == jnp.float32
    np.testing.assert_allclose(x @ node, x @ dense, atol=1e-5)


@pytest.mark.parametrize("method", MERGED, indirect=True)
def test_stacked_layers_are_independent(method):
    stack = moved({"kernel": build(method, normal(3, 24, 10))})["kernel"]
    _, x = node_and_input(method)
    for layer in range(3):
        node = kernel.layer(stack, layer)
        expected = x @ stack.dense()[layer]
        np.testing.assert_allclose(x @ node, expected, atol=1e-5)


@pytest.mark.parametrize("method", MERGED, indirect=True)
def test_gradients_are_those_of_the_dense_matrix(method):
    node, x = node_and_input(method)
    trainable, frozen = tree.partition(
        {"k": node}, adapters.trainable_mask({"k": node})
    )

    def loss(x, trainable, product):
        return jnp.sum(jnp.sin(product(x, tree.combine(trainable, frozen)["k"])))

    grad = jax.grad(loss, argnums=(0, 1))
    found = jax.jit(lambda x, t: grad(x, t, lambda x, k: x @ k))(x, trainable)
    expected = jax.jit(lambda x, t: grad(x, t, lambda x, k: x @ k.dense()))(
        x, trainable
    )
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("method", MERGED, indirect=True)
def test_merged_and_unmerged_give_the_same_logits(injected, llama):
    params = moved(injected, 0.05)
    merged = adapters.merge(params)
    assert not kernel.nodes(merged)
    assert jax.tree.structure(merged) == jax.tree.structure(llama.params)
    expected = forward(params, TOKENS, llama.cfg)
    assert np.max(np.abs(expected - forward(llama.params, TOKENS, llama.cfg))) > 0.1
    np.testing.assert_allclose(forward(merged, TOKENS, llama.cfg), expected, atol=1e-5)


@pytest.mark.parametrize("method", MERGED, indirect=True)
def test_merging_keeps_the_dtype_of_the_base_or_the_one_asked_for(method):
    base = normal(3, 24, 10).astype(jnp.bfloat16)
    params = {"x": {"kernel": moved({"k": build(method, base)})["k"]}}
    assert adapters.merge(params)["x"]["kernel"].dtype == jnp.bfloat16
    merged = adapters.merge(params, jnp.float32)["x"]["kernel"]
    assert merged.dtype == jnp.float32
    np.testing.assert_allclose(merged, params["x"]["kernel"].dense(), rtol=1e-6)


def test_the_adapter_is_float32_over_any_base(rules, llama):
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama.params)
    params = adapters.inject(base, rules, KEY)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    assert {x.dtype for x in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    frozen_base = [x for n, x in tree.named_leaves(frozen) if n.endswith("base")]
    assert {x.dtype for x in frozen_base} == {jnp.dtype("bfloat16")}


def test_only_masked_leaves_move_in_a_step(injected, llama):
    params = moved(injected)
    before = jax.tree.map(np.array, params)
    mask = adapters.trainable_mask(params)
    trainable, frozen = tree.partition(params, mask)
    tx = optax.adam(1e-3)
    step = jax.jit(make_train_step(llama.cfg, tx))
    state, metrics = step(TrainState.create(trainable, tx, KEY), Frozen(frozen), BATCH)
    after = tree.combine(state.params, frozen)
    for (name, new), old, trains in zip(
        tree.named_leaves(after), jax.tree.leaves(before), jax.tree.leaves(mask)
    ):
        assert np.array_equal(new, old) is not trains, name
    assert {n.rsplit(".", 1)[-1] for n, _ in tree.named_leaves(state.params)} == set(
        next(iter(kernel.nodes(params).values())).TRAINABLE
    )
    assert np.isfinite(metrics["loss"])


def test_more_leaves_can_be_made_to_train(injected):
    mask = adapters.trainable_mask(injected, also=["norm.scale", "q_proj.kernel.base"])
    chosen = {name for name, trains in tree.named_leaves(mask) if trains}
    assert "model.norm.scale" in chosen
    assert "model.layers.self_attn.q_proj.kernel.base" in chosen
    assert "model.layers.input_layernorm.scale" not in chosen
    assert "model.layers.self_attn.k_proj.kernel.base" not in chosen


def test_the_start_depends_on_the_key_alone(method, rules, injected, llama):
    again = adapters.inject(llama.params, rules, KEY)
    assert tree.digest(again) == tree.digest(injected)
    other = adapters.inject(llama.params, rules, jax.random.key(1))
    random = method not in ("ia3", "vera")  # the second has a seed of its own
    assert (tree.digest(other) != tree.digest(injected)) is random
