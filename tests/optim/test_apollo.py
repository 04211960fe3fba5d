"""APOLLO: what its courses do not show, and which matrices are projected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from apollo_torch import APOLLOAdamW
from oracles.projected import Drawing, grouped

from jaxpeft import optim, tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.apollo import apollo, apollo_mini, apollo_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.projection import LateAdam, Targets, random_projector
from jaxpeft.optim.rule import Context, Place

STACKS = Layout(stacked=r"layers\..*")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(tx, params, gradients):
    """The parameters after the gradients, a list of trees, and the state."""
    state, step = tx.init(params), jax.jit(tx.update)
    for grads in gradients:
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert step._cache_size() == 1
    return params, state


def test_the_state_is_low_rank_and_has_no_projection():
    params = {"kernel": jnp.ones((64, 96)), "bias": jnp.ones(96)}
    tx = apollo(1e-3, rank=8)
    _, state = run(tx, params, [jax.tree.map(jnp.ones_like, params)])
    kernel, bias = state.leaves["kernel"], state.leaves["bias"]
    assert kernel.mu.shape == kernel.nu.shape == (96, 8) and kernel.norm.shape == ()
    assert kernel.projection is None and isinstance(bias, AdamState)
    assert tree.nbytes(state.leaves) == 8 * 8 * 96 + 4 + 8 * 96
    assert tree.nbytes(apollo_mini(1e-3).init(params).leaves) == 8 * 96 + 4 + 8 * 96


def test_vectors_of_a_decomposition_are_kept():
    params = {"tall": jnp.ones((12, 6)), "wide": jnp.ones((6, 12))}
    grads = {"tall": normal(0, 12, 6), "wide": normal(1, 6, 12)}
    _, state = run(apollo(1e-3, rank=2, proj="svd"), params, [grads])
    _, _, vh = np.linalg.svd(grads["tall"])
    u, _, _ = np.linalg.svd(grads["wide"])
    for name, vectors in {"tall": vh.T, "wide": u}.items():
        found = state.leaves[name].projection
        assert state.leaves[name].mu.shape == (12, 2)
        np.testing.assert_allclose(np.abs(found), np.abs(vectors[:, :2]), atol=1e-5)


def test_a_random_projection_lasts_for_a_gap_and_differs_between_tensors():
    projector = random_projector(rank=64, gap=3, seed=0)

    def at(t, index):
        t = jnp.asarray(t, jnp.int32)
        context = Context(t, jnp.float32(1), 0.0, Place("p"), index)
        return np.asarray(projector.projection(jnp.zeros((100, 40)), None, context))

    first = at(1, 0)
    assert first.shape == (40, 64)
    assert abs(first.std() * 8 - 1) < 0.05  # N(0, 1) / sqrt(rank)
    for t in (2, 3):
        np.testing.assert_array_equal(at(t, 0), first)
    for other in (at(4, 0), at(1, 1)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("strict", [False, True])
def test_a_zero_first_gradient_freezes_only_where_asked_to(strict):
    start, g = normal(0, 20, 8), normal(1, 20, 8)
    gradients = [{"a": g * (t > 0)} for t in range(20)]
    found, _ = run(apollo(1e-2, 4, strict=strict), {"a": jnp.asarray(start)}, gradients)
    apart = np.max(np.abs(found["a"] - start))

    theirs = torch.nn.Parameter(torch.tensor(start.T.copy()))
    settings = {"rank": 4, "proj": "random", "scale": 1.0, "scale_type": "channel"}
    groups = grouped({"a": theirs}, update_proj_gap=200, **settings)
    reference = APOLLOAdamW(groups, lr=1e-2)
    for grads in gradients:
        theirs.grad = torch.tensor(grads["a"].T.copy())
        reference.step()
    frozen = np.max(np.abs(theirs.detach().numpy().T - start))
    assert frozen < 1e-6
    assert apart < 1e-6 if strict else apart > 0.05


def test_gradients_of_zero_in_between_do_not_freeze_either():
    g = normal(1, 20, 8)
    gradients = [{"a": g * (t % 5 > 0)} for t in range(20)]
    found, state = run(apollo(1e-2, 4), {"a": jnp.zeros((20, 8))}, gradients)
    assert np.max(np.abs(found["a"])) > 0.05 and state.leaves["a"].norm > 0.1


def test_of_a_square_kernel_the_inputs_are_reduced_as_in_torch():
    start, gradients = normal(0, 12, 12), [normal(s, 12, 12) for s in range(1, 6)]
    parameter = torch.nn.Parameter(torch.tensor(start))
    settings = {"rank": 3, "proj": "random", "scale": 1.0, "scale_type": "channel"}

    def make(seen):
        groups = grouped(seen, update_proj_gap=2, **settings)
        return [APOLLOAdamW(groups, lr=1e-2)]

    theirs = Drawing({"w": parameter}, make, 2)
    for g in gradients:
        parameter.grad = torch.tensor(g)
        theirs.step()
    adam = LateAdam(0.9, 0.999, 1e-6)
    rule = apollo_rule(adam, theirs.projector(), Targets(), 3, 1.0, "channel")
    tx = optim.transformation(rule, 1e-2)
    found, _ = run(tx, {"w": jnp.asarray(start)}, [{"w": g} for g in gradients])
    expected = parameter.detach().numpy()
    assert np.max(np.abs(expected - start)) > 0.02
    np.testing.assert_allclose(found["w"], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("proj", ["random", "svd"])
def test_stacked_layers_are_tensors_of_their_own(proj):
    start = normal(0, 3, 8, 12)
    g = np.repeat(normal(1, 1, 8, 12), 3, axis=0)
    stack, _ = run(
        apollo(1e-2, 4, update_proj_gap=2, proj=proj, layout=STACKS),
        {"layers": {"kernel": jnp.asarray(start)}},
        [{"layers": {"kernel": g}}] * 5,
    )
    apart, _ = run(
        apollo(1e-2, 4, update_proj_gap=2, proj=proj),
        dict(enumerate(jnp.asarray(start))),
        [dict(enumerate(g))] * 5,
    )
    stack = np.asarray(stack["layers"]["kernel"])
    np.testing.assert_allclose(stack, np.stack(list(apart.values())), atol=1e-6)
    moved = stack - start
    alike = np.max(np.abs(moved[0] - moved[1])) < 1e-6
    assert alike == (proj == "svd")  # one gradient, but a random projection for each


def test_a_course_goes_on_from_a_saved_state():
    params = {"w": jnp.asarray(normal(0, 8, 12)), "b": jnp.ones(12), "frozen": None}
    gradients = [
        {"w": normal(s, 8, 12), "b": normal(s, 12), "frozen": None} for s in range(7)
    ]
    tx = apollo(1e-2, 4, update_proj_gap=3)
    whole, _ = run(tx, params, gradients)
    half, state = run(tx, params, gradients[:4])
    leaves, treedef = jax.tree.flatten(state)
    state = treedef.unflatten([jnp.asarray(np.asarray(x)) for x in leaves])
    for grads in gradients[4:]:
        updates, state = jax.jit(tx.update)(grads, state, half)
        half = optax.apply_updates(half, updates)
    assert half["frozen"] is None
    jax.tree.map(np.testing.assert_array_equal, half, whole)


def test_bfloat16_parameters_have_float32_states_and_updates():
    params = {"w": jnp.ones((8, 12), jnp.bfloat16)}
    tx = apollo(1e-2, 4)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(state.leaves)} == {"float32"}


def test_the_limiter_s_effect_on_a_constant_gradient():
    params, steps = {"w": jnp.asarray(normal(0, 8, 12))}, 6
    gradients = [{"w": normal(1, 8, 12)}] * steps

    def moved(**settings):
        found, _ = run(apollo(1e-2, 4, **settings), params, gradients)
        return np.linalg.norm(found["w"] - params["w"])

    # Without a limit the scaled gradient grows as m / sqrt(v) of a constant does, and
    # the correction makes steps of one size of it.
    t = np.arange(1, steps + 1)
    free = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
    limited = np.minimum(free, free[0] * 1.01 ** (t - 1))
    found = moved(scale_front=True) / moved(disable_nl=True)
    np.testing.assert_allclose(found, np.mean(limited / free), rtol=1e-3)


TARGETS = {
    "all by default": (None, {"embed.embedding", "q_proj.kernel", "k_proj.kernel"}),
    "all-linear": ("all-linear", {"q_proj.kernel", "k_proj.kernel"}),
    "whole name": ("q_proj.kernel", {"q_proj.kernel"}),
    "without kernel": (".*q_proj", {"q_proj.kernel"}),
    "a string is no part": ("q_pro", set()),
    "parts": (["q_pro", "k_pro"], {"q_proj.kernel", "k_proj.kernel"}),
    "expressions": ([".*_proj"], {"q_proj.kernel", "k_proj.kernel"}),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets(case):
    modules, expected = TARGETS[case]
    shapes = {
        "embed.embedding": (9, 8),
        "q_proj.kernel": (8, 8),
        "q_proj.bias": (8,),
        "k_proj.kernel": (8, 8),
    }
    targets = Targets(modules)
    assert {n for n, s in shapes.items() if targets.include(n, s)} == expected
    assert bool(targets.problems(shapes)) == (not expected)


def test_problems_with_targets_and_the_rank_come_together():
    params = {"layers": {"q_proj": {"kernel": jnp.ones((2, 64, 96))}}}
    with pytest.raises(InputError, match="rank: found 512; the matrix .* is 64 x 96"):
        apollo(1e-3, 512, layout=STACKS).init(params)
    tx = apollo(1e-3, 65, target_modules=["q_proj", "v_proj"], layout=STACKS)
    with pytest.raises(InputError, match="use at most 64") as caught:
        tx.init(params)
    assert "matches 'v_proj'; the names are such as layers.q_proj" in str(caught.value)
    assert apollo(1e-3, 64, layout=STACKS).init(params).count == 0
    with pytest.raises(InputError, match="found .*; name some"):
        apollo(1e-3, 4, target_modules=[]).init(params)


def test_sizes_are_above_zero():
    with pytest.raises(InputError) as caught:
        apollo(1e-3, rank=0, update_proj_gap=0)
    assert len(caught.value.problems) == 2
