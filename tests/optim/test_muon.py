"""Muon: which tensors it takes, its steps, and what the state holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import optim
from jaxpeft.errors import InputError
from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.muon import MuonState, muon

STACKS = Layout(stacked=r"layers\..*")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def step(tx, params, grads):
    """The updates and the state after one gradient."""
    return jax.jit(tx.update)(grads, tx.init(params), params)


def test_matrices_are_muon_s_and_the_rest_is_adamw_s():
    params = {
        "model": {
            "embed_tokens": {"embedding": jnp.ones((9, 4))},
            "q_proj": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
            "norm": {"scale": jnp.ones(4)},
        },
        "lm_head": {"kernel": jnp.ones((4, 9))},
    }
    state = muon(1e-3).init(params)
    kinds = jax.tree.map(
        type, state.leaves, is_leaf=lambda x: isinstance(x, MuonState | AdamState)
    )
    assert kinds == {
        "model": {
            "embed_tokens": {"embedding": AdamState},
            "q_proj": {"kernel": MuonState, "bias": AdamState},
            "norm": {"scale": AdamState},
        },
        "lm_head": {"kernel": AdamState},
    }
    assert state.leaves["model"]["q_proj"]["kernel"].mu.shape == (4, 4)
    named = muon(1e-3, adam_names=r".*q_proj.*").init(params).leaves
    assert isinstance(named["lm_head"]["kernel"], MuonState)
    with pytest.raises(InputError, match="adam_names: no parameter .* 'q_proj'"):
        muon(1e-3, adam_names="q_proj").init(params)


@pytest.mark.parametrize(
    ("adjust", "shape", "size"),
    [
        ("original", (8, 32), 2.0),  # sqrt(out / in)
        ("original", (32, 8), 1.0),
        ("match_rms_adamw", (8, 32), 0.2 * 32**0.5),
        ("match_rms_adamw", (32, 8), 0.2 * 32**0.5),
    ],
)
def test_steps_are_almost_orthogonal(adjust, shape, size):
    params, grads = {"w": jnp.zeros(shape)}, {"w": normal(0, *shape)}
    updates, _ = step(muon(1.0, adjust_lr_fn=adjust), params, grads)
    u, s, vh = np.linalg.svd(grads["w"], full_matrices=False)
    values = -np.diag(u.T @ np.asarray(updates["w"]) @ vh.T) / size
    assert np.all((values > 0.6) & (values < 1.3)), values
    # and point exactly where the gradient's singular vectors do
    rest = np.asarray(updates["w"]) + size * (u * values) @ vh
    assert np.max(np.abs(rest)) < 1e-4


def test_the_rest_is_the_library_s_adamw_at_its_own_rate():
    params, grads = {"b": jnp.asarray(normal(0, 7))}, {"b": normal(1, 7)}
    found, _ = step(muon(1e-2, adam_learning_rate_factor=0.5), params, grads)
    expected, _ = step(optim.adamw(5e-3, weight_decay=0.1), params, grads)
    np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-6)


def test_stacked_layers_are_tensors_of_their_own():
    start, g = normal(0, 3, 8, 12), normal(1, 3, 8, 12)
    tx = muon(1e-2, layout=STACKS)
    stack, _ = step(tx, {"layers": {"k": jnp.asarray(start)}}, {"layers": {"k": g}})
    split = dict(enumerate(jnp.asarray(start)))
    apart, _ = step(muon(1e-2), split, dict(enumerate(g)))
    expected = np.stack(list(apart.values()))
    np.testing.assert_allclose(stack["layers"]["k"], expected, atol=1e-6)


def test_zero_gradients_holes_and_bfloat16():
    params = {"w": jnp.ones((8, 12), jnp.bfloat16), "frozen": None}
    grads = {"w": jnp.zeros((8, 12), jnp.bfloat16), "frozen": None}
    updates, state = step(muon(1e-2, weight_decay=0.0), params, grads)
    assert updates["frozen"] is None and updates["w"].dtype == jnp.float32
    assert not np.any(np.asarray(updates["w"]))
    assert state.leaves["w"].mu.dtype == jnp.float32
