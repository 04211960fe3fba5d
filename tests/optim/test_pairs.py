"""Optimizers made for LoRA: beside references, and blind to how a product is split."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec
from peft.optimizers.riemannian import create_riemannian_optimizer

from jaxpeft import config, optim
from jaxpeft.assembly import updates
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.errors import InputError
from jaxpeft.optim.riemannian_adamw import scaled_gradient
from jaxpeft.sweep import grid

M, R, N, STEPS = 12, 3, 8, 5
# Muon's iteration with these comes to the orthogonal matrix itself.
EXACT = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 40, "eps": 0.0}


def normal(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return values.astype(np.float32)


A, B = normal(M, R), normal(R, N, seed=1)
# The gradients that the kernel would get, one a step.
KERNEL = [0.1 * normal(M, N, seed=seed) for seed in range(2, 2 + STEPS)]


def course(tx, a, b, kernel=KERNEL):
    """The factors after each step, their gradients those of the kernel's."""
    params = {"q_proj": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}
    state, seen, update = tx.init(params), [], jax.jit(tx.update)
    for g in kernel:
        node = params["q_proj"]
        grads = {"q_proj": {"a": g @ node["b"].T, "b": node["a"].T @ g}}
        changes, state = update(grads, state, params)
        params = optax.apply_updates(params, changes)
        seen.append((params["q_proj"]["a"], params["q_proj"]["b"]))
    return seen


def products(seen):
    return np.stack([np.asarray(a @ b) for a, b in seen])


def root(x, of=lambda w: 1 / np.sqrt(w)):
    """A function of the eigenvalues of a symmetric matrix that are not zero."""
    w, v = np.linalg.eigh(x)
    kept = w > 1e-9 * w[-1]
    return (v[:, kept] * of(w[kept])) @ v[:, kept].T


def onto(x):
    """The projection on the columns of x."""
    q, _ = np.linalg.qr(x)
    return q @ q.T


class Ambient:
    """LoRA-RITE as it acts on the kernel: no basis, no triangle.

    In the paper's equations M Q_b^T, Q_b V Q_b^T and g Q_b^T are what does not depend
    on the basis Q_b; the last is the kernel's gradient, projected.
    """

    def __init__(self, d, n):
        self.m, self.v, self.t = np.zeros((d, n)), np.zeros((n, n)), 0

    def change(self, g, inside, b1, b2):
        """The change of the product by one factor; `inside` projects on the other."""
        self.t += 1
        decay1, decay2 = (
            b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in (b1, b2)
        )
        g = g @ inside
        self.v = decay2 * inside @ self.v @ inside + (1 - decay2) * g.T @ g / len(g)
        self.m = decay1 * self.m @ inside + (1 - decay1) * g @ root(self.v)
        return self.m


def test_lora_rite_is_the_paper_s_seen_from_the_kernel():
    rate, b1, b2 = 0.01, 0.9, 0.99
    tx = optim.lora_rite(rate, b1, b2, 0.0, clip_unmagnified_grad=0.05)
    found = course(tx, A, B)
    a, b = A.astype(np.float64), B.astype(np.float64)
    first, second = Ambient(M, N), Ambient(N, M)
    for g, (mine, yours) in zip(KERNEL, found):
        g = g.astype(np.float64)
        inside, before = onto(b.T), onto(a)
        norm = np.sqrt(np.sum((g @ inside) ** 2) + np.sum((before @ g) ** 2))
        g = g * min(1, 0.05 / norm)
        # a b changes by d_a b + a d_b; the factors follow by pseudoinverses.
        change = -rate * first.change(g, inside, b1, b2)
        other = -rate * second.change(g.T, before, b1, b2).T
        a, b = a + change @ np.linalg.pinv(b), b + np.linalg.pinv(a) @ other
        np.testing.assert_allclose(mine, a, atol=2e-5)
        np.testing.assert_allclose(yours, b, atol=2e-5)


def test_a_gradient_out_of_proportion_counts_as_zero():
    (a, b), *_ = course(optim.lora_rite(0.1, skip_unmagnified_rms=1e-6), A, B)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)


@pytest.mark.slow
def test_lora_muon_steps_along_the_nearest_orthogonal_matrix_of_the_kernel():
    rate = 0.01
    (a, b), *_ = course(optim.lora_muon(rate, momentum=0.0, **EXACT), A, B)

    def sign(x):
        u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        return (u * (s > 1e-6 * s[0])) @ vt

    change, other = sign(KERNEL[0] @ onto(B.T)), sign(onto(A) @ KERNEL[0])
    np.testing.assert_allclose((a - A) @ B, -rate / 2 * change, atol=1e-5)
    np.testing.assert_allclose(A @ (b - B), -rate / 2 * other, atol=1e-5)


