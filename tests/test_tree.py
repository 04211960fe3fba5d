"""Trees: names, splitting and filling, sizes, hashes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import tree
from jaxpeft.adapters import LoRA


@pytest.fixture
def params():
    def node(value):
        return LoRA(
            base=jnp.full((2, 4, 3), value, jnp.bfloat16),
            a=jnp.full((2, 4, 1), value),
            b=jnp.full((2, 1, 3), value),
            scale=jnp.ones(2),
        )

    return {
        "model": {"norm": {"scale": jnp.ones(4)}, "mlp": {"kernel": node(1.0)}},
        "head": {"kernel": jnp.zeros((4, 5), jnp.float16)},
    }


NAMES = {
    "model.norm.scale",
    "model.mlp.kernel.base",
    "model.mlp.kernel.a",
    "model.mlp.kernel.b",
    "model.mlp.kernel.scale",
    "head.kernel",
}


def test_names_follow_mappings_and_fields(params):
    named = tree.named_leaves(params)
    assert {name for name, _ in named} == NAMES
    leaves = jax.tree.leaves(params)
    assert all(x is y for (_, x), y in zip(named, leaves, strict=True))


def test_map_named_gives_each_leaf_its_name(params):
    mapped = tree.map_named(lambda name, leaf: (name, leaf.ndim), params)
    assert mapped["model"]["mlp"]["kernel"].a == ("model.mlp.kernel.a", 3)
    assert mapped["head"]["kernel"] == ("head.kernel", 2)


@pytest.mark.parametrize("chosen", [set(), {"model.mlp.kernel.a"}, NAMES])
def test_combine_undoes_partition(params, chosen):
    mask = tree.map_named(lambda name, _: name in chosen, params)
    trainable, frozen = tree.partition(params, mask)
    assert {name for name, _ in tree.named_leaves(trainable)} == chosen
    assert {name for name, _ in tree.named_leaves(frozen)} == NAMES - chosen
    for whole in (tree.combine(trainable, frozen), tree.combine(frozen, trainable)):
        assert jax.tree.structure(whole) == jax.tree.structure(params)
        pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True)
        assert all(x is y for x, y in pairs)


def test_only_the_true_part_meets_grad(params):
    mask = tree.map_named(lambda name, _: name.endswith((".a", ".b")), params)
    trainable, frozen = tree.partition(params, mask)

    def total(trainable):
        leaves = jax.tree.leaves(tree.combine(trainable, frozen))
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves)

    grads = jax.grad(total)(trainable)
    assert {name for name, _ in tree.named_leaves(grads)} == {
        "model.mlp.kernel.a",
        "model.mlp.kernel.b",
    }
    np.testing.assert_array_equal(grads["model"]["mlp"]["kernel"].a, 2.0)


def test_sizes_of_arrays_and_of_shapes(params):
    elements = 4 + 2 * 4 * 3 + 2 * 4 + 2 * 3 + 2 + 4 * 5
    size = 4 * 4 + 2 * 24 + 4 * (8 + 6 + 2) + 2 * 20
    for whole in (params, jax.eval_shape(lambda: params)):
        assert tree.count(whole) == elements
        assert tree.nbytes(whole) == size
    vast = {"x": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    assert tree.nbytes(vast) == 2**42


def changed(params):
    """The params with one thing different: a bit, a dtype, a shape, a name."""
    head = params["head"]["kernel"]
    yield {**params, "head": {"kernel": head.at[0, 0].set(-0.0)}}
    yield {**params, "head": {"kernel": head.astype(jnp.bfloat16)}}
    yield {**params, "head": {"kernel": head.T}}
    yield {**params, "head": {"weight": head}}
    yield {**params, "head": {}}


def test_the_digest_sees_bits_dtypes_shapes_and_names(params):
    digests = [tree.digest(p) for p in (params, *changed(params))]
    assert len(set(digests)) == len(digests)
    assert tree.digest(jax.tree.map(np.asarray, params)) == digests[0]


def test_the_digest_reads_random_keys():
    one, same, other = (tree.digest({"key": jax.random.key(s)}) for s in (1, 1, 2))
    assert one == same != other


def test_walk_keeps_nodes_whole(params):
    found = dict(tree.walk(params))
    assert list(found) == ["model.norm.scale", "model.mlp.kernel", "head.kernel"]
    assert found["model.mlp.kernel"] is params["model"]["mlp"]["kernel"]


def test_replace_changes_what_is_named_and_nothing_else(params):
    new = tree.replace(params, {"model.mlp.kernel": 7})
    assert new["model"]["mlp"]["kernel"] == 7
    assert new["model"]["norm"]["scale"] is params["model"]["norm"]["scale"]
    assert isinstance(params["model"]["mlp"]["kernel"], LoRA)
