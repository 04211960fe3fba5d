"""What every adapter over every storage keeps to, one table for all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpeft import adapters, hf, kernel, models, quant, tree
from jaxpeft.adapters import saved
from jaxpeft.errors import InputError

# Settings for each entry of METHODS; a new method adds its line.
SETTINGS = {
    "bottleneck": {"reduction_factor": 2.0},
    "dora": {"r": 4, "lora_alpha": 16},
    "ia3": {},
    "lora": {"r": 4, "lora_alpha": 16},
    "lora_fa": {"r": 4, "lora_alpha": 16},
    "oft": {"oft_block_size": 8},
    "vera": {"r": 6},
}
METHODS = sorted(adapters.METHODS)
# Networks, for which there is no matrix that does the same.
UNMERGED = {"bottleneck"}
MERGED = [method for method in METHODS if method not in UNMERGED]
PISSA = {**SETTINGS["lora"], "init_lora_weights": "pissa"}
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=2)


def test_every_method_is_in_the_table():
    assert set(METHODS) == set(SETTINGS)


def build(method, base, key=KEY, **settings):
    given = {"adapted": ["mlp.up_proj"]} if method == "ia3" else {}
    settings = settings or SETTINGS[method]
    return adapters.METHODS[method](base, key, **settings, **given)


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


def stored(storage, stack):
    """A stack of matrices (layers, d_in, d_out) as the storage keeps it."""
    if storage == "array":
        return stack
    layers = [quant.KERNELS[storage](one, "float32") for one in stack]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


# What makes a node of a base, a stack of two layers of 64 x 64, and the base itself.
LAYERS, WIDTH = 2, 64
NODES = {
    "no adapter": lambda base: base,
    **{method: functools.partial(build, method) for method in METHODS},
    "lora, pissa": functools.partial(build, "lora", **PISSA),
    "modules_to_save": saved.save,
    "a layer alone": lambda base: adapters.Partly(base[1:], base, (1,)),
}
STORAGES = ("array", *sorted(quant.KERNELS))
CASES = [(name, storage) for name in NODES for storage in STORAGES]
CASES.remove(("no adapter", "array"))
CASES = [case for case in CASES if case[0] != "a layer alone" or case[1] == "array"]
cases = pytest.mark.parametrize(("name", "storage"), CASES)


@functools.cache
def base_of(storage):
    return stored(storage, 0.2 * normal(LAYERS, WIDTH, WIDTH))


@functools.cache
def fresh(name, storage):
    return NODES[name](base_of(storage))


@functools.cache
def inputs():
    return normal(3, 5, WIDTH)


def by_matrix(x, node, layer):
    """The outputs of one layer on a second path, (..., d_out)."""
    if not isinstance(node, adapters.Bottleneck):
        return x @ kernel.dense(node)[layer]
    y = x @ kernel.dense(node.base)[layer]
    inner = jax.nn.relu(y @ node.down[layer] + node.down_bias[layer])
    return y + node.scale[layer] * (inner @ node.up[layer] + node.up_bias[layer])


def product(x, node, layer):
    """Likewise as a model computes them."""
    return x @ kernel.layer(node, layer)


@jax.jit
def both(x, trainable, frozen, layer):
    """(outputs, gradients) of a layer's product, and those of its matrix.

    One program for a case: which layer is known when it runs.
    """

    def loss(x, trainable, outputs):
        y = outputs(x, tree.combine(trainable, frozen)["k"], layer)
        return jnp.sum(jnp.sin(y)), y

    def run(outputs):
        grad = jax.grad(loss, (0, 1), has_aux=True)
        gradients, y = grad(x, trainable, outputs)
        return y, gradients

    return run(product), run(by_matrix)


one_layer = jax.jit(product)


def split(node):
    """The two arguments of `both`: what trains, and what does not."""
    return tree.partition({"k": node}, adapters.trainable_mask({"k": node}))


@cases
def test_a_node_is_a_kernel(name, storage):
    node = fresh(name, storage)
    assert isinstance(node, kernel.Kernel) and kernel.is_node(node)
    assert node.shape == (LAYERS, WIDTH, WIDTH)
    assert kernel.is_adapter(node) is (name != "no adapter")
    axes = node.axes(("layers", "embed", "mlp"))
    for field, leaf in tree.named_leaves(node):
        found = functools.reduce(getattr, field.split("."), axes)
        assert len(found) == leaf.ndim, field
    if kernel.dropout_rate(node) is not None:
        dropping = dataclasses.replace(node, dropout=0.5)
        assert kernel.drops(dropping) and not kernel.drops(node)
        assert kernel.with_dropout({"k": dropping}, KEY)["k"].key.shape == (LAYERS,)


@cases
def test_nothing_changes_at_the_start(name, storage):
    node, base = fresh(name, storage), kernel.dense(base_of(storage))
    for layer in range(LAYERS):
        (found, _), (dense, _) = both(inputs(), *split(node), layer)
        expected = np.asarray(inputs()) @ np.asarray(base[layer])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(dense, expected, atol=1e-5)
    if name not in UNMERGED:
        assert kernel.dense(node).dtype == jnp.float32
        np.testing.assert_allclose(kernel.dense(node), base, atol=1e-6)


@cases
def test_product_and_gradients_are_those_of_the_dense_matrix(name, storage):
    params = {"k": fresh(name, storage)}
    params = moved(params) if kernel.is_adapter(params["k"]) else params
    trainable, frozen = split(params["k"])
    for layer in range(LAYERS):
        (y, found), (dense, expected) = both(inputs(), trainable, frozen, layer)
        np.testing.assert_allclose(y, dense, atol=1e-5)
        leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        for one, other in leaves:
            np.testing.assert_allclose(one, other, atol=5e-5)
        # Every leaf that trains moves, and no other one does.
        for (field, _), gradient in zip(
            tree.named_leaves(trainable), jax.tree.leaves(found[1]), strict=True
        ):
            alone = name == "a layer alone" and layer == 0
            assert bool(np.any(gradient)) is not alone, field
    fields = {field.split(".")[1] for field, _ in tree.named_leaves(trainable)}
    assert fields == set(kernel.trainable(params["k"]))


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


@pytest.mark.slow
def test_no_model_changes_at_the_start(injected, llama):
    expected = forward(llama.params, TOKENS, llama.cfg)
    np.testing.assert_allclose(
        forward(injected, TOKENS, llama.cfg), expected, atol=1e-6
    )
    assert len(kernel.nodes(injected)) == 7


@pytest.mark.slow
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
    drawn = adapters.TABLE[method].random
    assert (tree.digest(other) != tree.digest(injected)) is drawn


# Methods over every storage, then what else can train, over a model with biases.
RULES = {
    **{method: {"method": method, **SETTINGS[method]} for method in METHODS},
    "bitfit": {"method": "bitfit"},
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3},
    "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
}
SAVED = [(name, storage) for name in RULES for storage in STORAGES]
RULES |= {
    "lora, pissa": PISSA,
    "lora, ranks": {"r": 4, "rank_pattern": {"q_proj": 2}},
    "lora, a layer": {"r": 4, "layers_to_transform": [1]},
    "lora, embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "lora, biases": {"r": 4, "bias": "all"},
    "dora, biases of its own": {"method": "dora", "r": 4, "bias": "lora_only"},
    "ia3, biases": {"method": "ia3", "bias": "all"},
    "lora, modules": {"r": 4, "modules_to_save": ["lm_head", "norm", "v_proj"]},
    "vera, modules": {"method": "vera", "r": 6, "modules_to_save": ["o_proj"]},
}
SAVED += [(name, "array") for name in RULES if name not in dict(SAVED)]
SAVED += [("lora, pissa", "nf4")]  # which begins with a part of the base


@pytest.fixture(scope="module")
def square(make_llama):
    """A model whose layers' kernels are all of the table's shape, with biases."""
    return make_llama(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_key_value_heads=4,
        attention_bias=True,
    )


@pytest.fixture(scope="module")
def bases(square):
    """{storage: the model's params with the layers' kernels stored so}."""

    def of(storage):
        kernels = {
            name: stored(storage, value)
            for name, value in tree.walk(square.params)
            if ".layers." in name and name.endswith(".kernel")
        }
        return tree.replace(square.params, kernels)

    return {storage: of(storage) for storage in STORAGES}


def test_every_method_is_saved_in_the_table():
    methods = {rules.get("method", "lora") for rules in RULES.values()}
    assert methods == set(adapters.TABLE.entries) - {"full"}


@pytest.mark.parametrize(("name", "storage"), SAVED)
def test_what_may_train_can_be_saved(name, storage, square, bases, tmp_path):
    base = bases[storage]
    # Before training there are shapes alone.
    inject = functools.partial(adapters.inject, rules=RULES[name])
    shapes = jax.eval_shape(lambda params: inject(params, key=KEY), base)
    hf.check_writable(shapes, square.cfg)
    trained = moved(inject(base, key=KEY))
    hf.save_adapter(trained, tmp_path, square.cfg)
    again = dict(tree.walk(hf.load_adapter(base, tmp_path, square.cfg)))
    nodes = kernel.nodes(trained)
    assert {n for n, x in again.items() if kernel.is_node(x)} == set(nodes)
    for path, node in nodes.items():
        alike = jax.tree.structure(again[path]) == jax.tree.structure(node)
        if alike and tree.digest(again[path]) == tree.digest(node):
            continue  # the same node has the same outputs
        # PiSSA's come back at twice the rank; and what only B trains is a LoRA.
        for layer in range(LAYERS):
            found, expected = (
                one_layer(inputs(), k, layer) for k in (again[path], node)
            )
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=path)


@struct.dataclass
class Shifted:
    """The kernel `base + shift`, a method that no folder has a form for."""

    base: jax.Array
    shift: jax.Array

    TRAINABLE = ("shift",)

    @property
    def shape(self):
        return self.base.shape

    def __rmatmul__(self, x):
        return x @ self.dense()

    def dense(self):
        return self.base + self.shift

    def axes(self, base):
        return self.replace(base=base, shift=base)


def with_a(make):
    """Rules that put in a LoRA, and beside it what `make` makes of a kernel."""
    name = "model.layers.mlp.up_proj.kernel"

    def put(params):
        lora = {"r": 4, "target_modules": ["q_proj"]}
        params = adapters.inject(params, lora, KEY)
        return tree.replace(params, {name: make(dict(tree.walk(params))[name])})

    return put


# What is refused before it trains, {name: (what puts it in, what the refusal says)}.
REFUSED = {
    "a class without a form": (
        with_a(lambda base: Shifted(base, base)),
        r"mlp\.up_proj\.kernel: Shifted has no form .*; use another method",
    ),
    "two methods": (
        with_a(functools.partial(build, "ia3")),
        r"adapter\.method: found IA3 and LoRA .*; .* use one method",
    ),
    "a magnitude here and there": (
        with_a(functools.partial(build, "dora")),
        r"adapter\.method: found DoRA and LoRA .*; .* use one method",
    ),
    "virtual tokens beside a LoRA": (
        lambda params: adapters.prompt_tuning(
            adapters.inject(params, {"r": 4}, KEY), KEY
        ),
        r"adapter\.method: found LoRA and Virtual .*; .* use one method",
    ),
    "nothing left to adapt": (
        lambda params: adapters.inject(
            params, {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}, KEY
        ),
        r"adapter\.modules_to_save: .*q_proj.* use adapter\.method full",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_refused_before_it_trains(name, square, tmp_path):
    put, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        hf.check_writable(jax.eval_shape(put, square.params), square.cfg)
    with pytest.raises(InputError, match=said):
        hf.save_adapter(put(square.params), tmp_path / "adapter", square.cfg)
    assert not (tmp_path / "adapter").exists()
