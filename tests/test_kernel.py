"""Kernels: how `x @ node` is reached, dense matrices, dropout by key."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpeft import kernel
from jaxpeft.adapters import LoRA


@struct.dataclass
class Doubled:
    """The matrix `2 * base`."""

    base: jax.Array

    @property
    def shape(self):
        return self.base.shape

    def __rmatmul__(self, x):
        return (x @ self.base) * 2

    def dense(self):
        return 2 * self.base

    def axes(self, base):
        return self.replace(base=base)


X = jnp.arange(6.0).reshape(2, 3)
BASE = jnp.arange(9.0).reshape(3, 3) / 9
EXPECTED = 2 * np.asarray(X) @ np.asarray(BASE)


def times(x, node):
    return x @ node


def scanned(x, node):
    stacked = jax.tree.map(lambda leaf: leaf[None], node)
    return jax.lax.scan(lambda x, layer: (x @ layer, None), x, stacked)[0]


@pytest.mark.parametrize("product", [times, scanned], ids=["plain", "scan"])
def test_matmul_reaches_the_node(product):
    node = Doubled(BASE)
    assert isinstance(node, kernel.Kernel)
    for call in (product, jax.jit(product), jax.checkpoint(product)):
        np.testing.assert_allclose(call(X, node), EXPECTED, rtol=1e-6)
    mapped = jax.vmap(product, in_axes=(0, None))(X[:, None], node)
    np.testing.assert_allclose(mapped[:, 0], EXPECTED, rtol=1e-6)


@pytest.mark.parametrize("product", [times, scanned], ids=["plain", "scan"])
def test_matmul_reaches_the_node_under_grad(product):
    def loss(x, node):
        return jnp.sum(jnp.sin(product(x, node)))

    def plain(x, base):
        return jnp.sum(jnp.sin(2 * (x @ base)))

    dx, dnode = jax.jit(jax.grad(loss, argnums=(0, 1)))(X, Doubled(BASE))
    assert isinstance(dnode, Doubled)
    expected = jax.grad(plain, argnums=(0, 1))(X, BASE)
    np.testing.assert_allclose(dx, expected[0], rtol=1e-5)
    np.testing.assert_allclose(dnode.base, expected[1], rtol=1e-5)


def test_nodes_and_arrays_are_told_apart():
    assert kernel.is_node(Doubled(BASE))
    assert not kernel.is_node(BASE)
    assert not kernel.is_node(np.asarray(BASE))
    params = {"a": {"kernel": Doubled(BASE)}, "b": {"kernel": BASE}}
    assert list(kernel.nodes(params)) == ["a.kernel"]


def test_dense_and_axes_of_both():
    assert kernel.dense(BASE.astype(jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_array_equal(kernel.dense(Doubled(BASE)), 2 * BASE)
    assert kernel.axes_of(BASE, ("embed", "mlp")) == ("embed", "mlp")
    assert kernel.axes_of(Doubled(BASE), ("embed", "mlp")).base == ("embed", "mlp")


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate):
    x = jnp.full((200, 300), 3.0)
    y = np.asarray(kernel.dropout(x, rate, jax.random.key(0)))
    kept = y != 0
    # 60,000 draws: five standard deviations of the share that is kept.
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / x.size) ** 0.5
    np.testing.assert_allclose(y[kept], 3.0 / (1 - rate), rtol=1e-6)


def test_dropout_is_a_function_of_its_key():
    x = jnp.ones((40, 50))
    one, same, other = (kernel.dropout(x, 0.5, jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.mean(np.asarray(one) != np.asarray(other)) > 0.4
    assert kernel.dropout(x.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == (
        jnp.bfloat16
    )


def adapter(dropout):
    return LoRA(
        base=jnp.zeros((2, 64, 8)),
        a=jnp.ones((2, 64, 1)),
        b=jnp.ones((2, 1, 8)),
        scale=jnp.ones(2),
        dropout=dropout,
    )


def test_with_dropout_reaches_each_adapter_that_drops():
    params = {"x": adapter(0.5), "y": adapter(0.5), "z": adapter(0.0), "w": BASE}
    assert kernel.with_dropout({"z": adapter(0.0)}, jax.random.key(0))["z"].key is None
    dropping = kernel.with_dropout(params, jax.random.key(0))
    assert dropping["z"].key is None and dropping["w"] is BASE
    data = [jax.random.key_data(dropping[name].key) for name in "xy"]
    # One key a layer and adapter, all different.
    assert len(np.unique(np.concatenate(data), axis=0)) == 4

    def outputs(params):
        x = jnp.ones((3, 64))
        return jax.lax.scan(lambda _, layer: (_, x @ layer), 0, params["x"])[1]

    first, again = (
        outputs(kernel.with_dropout(params, jax.random.key(s))) for s in (0, 0)
    )
    np.testing.assert_array_equal(first, again)
    other = outputs(kernel.with_dropout(params, jax.random.key(1)))
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(outputs(params), 64.0)


def test_what_a_kernel_does_not_say_has_its_default():
    node = Doubled(BASE.astype(jnp.bfloat16))
    assert not kernel.is_adapter(node) and kernel.trainable(node) == {}
    assert kernel.dropout_rate(node) is None and not kernel.drops(node)
    assert kernel.dense_bias(node, jnp.ones(3)) is None
    np.testing.assert_allclose(kernel.linear(X, Doubled(BASE), X[0]), EXPECTED + X[0])
    assert kernel.base_of(node) is node.base and kernel.base_of(BASE) is BASE
    view = np.zeros((4, 4))[:2]  # whose `base` is another thing
    assert kernel.base_of(view) is view
    assert kernel.dtype_of(Doubled(node)) == kernel.dtype_of(node.base) == jnp.bfloat16
    assert not isinstance(node, kernel.LayerwiseKernel)


def test_what_a_kernel_says_is_read():
    node = adapter(0.5)
    assert kernel.is_adapter(node) and list(kernel.trainable(node)) == ["a", "b"]
    assert kernel.dropout_rate(node) == 0.5 and kernel.drops(node)
    assert kernel.drops(adapter(0.0)) is False
    assert kernel.dropout_rate(adapter(0.0)) == 0.0


# Names that arrays and other things have too, of which anybody may ask.
COMMON = {"shape", "dtype"}


def asked(tree):
    """(line, name) of each `hasattr` and `getattr` with the name written out."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
            "hasattr",
            "getattr",
        ):
            name = call.args[1]
            if isinstance(name, ast.Constant):
                yield call.lineno, name.value


@pytest.mark.slow
def test_nobody_else_asks_a_node_which_members_it_has():
    package = Path(kernel.__file__).parent
    protocols = (kernel.Kernel, kernel.KernelExtras, kernel.LayerwiseKernel)
    members = {n for p in protocols for n in (*vars(p), *p.__annotations__)}
    members = {n for n in members if not n.startswith("_")} - COMMON
    assert {"TRAINABLE", "SHARED", "dropout", "with_key", "of_layer", "own"} <= members
    found = [
        f"{path.name}:{line} asks for {name}"
        for path in sorted(package.rglob("*.py"))
        if path != Path(kernel.__file__)
        for line, name in asked(ast.parse(path.read_text(encoding="utf-8")))
        if name in members
    ]
    assert not found, "declare a function in kernel.py"