def test_lora_muon_decays_the_product():
    """Without gradients a b shrinks by 1 - rate decay, as a kernel would."""
    zero = [np.zeros((M, N), np.float32)]
    ((a, b),) = course(optim.lora_muon(0.1, weight_decay=0.5), A, B, zero)
    np.testing.assert_allclose(a @ b, (1 - 0.05) * (A @ B), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reg", [1e-2, 1.0])
def test_riemannian_adamw_is_peft_s(reg):
    model = torch.nn.Sequential(torch.nn.Linear(M, N, bias=False))
    settings = peft.LoraConfig(r=R, lora_alpha=R, target_modules=["0"])
    model = peft.get_peft_model(model, settings)
    pair = [p for p in model.parameters() if p.requires_grad]
    for p, x in zip(pair, (A.T, B.T)):
        p.data = torch.tensor(x.copy())
    theirs = create_riemannian_optimizer(
        model, torch.optim.AdamW, lr=1e-2, reg=reg, weight_decay=0.1
    )
    found = course(optim.riemannian_adamw(1e-2, weight_decay=0.1, reg=reg), A, B)
    for g, (a, b) in zip(KERNEL, found):
        first, second = (p.data.T for p in pair)
        pair[0].grad = (torch.tensor(g) @ second.T).T.contiguous()
        pair[1].grad = (first.T @ torch.tensor(g)).T.contiguous()
        theirs.step()
        np.testing.assert_allclose(a, pair[0].data.T, atol=2e-6)
        np.testing.assert_allclose(b, pair[1].data.T, atol=2e-6)


SCALES = {"c": 7.0 * np.eye(R), "1 / c": np.eye(R) / 7}
TURNS = {**SCALES, "any matrix": np.eye(R) + 0.8 * normal(R, R, seed=9)}
INVARIANT = {
    "lora_rite": optim.lora_rite(0.02, eps=1e-12),
    "lora_muon": optim.lora_muon(0.02),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", INVARIANT)
def test_the_product_s_course_does_not_depend_on_its_split(name, turn):
    t = TURNS[turn].astype(np.float32)
    split = (A @ t, np.linalg.inv(t).astype(np.float32) @ B)
    found, expected = (products(course(INVARIANT[name], *x)) for x in ((A, B), split))
    moved = np.abs(expected[-1] - A @ B).max()
    assert moved > 0.02
    np.testing.assert_allclose(found, expected, atol=2e-3 * moved)


def test_adamw_s_course_depends_on_the_split():
    """So the test above can fail."""
    tx = optim.adamw(0.02)
    found, expected = (products(course(tx, A * c, B / c)) for c in (1.0, 7.0))
    assert np.abs(found[-1] - expected[-1]).max() > 0.1


@pytest.mark.parametrize("turn", TURNS)
def test_scaled_gradients_turn_as_the_factors_do(turn):
    """Before Adam the product's change is the same however it is split."""
    t = TURNS[turn].astype(np.float32)
    back = np.linalg.inv(t).astype(np.float32)

    def change(a, b):
        g = KERNEL[0]
        mine, yours = scaled_gradient(g @ b.T, b.T, 0.0), scaled_gradient(g.T @ a, a, 0)
        return mine @ b + a @ yours.T

    np.testing.assert_allclose(change(A @ t, back @ B), change(A, B), atol=2e-5)


MADE = {
    **INVARIANT,
    "riemannian_adamw": optim.riemannian_adamw(0.02),
}


@pytest.mark.parametrize("name", MADE)
def test_b_may_start_at_zero(name):
    seen = course(MADE[name], A, np.zeros((R, N), np.float32))
    assert np.isfinite(products(seen)).all()
    assert np.abs(seen[-1][0] - A).max() > 1e-3 and np.abs(seen[-1][1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_stack_is_its_layers_and_what_is_beyond_a_rank_stays_zero(name):
    """The second layer has a rank less."""
    a, b, g = normal(2, M, R), normal(2, R, N), 0.1 * normal(3, 2, M, N)
    a[1, :, -1], b[1, -1] = 0, 0
    make = getattr(optim, name)
    tx = make(0.02, layout=optim.Layout(stacked=r"layers\..*"))
    params = {"layers": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}
    apart = {f"{i}": {"a": jnp.asarray(a[i]), "b": jnp.asarray(b[i])} for i in range(2)}
    state, other, plain = tx.init(params), tx.init(apart), jax.jit(tx.update)
    for x in g:
        one = params["layers"]
        grads = {"a": x @ one["b"].mT, "b": one["a"].mT @ x}
        changes, state = plain({"layers": grads}, state, params)
        params = optax.apply_updates(params, changes)
        grads = {
            f"{i}": {"a": x[i] @ apart[f"{i}"]["b"].T, "b": apart[f"{i}"]["a"].T @ x[i]}
            for i in range(2)
        }
        changes, other = plain(grads, other, apart)
        apart = optax.apply_updates(apart, changes)
    np.testing.assert_array_equal(params["layers"]["a"][1, :, -1], 0)
    np.testing.assert_array_equal(params["layers"]["b"][1, -1], 0)
    for key in ("a", "b"):
        together = np.stack([apart[f"{i}"][key] for i in range(2)])
        np.testing.assert_allclose(params["layers"][key], together, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_what_is_no_pair_gets_adamw(name):
    """A vector, a matrix, two factors that do not fit, and an a without a b."""
    others = {
        "norm": {"scale": jnp.ones(4)},
        "dense": {"kernel": jnp.asarray(A)},
        "odd": {"a": jnp.asarray(A), "b": jnp.asarray(normal(R + 1, N))},
        "single": {"a": jnp.asarray(A)},
    }
    params = {**others, "q": {"lora_a": jnp.asarray(A), "lora_b": jnp.asarray(B)}}
    grads = jax.tree.map(lambda x: 0.1 * jnp.cos(x), params)
    plain = optim.adamw(0.02, weight_decay=0.1)
    found, expected = (
        tx.update(grads, tx.init(params), params)[0]
        for tx in (getattr(optim, name)(0.02, weight_decay=0.1), plain)
    )
    theirs = expected.pop("q")
    mine = found.pop("q")
    assert np.abs(mine["lora_a"] - theirs["lora_a"]).max() > 1e-3
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
    )


def test_a_rank_above_a_side_of_the_kernel_goes():
    a, b = normal(6, 10), 0.1 * normal(10, 4)
    g = [0.1 * normal(6, 4, seed=seed) for seed in range(4)]
    for tx in MADE.values():
        assert np.isfinite(products(course(tx, a, b, g))).all()


def run_config(name, method="lora", **optimizer):
    return config.parse(
        {
            "output_dir": "out",
            "model": {"path": "base"},
            "data": {"train": {"path": "data"}},
            "adapter": {"method": method},
            "optimizer": {"name": name, **optimizer},
            "training": {"max_steps": 4},
        },
        tables=TABLES,
    )


@pytest.mark.parametrize("method", ["full", "dora", "lora_fa", "ia3", "vera"])
def test_other_methods_are_refused(method):
    with pytest.raises(InputError, match=f"'lora_rite' with adapter.method '{method}'"):
        updates.updates(run_config("lora_rite", method), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_rates_and_decays_of_a_sweep_share_a_program(name):
    points = [
        run_config(name, learning_rate=rate, weight_decay=decay)
        for rate, decay in ((1e-3, 0.0), (1e-2, 0.1))
    ]
    assert grid.together(points, 1, None) == [[0, 1]]
    rule = updates.updates(points[0], 4).parts.leafwise
    assert rule is not None
    params = {"q": {"a": jnp.asarray(A), "b": jnp.asarray(B)}}
    grads = jax.tree.map(lambda x: 0.1 * jnp.cos(x), params)

    def moved(rate, decay):
        tx = rule.tuned(lambda count: rate, decay).transformation()
        return tx.update(grads, tx.init(params), params)[0]

    numbers = jnp.array([1e-3, 1e-2]), jnp.array([0.0, 0.1])
    together = jax.jit(jax.vmap(moved))(*numbers)
    for i, (rate, decay) in enumerate(zip(*numbers)):
        alone = moved(float(rate), float(decay))
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-7),
            together,
            alone,
        )


@pytest.mark.slow
@pytest.mark.parametrize("injected", [False, True], ids=["plain", "injected"])
@pytest.mark.parametrize("name", MADE)
def test_split_factors_on_a_mesh_with_explicit_axes_take_the_same_steps(name, injected):
    """On the device there is; on eight by the test below."""
    layout = optim.Layout(stacked=r"layers\..*")
    make, shape = getattr(optim, name), (jax.device_count() // 2 or 1, 2)
    if jax.device_count() == 1:
        shape = (1, 1)
    static = ("layout", *(["ns_steps"] if name == "lora_muon" else []))
    maker = optax.inject_hyperparams(make, static) if injected else make
    mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    places = {"a": Spec(None, "x", None), "b": Spec(None, None, "y")}
    places = {"layers": {k: NamedSharding(mesh, v) for k, v in places.items()}}
    start = {"layers": {"a": normal(2, 16, R), "b": normal(2, R, N)}}
    grads = jax.tree.map(lambda x: 0.1 * np.cos(x), start)

    def steps(tx, place):
        params, g = place(start), place(grads)
        state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
        for _ in range(2):
            changes, state = update(g, state, params)
            params = jax.jit(optax.apply_updates)(params, changes)
        return jax.device_get(params)

    plain = steps(make(0.02, layout=layout), lambda x: jax.tree.map(jnp.asarray, x))
    with jax.set_mesh(mesh):
        tx = maker(learning_rate=0.02, layout=layout)
        split = steps(tx, lambda x: jax.device_put(x, places))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), split, plain)


@pytest.mark.slow
def test_they_take_the_same_steps_on_eight_devices(of_devices):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "explicit_axes"],
        env=of_devices(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
