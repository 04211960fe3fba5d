"""Columns and whole parameters without a gradient, where moments have few bits."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from oracles import quantized, testbed

from jaxpeft.optim.adamw_4bit import adamw_4bit
from jaxpeft.optim.ademamix import ademamix
from jaxpeft.optim.quantize_state import quantize_state

DECAY, STEPS = 0.01, 8  # what the references' settings have
# name -> (the optimizer, its rate, the reference).
MAKE = {
    "adamw_8bit": (quantized.ours_adamw_8bit(), 1e-3, quantized.bnb_adamw),
    "lion_8bit": (quantized.ours_lion_8bit(), 1e-4, quantized.bnb_lion),
    "adamw_4bit": (adamw_4bit(1e-3, weight_decay=DECAY), 1e-3, None),
    "quantized adamw": (
        quantize_state(optax.adamw(1e-3, weight_decay=DECAY)),
        1e-3,
        None,
    ),
    "quantized ademamix": (
        quantize_state(ademamix(1e-3, weight_decay=DECAY)),
        1e-3,
        None,
    ),
}


def gradients():
    """Those of each step: no gradient in single columns, nor in a block of each row."""
    rng = np.random.default_rng(0)
    has = np.ones(384, bool)
    has[::3] = has[128:256] = False
    size = 10.0 ** rng.uniform(-3, 1, size=(16, 1))  # rows share the scales of blocks
    each = rng.normal(size=(STEPS, 16, 384)) * size * has
    return has, each.astype(np.float32)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.slow
def test_what_has_no_gradient_only_decays(name):
    tx, rate, reference = MAKE[name]
    start = np.random.default_rng(1).normal(size=(16, 384)).astype(np.float32)
    has, each = gradients()
    params = {"some": jnp.asarray(start), "none": jnp.asarray(start)}
    course = (params, tx.init(params))
    for g in each:
        grads = {"some": jnp.asarray(g), "none": jnp.zeros_like(g)}
        course = testbed.advanced(tx, course, grads)
    found = {key: np.asarray(value) for key, value in course[0].items()}
    # In float32 as there: each step takes its share of what is left.
    left = start.copy()
    for _ in range(STEPS):
        left = left - np.float32(rate) * (np.float32(DECAY) * left)
    np.testing.assert_allclose(found["none"], left, rtol=1e-6)
    np.testing.assert_allclose(found["some"][:, ~has], left[:, ~has], rtol=1e-6)
    assert np.isfinite(found["some"]).all()
    # The others trained meanwhile; steps of one size may cancel.
    assert np.mean(np.abs(found["some"] - left)[:, has] > rate / 10) > 0.5
    if reference is not None:
        theirs = after(reference, start, each)
        for key, value in theirs.items():
            # Few codes round to the neighbour, and their elements part.
            apart = np.abs(found[key] - value) > 1e-6
            assert np.mean(apart) < 1e-3, key


def after(reference, start, each):
    """The reference's parameters after the same steps."""
    params = {n: torch.nn.Parameter(torch.tensor(start)) for n in ("some", "none")}
    optimizer = reference(params)
    for g in each:
        params["some"].grad = torch.tensor(g)
        params["none"].grad = torch.zeros(g.shape)
        optimizer.step()
    return {n: p.detach().numpy() for n, p in params.items()}
