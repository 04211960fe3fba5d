"""LoRA over the variables of Linen models of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxpeft import kernel, tree
from jaxpeft.errors import InputError
from jaxpeft.flax import linen as adapt

KEY = jax.random.key(0)
R, SCALE = 2, 3.0
RULES = {"r": R, "lora_alpha": 6}


class Block(nn.Module):
    """Attention with DenseGeneral, then an MLP."""

    @nn.compact
    def __call__(self, x, _=None):
        attention = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")
        x = x + attention(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(24, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(16, name="down")(h), None


class VisionTransformer(nn.Module):
    """Images (batch, 8, 8, 3) to logits (batch, 5)."""

    scanned: bool = False

    @nn.compact
    def __call__(self, images, train=False):
        patches = nn.Conv(16, (4, 4), strides=4, padding="VALID", name="patches")
        x = patches(images).reshape(images.shape[0], -1, 16)
        x = x + self.param("places", nn.initializers.normal(0.1), (1, 4, 16))
        if self.scanned:
            layers = nn.scan(
                nn.remat(Block, prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            x, _ = layers(name="blocks")(x, None)
        else:
            for i in range(2):
                x, _ = Block(name=f"blocks_{i}")(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(5, name="head")(x.mean(1))


@pytest.fixture(scope="module")
def vit(images):
    """(model, its variables), layers by themselves"""
    model = VisionTransformer()
    return model, jax.jit(model.init)(KEY, images)


@pytest.fixture(scope="module")
def adapted(vit, images):
    model, variables = vit
    rules = {**RULES, "target_modules": r"patches|head|blocks_\d\..*"}
    return adapt.inject(model, variables, rules, KEY, images)


def moved(variables, size=0.1):
    """Every trained leaf away from its start, at random."""
    rng = np.random.default_rng(5)
    trains, frozen = tree.partition(variables, adapt.trainable_mask(variables))

    def away(x):
        return jnp.asarray(x + size * rng.normal(size=x.shape), jnp.float32)

    return tree.combine(jax.tree.map(away, trains), frozen)


def run(model, variables, *args, **kwargs):
    apply = jax.jit(lambda v: adapt.apply(model, v, *args, **kwargs))
    return apply(variables)


@pytest.mark.slow
def test_nothing_changes_at_the_start(vit, adapted, images):
    model, variables = vit
    assert len(kernel.nodes(adapted)) == 14
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_array_equal(run(model, adapted, images), expected)


@pytest.mark.slow
def test_merged_equals_unmerged(vit, adapted, images):
    model, variables = vit
    params = moved(adapted)
    merged = adapt.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    found, expected = run(model, params, images), jax.jit(model.apply)(merged, images)
    assert np.abs(found - jax.jit(model.apply)(variables, images)).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_a_short_training_run_moves_the_adapters_alone(vit, adapted, images):
    model, variables = vit
    mask = adapt.trainable_mask(adapted)
    trainable, frozen = tree.partition(adapted, mask)
    tx = optax.adam(1e-2)

    def loss(trainable, key):
        variables = adapt.with_dropout(tree.combine(trainable, frozen), key)
        rngs = {"dropout": key}
        logits = adapt.apply(model, variables, images, train=True, rngs=rngs)
        labels = jnp.arange(6) % 5
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @jax.jit
    def step(trainable, state, key):
        value, grads = jax.value_and_grad(loss)(trainable, key)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    state, losses = tx.init(trainable), []
    for i in range(40):
        trainable, state, value = step(trainable, state, jax.random.key(i))
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    after = jax.tree.leaves(tree.combine(trainable, frozen))
    rows = zip(tree.named_leaves(adapted), after, jax.tree.leaves(mask), strict=True)
    for (name, old), new, trains in rows:
        assert np.array_equal(old, new) is not trains, name
    originals = dict(tree.walk(variables))
    for name, node in kernel.nodes(adapted).items():
        assert node.base.values is originals[name]


@pytest.mark.slow
def test_scanned_and_rematerialised_layers_are_the_same_as_single_ones(images):
    scanned, single = VisionTransformer(scanned=True), VisionTransformer()
    variables = jax.jit(scanned.init)(KEY, images)
    rules = {**RULES, "target_modules": ["query", "out", "up", "head"]}
    stacked = moved(adapt.inject(scanned, variables, rules, KEY, images))
    assert stacked["params"]["blocks"]["up"]["kernel"].a.shape == (2, 16, R)
    params = dict(stacked["params"])
    blocks = params.pop("blocks")
    for i in range(2):
        params[f"blocks_{i}"] = jax.tree.map(lambda x, i=i: x[i], blocks)
    expected = run(single, {"params": params}, images)
    np.testing.assert_allclose(run(scanned, stacked, images), expected, atol=1e-5)
    merged = adapt.merge(stacked)
    np.testing.assert_allclose(
        jax.jit(scanned.apply)(merged, images), expected, atol=2e-5
    )


# name: (module, shape of the input, A's shape and B's beside an einsum of both)
KINDS = {
    "dense": (nn.Dense(5), (3, 2, 6), (6, R), (R, 5), "ir,ro->io"),
    "general": (
        nn.DenseGeneral((2, 3), axis=(1, -1)),
        (3, 5, 2, 4),
        (5, 4, R),
        (R, 2, 3),
        "nir,rab->niab",
    ),
    "batch": (
        nn.DenseGeneral(5, batch_dims=(0,)),
        (3, 2, 4),
        (3, 4, R),
        (3, R, 5),
        "bir,bro->bio",
    ),
    "einsum": (
        nn.Einsum((5, 4), "nd,md->mn"),
        (3, 4),
        (4, R),
        (R, 5),
        "dr,rm->md",
    ),
    "conv": (
        nn.Conv(5, (3, 2), strides=(2, 1), kernel_dilation=2),
        (2, 6, 7, 3),
        (3, 2, 3, R),
        (R, 5),
        "hwir,ro->hwio",
    ),
    "embed": (nn.Embed(9, 4), None, (9, R), (R, 4), "er,rf->ef"),
}


class Holder(nn.Module):
    inner: nn.Module
    attends: bool = False

    def __call__(self, x):
        y = self.inner(inputs=x)
        return (y, self.inner.attend(y)) if self.attends else y


@pytest.mark.parametrize("name", KINDS)
def test_the_update_is_that_of_the_weight_formed_by_hand(name):
    inner, shape, a, b, equation = KINDS[name]
    model = Holder(inner, name == "embed")
    x = jnp.asarray([[3, 0], [8, 3]])
    if shape is not None:
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    variables = jax.jit(model.init)(KEY, x)
    rules = {**RULES, "target_modules": ["inner"]}
    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype)
    params = moved(adapt.inject(model, variables, rules, KEY, shapes), 1.0)
    [node] = kernel.nodes(params).values()
    weight = "embedding" if name == "embed" else "kernel"
    values = np.asarray(variables["params"]["inner"][weight])
    delta = np.einsum(equation, node.a.reshape(a), node.b.reshape(b))
    changes = {f"params.inner.{weight}": jnp.asarray(values + SCALE * delta)}
    by_hand = tree.replace(variables, changes)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=3e-5),
        (run(model, params, x), adapt.merge(params)),
        (jax.jit(model.apply)(by_hand, x), by_hand),
    )


@pytest.mark.slow
def test_dropout_needs_a_key(vit, images):
    model, variables = vit
    rules = {**RULES, "lora_dropout": 0.5, "init_lora_weights": False}
    params = adapt.inject(model, variables, rules, KEY, images)

    @jax.jit
    def drop(key):
        return adapt.apply(model, adapt.with_dropout(params, key), images)

    dropping = [drop(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropping[0], dropping[1])
    for other in (run(model, params, images), dropping[2]):
        assert np.abs(dropping[0] - other).max() > 1e-3


@pytest.mark.slow
def test_what_cannot_be_adapted_is_refused(vit, adapted, images):
    model, variables = vit

    def inject(variables, **rules):
        return adapt.inject(model, variables, rules, KEY, images)

    with pytest.raises(InputError, match="'hed' matches no.*did you mean 'head'"):
        inject(variables, target_modules=["hed"])
    with pytest.raises(InputError, match="patches: has an adapter already; merge"):
        inject(adapted, target_modules=["patches"])
    boxed = jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), variables)
    with pytest.raises(InputError, match="head: found Partitioned.*meta.unbox"):
        inject(boxed, target_modules=["head"])
    with pytest.raises(InputError, match="adapter.r: found 8.*module 'head'"):
        inject(variables, r=8)
    adapted = inject(variables, r=2)  # all-linear: not the patches
    assert len(kernel.nodes(adapted)) == 13


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_apply_does_not_pass_over_adapters(name):
    inner, shape, *_ = KINDS[name]
    x = jnp.zeros((2,), int) if shape is None else jnp.zeros(shape)
    variables = inner.init(KEY, x)
    params = adapt.inject(inner, variables, {"r": 2, "target_modules": ".*"}, KEY, x)
    with pytest.raises((TypeError, ValueError)):
        inner.apply(params, x)
