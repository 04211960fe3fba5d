"""AdamW against torch over 200 steps, each on its own gradients."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxpeft import optim

LOG = logging.getLogger(__name__)
WIDTHS = (64, 96, 80, 64)
STEPS, RATE, DECAY = 200, 1e-3, 0.01


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = []
    for d_in, d_out in zip(WIDTHS, WIDTHS[1:]):
        params.append(rng.normal(size=(d_in, d_out)) / d_in**0.5)
        params.append(0.1 * rng.normal(size=d_out))
    x, y = rng.normal(size=(2, 128, 64))
    return [p.astype(np.float32) for p in params], *(
        v.astype(np.float32) for v in (x, np.tanh(y))
    )


def network(params, x, tanh):
    for layer in range(3):
        x = x @ params[2 * layer] + params[2 * layer + 1]
        x = tanh(x) if layer < 2 else x
    return x


@pytest.fixture(scope="module")
def expected(problem):
    """The parameters after 200 steps of torch.optim.AdamW."""
    start, x, y = problem
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.mean((network(params, x, torch.tanh) - y) ** 2).backward()
        optimizer.step()
    return [p.detach().numpy() for p in params]


def train(tx, problem):
    start, x, y = problem

    def loss(params):
        return jnp.mean((network(params, x, jnp.tanh) - y) ** 2)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        return jax.lax.scan(body, (params, tx.init(params)), None, STEPS)[0][0]

    return run([jnp.asarray(p) for p in start])


CHAINS = {
    "number": lambda: optim.adamw(RATE),
    "schedule": lambda: optim.adamw(lambda step: RATE),
    "made": lambda: optim.make(
        {"name": "adamw", "learning_rate": RATE, "max_grad_norm": None},
        {"name": "constant"},
        STEPS,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_the_course_is_torch_s(name, problem, expected):
    found = train(CHAINS[name](), problem)
    moved = max(np.max(np.abs(e - s)) for e, s in zip(expected, problem[0]))
    apart = max(np.max(np.abs(e - f)) for e, f in zip(expected, found))
    assert moved > 0.05
    LOG.info("apart after %d steps: %.1e of the movement", STEPS, apart / moved)
    assert apart <= 1.2e-5 * moved + 1e-6


def test_the_decay_is_decoupled_and_can_be_masked():
    params = {"w": jnp.full(3, 2.0), "b": jnp.full(3, 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    tx = optim.adamw(0.1, weight_decay=0.5, mask={"w": True, "b": False})
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0.0)


def test_holes_and_float32_moments():
    params = {"w": jnp.ones(3), "frozen": None}
    tx = optim.adamw(0.1)
    state = tx.init(params)
    grads = {"w": jnp.ones(3), "frozen": None}
    updates, state = tx.update(grads, state, params)
    assert updates["frozen"] is None
    floats = [x for x in jax.tree.leaves(state) if x.ndim]
    assert len(floats) == 2 and {x.dtype for x in floats} == {jnp.dtype("float32")}
