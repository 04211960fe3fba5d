"""MFU: what training on a token computes, beside what XLA counts and the device can."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.hardware import devices
from jaxpeft.plan import flops
from jaxpeft.train import utilisation

WIDTH, TOKENS = 16, 8


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "full"])
def test_the_operations_are_those_of_the_products(trains):
    def loss(adapter, weight, x):
        return jnp.sum((x * adapter) @ weight @ weight)

    arguments = (jnp.ones(WIDTH), jnp.ones((WIDTH, WIDTH)), jnp.ones((TOKENS, WIDTH)))
    wanted = (0, 1) if trains else (0,)
    counted = flops.count(jax.make_jaxpr(jax.grad(loss, wanted))(*arguments))
    total = 2 * WIDTH**2  # the weight is used twice
    # Looked up, not multiplied: a table beside it costs nothing.
    said = flops.per_token(total + 99, total * trains, 99)
    assert said * TOKENS == pytest.approx(counted, rel=0.01)


def test_it_is_said_where_the_peak_is_known(monkeypatch):
    cfg = SimpleNamespace(
        activation_dtype=None,
        experts=None,
        tie_word_embeddings=True,
        vocab_size=8,
        hidden_size=4,
    )
    run = SimpleNamespace(
        base=SimpleNamespace(cfg=cfg, dtype="bfloat16"),
        mesh=SimpleNamespace(devices=np.array(jax.devices()[:1]), size=1),
        trainable={"a": jnp.ones(10), "b": None},
        frozen={"a": None, "b": jnp.ones(90)},
    )
    assert utilisation.mfu_per_speed(run) is None
    monkeypatch.setitem(devices.DEVICES, "cpu", devices.Device(1e6))
    run.trainable["a"].delete()  # as the first step does with what it is given
    assert utilisation.mfu_per_speed(run) == pytest.approx((4 * 100 + 2 * 10) / 1e6)
    run.base.dtype = "float32"
    assert utilisation.mfu_per_speed(run) is None
