"""LoRA: its start as PEFT's, its product and gradients, dropout, scales, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from jaxpeft import adapters, hardware, kernel
from jaxpeft.adapters import lora
from jaxpeft.errors import InputError

D_IN, D_OUT = 256, 128


def peft_lora(**settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT, bias=False))
    config = peft.LoraConfig(target_modules=["0"], **settings)
    return peft.get_peft_model(model, config).base_model.model[0]


def make(seed=0, base=None, **settings):
    base = jnp.zeros((D_IN, D_OUT)) if base is None else base
    return lora(base, jax.random.key(seed), **settings)


def normal(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_starts_as_peft_starts(init):
    settings = {"r": 64, "init_lora_weights": init}
    theirs, ours = peft_lora(**settings), make(**settings)
    pairs = [(theirs.lora_A, ours.a), (theirs.lora_B, ours.b)]
    for linear, found in pairs:
        expected = linear["default"].weight.detach().numpy().ravel()
        found = np.asarray(found).ravel()
        shares = np.linspace(0.01, 0.99, 25)
        # Quantiles of thousands of draws: a few percent of the spread.
        np.testing.assert_allclose(
            np.quantile(found, shares),
            np.quantile(expected, shares),
            atol=0.06 * expected.std(),
        )
        assert abs(np.abs(found).max() - np.abs(expected).max()) <= expected.std()
    assert bool(jnp.any(ours.b)) is (init is False)


def test_the_uniform_bound_is_one_over_the_root_of_the_width():
    a = np.abs(make(r=64).a)
    assert 0.999 / 16 < a.max() <= 1 / 16


def test_zero_is_a_place_to_load_into():
    node = make(r=4, init_lora_weights="zero")
    assert not jnp.any(node.a) and not jnp.any(node.b)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("r, alpha", [(8, 8), (5, 3)])
def test_the_scale_is_peft_s(r, alpha, use_rslora):
    settings = {"r": r, "lora_alpha": alpha, "use_rslora": use_rslora}
    expected = peft_lora(**settings).scaling["default"]
    np.testing.assert_allclose(make(**settings).scale, expected, rtol=1e-6)
    stacked = make(base=jnp.zeros((3, 32, 16)), **settings)
    np.testing.assert_allclose(stacked.scale, [expected] * 3, rtol=1e-6)
    assert stacked.shape == (3, 32, 16) and stacked.rank == r


def test_the_product_is_peft_s():
    x = normal(7, D_IN)
    theirs = peft_lora(r=8, lora_alpha=32, init_lora_weights=False)
    weights = (theirs.base_layer, theirs.lora_A["default"], theirs.lora_B["default"])
    base, a, b = (jnp.asarray(w.weight.detach().numpy().T) for w in weights)
    ours = make(base=base, r=8, lora_alpha=32).replace(a=a, b=b)
    expected = theirs(torch.from_numpy(np.array(x))).detach().numpy()
    np.testing.assert_allclose(x @ ours, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 24), (6, 24), (24,)])
def test_the_own_backward_pass_is_autodiff_s(shape):
    x, base, a, b = normal(*shape), normal(24, 10), normal(24, 3), normal(3, 10)
    node = make(base=base, r=3, lora_alpha=6)

    def ours(x, base, a, b):
        return jnp.sum(jnp.sin(x @ node.replace(base=base, a=a, b=b)))

    def plain(x, base, a, b):
        return jnp.sum(jnp.sin(x @ base + 2.0 * (x @ a) @ b))

    arguments = (x, base, a, b)
    found = jax.jit(jax.grad(ours, argnums=range(4)))(*arguments)
    expected = jax.jit(jax.grad(plain, argnums=range(4)))(*arguments)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_on_a_gpu_many_places_take_another_order_and_give_the_same(monkeypatch):
    many, few = normal(2, 300, 24), normal(2, 200, 24)
    node = make(base=normal(24, 10), r=3, init_lora_weights=False)

    def both(x):
        def total(x, a, b):
            return jnp.sum(jnp.sin(x @ node.replace(a=a, b=b)))

        return jax.value_and_grad(total, argnums=(0, 1, 2))(x, node.a, node.b)

    def kept_apart(x):
        return "optimization_barrier" in str(jax.make_jaxpr(lambda x: x @ node)(x))

    expected = both(many)
    assert not kept_apart(many)
    target = hardware.Target("gpu", "NVIDIA H100 80GB HBM3", 1)
    monkeypatch.setattr(hardware, "current", lambda: target)
    assert kept_apart(many) and not kept_apart(few)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        both(many),
        expected,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_base_has_a_float32_adapter(dtype):
    base, x = normal(D_IN, D_OUT).astype(dtype) / 16, normal(5, D_IN).astype(dtype)
    node = make(base=base, r=8, init_lora_weights=False)
    assert node.base.dtype == dtype
    assert node.a.dtype == node.b.dtype == node.scale.dtype == jnp.float32
    assert (x @ node).dtype == dtype and node.dense().dtype == jnp.float32
    exact = np.asarray(x, np.float32) @ np.asarray(node.dense())
    error = np.linalg.norm(np.asarray(x @ node, np.float32) - exact)
    assert error < 2 * float(jnp.finfo(dtype).eps) * np.linalg.norm(exact)

    def total(ab):
        return jnp.sum((x @ node.replace(a=ab[0], b=ab[1])).astype(jnp.float32))

    assert {g.dtype for g in jax.grad(total)((node.a, node.b))} == {jnp.dtype("f4")}


def test_dropout_touches_the_update_alone():
    base, x = normal(D_IN, D_OUT), normal(50, D_IN)
    node = make(base=base, r=8, lora_dropout=0.5, init_lora_weights=False)
    still = x @ node
    np.testing.assert_array_equal(still, x @ node.with_key(None))
    dropping = node.with_key(jax.random.key(3))
    noisy = x @ dropping
    np.testing.assert_array_equal(noisy, x @ dropping)
    dropped = kernel.dropout(x, 0.5, jax.random.key(3))
    expected = x @ base + (dropped @ node.a) @ node.b * node.scale
    np.testing.assert_allclose(noisy, expected, atol=1e-4)
    assert not np.allclose(noisy, still, atol=1e-2)


def test_axes_follow_the_kernel():
    node = make(base=jnp.zeros((3, 32, 16)), r=4).axes(("layers", "embed", "mlp"))
    assert node.base == ("layers", "embed", "mlp")
    assert node.a == ("layers", "embed", None)
    assert node.b == ("layers", None, "mlp")


REFUSED = {
    "rank zero": ({"r": 0}, "r: found 0"),
    "rank negative": ({"r": -3}, "r: found -3"),
    "rank above the matrix": ({"r": D_OUT + 1}, "r: found 129.*from 1 to 128"),
    "dropout one": ({"lora_dropout": 1.0}, "lora_dropout: found 1.0"),
    "dropout negative": ({"lora_dropout": -0.1}, "lora_dropout: found -0.1"),
    "init": ({"init_lora_weights": "pisa"}, "init_lora_weights: found 'pisa'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_out_of_range_are_refused(name):
    settings, message = REFUSED[name]
    with pytest.raises(InputError, match=f"adapter.{message}"):
        make(**settings)


def test_an_unknown_method_is_refused(llama):
    with pytest.raises(InputError, match="method: found 'lorra'.*'lora'"):
        adapters.inject(llama.params, {"method": "lorra"}, jax.random.key(0))


KEYS = {
    "unknown": ({"lora_alhpa": 16}, "lora_alhpa: found 16.*lora_alpha"),
    "text": ({"r": "4"}, "r: found '4'"),
    "flag": ({"r": True}, "r: found true"),
    "fraction": ({"r": 4.5}, "r: found 4.5"),
    "alpha": ({"lora_alpha": "x"}, "lora_alpha: found 'x'"),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_a_method_does_not_take_are_refused(name, llama):
    rules, message = KEYS[name]
    with pytest.raises(InputError, match=f"(?i)adapter.{message}"):
        adapters.inject(llama.params, {"method": "lora", **rules}, jax.random.key(0))
