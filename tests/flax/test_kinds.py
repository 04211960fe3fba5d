"""Every kind of NNX module beside the same one with W + scale A B formed by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpeft.errors import InputError
from jaxpeft.flax import inject, merge
from jaxpeft.flax.nnx import Adapted

KEY = jax.random.key(0)
R = 2
SETTINGS = {"r": R, "lora_alpha": 6, "init_lora_weights": False}
SCALE = 3.0


def later(kind, *args, **settings):
    """Makes the module when called: collecting the tests computes nothing."""
    return lambda: kind(*args, rngs=nnx.Rngs(0), **settings)


linear = partial(later, nnx.Linear)
general = partial(later, nnx.LinearGeneral)
einsum = partial(later, nnx.Einsum)
conv = partial(later, nnx.Conv)


# name: (makes the module, shape of the input, A's shape, B's beside an einsum of both)
KINDS = {
    "linear": (linear(6, 5), (3, 2, 6), (6, R), (R, 5), "ir,ro->io"),
    "outputs": (general(6, (2, 4)), (3, 6), (6, R), (R, 2, 4), "ir,rno->ino"),
    "inputs": (
        general((2, 4), 6, axis=(-2, -1)),
        (3, 2, 4),
        (2, 4, R),
        (R, 6),
        "nir,ro->nio",
    ),
    "apart": (
        general((5, 4), (2, 3), axis=(1, -1)),
        (3, 5, 2, 4),
        (5, 4, R),
        (R, 2, 3),
        "nir,rab->niab",
    ),
    "inner": (general(5, 6, axis=-2), (3, 5, 2), (5, R), (R, 6), "ir,ro->io"),
    "batch": (
        general(4, 5, batch_axis={0: 3}),
        (3, 2, 4),
        (3, 4, R),
        (3, R, 5),
        "bir,bro->bio",
    ),
    "einsum": (
        einsum("btd,ndh->btnh", (3, 4, 5), (3, 5)),
        (2, 6, 4),
        (4, R),
        (R, 3, 5),
        "dr,rnh->ndh",
    ),
    "experts": (
        einsum("...ed,edh->...eh", (3, 4, 5)),
        (2, 6, 3, 4),
        (3, 4, R),
        (3, R, 5),
        "edr,erh->edh",
    ),
    "transposed": (einsum("nd,md->mn", (5, 4)), (3, 4), (4, R), (R, 5), "dr,rm->md"),
    "conv": (
        conv(3, 5, (3, 2), strides=(2, 1)),
        (2, 6, 7, 3),
        (3, 2, 3, R),
        (R, 5),
        "hwir,ro->hwio",
    ),
    "circular": (
        conv(3, 5, 3, padding="CIRCULAR", kernel_dilation=2, use_bias=False),
        (2, 8, 3),
        (3, 3, R),
        (R, 5),
        "wir,ro->wio",
    ),
    "causal": (
        conv(3, 5, 3, padding="CAUSAL"),
        (8, 3),
        (3, 3, R),
        (R, 5),
        "wir,ro->wio",
    ),
    "embed": (later(nnx.Embed, 9, 4), None, (9, R), (R, 4), "er,rf->ef"),
}


class Holder(nnx.Module):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize("name", KINDS)
def test_the_update_is_that_of_the_weight_formed_by_hand(name, call):
    make, shape, a, b, equation = KINDS[name]
    module = make()
    rng = np.random.default_rng(0)
    x = jnp.asarray([[3, 0], [8, 3]])
    if shape is not None:
        x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    rules = {**SETTINGS, "target_modules": ["inner"]}
    adapted = inject(Holder(module), rules, KEY)
    layer = adapted.inner
    assert isinstance(layer, Adapted)
    matrices = (layer.lora_a, layer.lora_b)
    parts = [rng.normal(size=m.shape).astype(np.float32) for m in matrices]
    for matrix, values in zip(matrices, parts, strict=True):
        matrix.set_value(jnp.asarray(values))
    delta = np.einsum(equation, parts[0].reshape(a), parts[1].reshape(b))
    by_hand = nnx.clone(module)
    weight = by_hand.embedding if name == "embed" else by_hand.kernel
    weight.set_value(jnp.asarray(np.asarray(weight[...]) + np.float32(SCALE) * delta))
    merged = merge(adapted).inner
    assert type(merged) is type(module)
    found = getattr(merged, "embedding" if name == "embed" else "kernel")
    np.testing.assert_allclose(found[...], weight[...], atol=1e-5)
    np.testing.assert_allclose(call(adapted, x), call(by_hand, x), rtol=1e-5, atol=3e-5)
    if name == "embed":
        query = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
        expected = by_hand.attend(query)
        np.testing.assert_allclose(layer.attend(query), expected, atol=3e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_output_has_the_dtype_that_it_had(dtype):
    module = Holder(linear(6, 5, dtype=dtype, param_dtype=jnp.bfloat16)())
    adapted = inject(module, SETTINGS, KEY)
    for x in (jnp.ones((2, 6)), jnp.ones((2, 6), jnp.bfloat16)):
        assert adapted(x).dtype == module(x).dtype
    assert adapted.inner.lora_a.dtype == adapted.inner.lora_b.dtype == jnp.float32
    assert merge(adapted).inner.kernel.dtype == jnp.bfloat16
    assert merge(adapted, jnp.float32).inner.kernel.dtype == jnp.float32


class Squared(nnx.Linear):
    """No product with its kernel, whatever its base class does."""

    def __call__(self, x):
        return super().__call__(x) ** 2


REFUSED = {
    "groups": (conv(4, 4, 3, feature_group_count=2), "found.*feature_group_count 2"),
    "mask": (conv(1, 1, 1, mask=np.ones((1, 1, 1))), "found.*a mask"),
    "no outputs": (einsum("bij,ij->b", (4, 3)), "'bij,ij->b'.*leave this module out"),
    "summed": (einsum("bi,ij->b", (4, 3)), "'bi,ij->b'.*leave this module out"),
    "rank": (linear(4, 1), "adapter.r: found 2"),
    "own": (later(Squared, 4, 4), "no module that can be adapted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_low_rank_update_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        inject(Holder(make()), {"r": 2, "target_modules": ["inner"]}, KEY)


@pytest.mark.slow
def test_names_that_match_nothing_are_refused(vit):
    with pytest.raises(InputError, match="'hed' matches no.*did you mean 'head'"):
        inject(vit, {"target_modules": ["hed"]}, KEY)
    with pytest.raises(InputError, match="alhpa: found 3.*did you mean 'lora_alpha'"):
        inject(vit, {"lora_alhpa": 3}, KEY)
    with pytest.raises(InputError, match="method: found 'dora'.*lora"):
        inject(vit, {"method": "dora"}, KEY)


def test_a_model_with_adapters_gets_no_others(vit):
    adapted = inject(vit, {"r": 2}, KEY)
    with pytest.raises(InputError, match=r"blocks\.0\..*merge its adapters first"):
        inject(adapted, {"r": 2}, KEY)
    inject(merge(adapted), {"r": 2}, KEY)
