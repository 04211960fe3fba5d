"""GaLore: its projections, when they are taken, and what the state holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.galore import galore
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.projection import singular_vectors

STACKS = Layout(stacked=r"layers\..*")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(tx, params, gradients):
    """The parameters after the gradients, a list of trees, and each step's state."""
    state, step, states = tx.init(params), jax.jit(tx.update), []
    for grads in gradients:
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    assert step._cache_size() == 1
    return params, states


def test_the_state_s_shapes_and_bytes():
    params = {"up": jnp.ones((64, 96)), "down": jnp.ones((96, 64)), "b": jnp.ones(96)}
    leaves = galore(1e-3, rank=8).init(params).leaves
    for name in ("up", "down"):
        state = leaves[name]
        assert state.mu.shape == state.nu.shape == (96, 8)
        assert state.projection.shape == (64, 8)
        assert tree.nbytes(state) == 4 * 8 * (2 * 96 + 64)
    assert isinstance(leaves["b"], AdamState)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_vectors_are_those_of_the_shorter_side_with_one_sign(shape):
    g = normal(0, *shape)
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    expected = (vh.T if shape[0] > shape[1] else u)[:, :3]
    found = np.asarray(singular_vectors(jnp.asarray(g), 3))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-5)
    assert np.all(found[np.argmax(np.abs(found), axis=0), range(3)] > 0)
    np.testing.assert_array_equal(found, singular_vectors(-jnp.asarray(g), 3))


def test_projections_are_taken_at_the_first_step_and_after_each_gap():
    gradients = [{"w": normal(seed, 12, 7)} for seed in range(7)]
    tx = galore(1e-2, 3, update_proj_gap=3)
    _, states = run(tx, {"w": jnp.zeros((12, 7))}, gradients)
    for step, state in enumerate(states):
        fresh = singular_vectors(jnp.asarray(gradients[step // 3 * 3]["w"]), 3)
        np.testing.assert_allclose(state.leaves["w"].projection, fresh, atol=1e-5)


def test_the_first_step_in_closed_form():
    p, g = normal(0, 12, 7), normal(1, 12, 7)
    tx = galore(0.1, 3, scale=0.5, weight_decay=0.2)
    found, _ = run(tx, {"w": jnp.asarray(p)}, [{"w": g}])
    vectors = np.linalg.svd(g)[2][:3].T
    expected = (p - 0.1 * 0.5 * np.sign(g @ vectors) @ vectors.T) * (1 - 0.1 * 0.2)
    np.testing.assert_allclose(found["w"], expected, atol=2e-4)  # of eps, 1e-6


def decompositions(jaxpr, inside=False):
    """(whether a branch guards it) of every decomposition in a jaxpr."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "svd":
            yield inside
        # A choice of the platform is a `cond` too, and guards nothing.
        of_platforms = eqn.params.get("branches_platforms")
        below = inside or (eqn.primitive.name == "cond" and not of_platforms)
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from decompositions(inner, below)


def test_layers_of_a_stack_are_decomposed_only_when_due():
    params = {"layers": {"kernel": jnp.ones((3, 8, 12))}, "kernel": jnp.ones((8, 12))}
    tx = galore(1e-2, 3, layout=STACKS)
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    # Of each leaf on a CPU, and on other devices.
    assert list(decompositions(jaxpr.jaxpr)) == [True] * 4


def test_stacked_layers_are_tensors_of_their_own():
    start, gradients = normal(0, 3, 8, 12), [normal(s, 3, 8, 12) for s in range(1, 6)]
    stack, _ = run(
        galore(1e-2, 4, update_proj_gap=2, layout=STACKS),
        {"layers": {"kernel": jnp.asarray(start)}},
        [{"layers": {"kernel": g}} for g in gradients],
    )
    apart, _ = run(
        galore(1e-2, 4, update_proj_gap=2),
        dict(enumerate(jnp.asarray(start))),
        [dict(enumerate(g)) for g in gradients],
    )
    stack = np.asarray(stack["layers"]["kernel"])
    np.testing.assert_allclose(stack, np.stack(list(apart.values())), atol=1e-5)


def test_holes_and_bfloat16():
    params = {"w": jnp.ones((8, 12), jnp.bfloat16), "frozen": None}
    tx = galore(1e-2, 4)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["frozen"] is None and updates["w"].dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(state.leaves)} == {"float32"}


def test_ranks_and_targets_that_do_not_fit():
    params = {"q_proj": {"kernel": jnp.ones((64, 96))}, "b": jnp.ones(3)}
    with pytest.raises(InputError, match="found 128; the matrix q_proj.kernel is 64"):
        galore(1e-3).init(params)
    with pytest.raises(InputError, match="target_modules: no matrix .* 'b'"):
        galore(1e-3, 8, target_modules="b").init(params)
    with pytest.raises(InputError, match="update_proj_gap: found 0"):
        galore(1e-3, 8, update_proj_gap=0)
