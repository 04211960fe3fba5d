"""The course of an optimizer beside its reference's, on a small network.

A `Row` names both. In a closed loop each side differentiates its own parameters; in an
open loop both are fed the gradients that the reference met. The network is a
64-96-80-64 MLP with tanh, float32: six tensors, three of them of 4096 entries or more.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

WIDTHS = (64, 96, 80, 64)
LAYERS = len(WIDTHS) - 1
EXAMPLES = 128

# The network is far too small to share; two threads would wait for each other.
torch.set_num_threads(1)

Parameters = dict[str, torch.nn.Parameter]

# What a user's program is compiled with, whatever XLA_FLAGS say for the tests: without
# optimization there are no fused multiply-adds, whose rounding the references have.
AS_EVER = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}


@dataclass(frozen=True)
class Row:
    """An optimizer, its reference, and how near the two must stay.

    theirs: from {name: parameter} to an object with `step` and `zero_grad`. It runs to
    its end before `ours` is called, which may take over what the reference drew.
    bound: of the distance after 1000 steps, in units of the reference's movement; over
    200 steps `bound_200`, by default the same. measure: the largest distance over the
    largest movement, or the root mean square of both.
    """

    name: str
    reference: str
    ours: Callable[[], optax.GradientTransformation]
    theirs: Callable[[Parameters], Any]
    bound: float
    bound_200: float | None = None
    loop: Literal["closed", "open"] = "closed"
    measure: Literal["max", "rms"] = "max"
    slow: bool = False  # left out of the tests, not of the script


class Distance(NamedTuple):
    """How far two courses are apart, over how far the reference moved."""

    max: float
    rms: float
    moved: float  # the largest movement of an entry

    def within(self, bound: float, measure: str) -> bool:
        """Whether the distance is at most the bound, or 1e-6 in absolute terms."""
        return getattr(self, measure) * self.moved <= bound * self.moved + 1e-6


class Problem(NamedTuple):
    """Parameters at the start by name, in the order of `jax.tree.leaves`, and data."""

    start: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray


def problem(seed: int = 0) -> Problem:
    """The network's start, inputs and targets."""
    rng = np.random.default_rng(seed)
    start = {}
    for layer, (d_in, d_out) in enumerate(zip(WIDTHS, WIDTHS[1:])):
        start[f"layer{layer}.bias"] = 0.1 * rng.normal(size=d_out)
        start[f"layer{layer}.kernel"] = rng.normal(size=(d_in, d_out)) / d_in**0.5
    x, y = rng.normal(size=(2, EXAMPLES, WIDTHS[0]))
    start = {name: value.astype(np.float32) for name, value in start.items()}
    return Problem(start, x.astype(np.float32), np.tanh(y).astype(np.float32))


def network(params: Mapping[str, Any], x: Any, tanh: Callable) -> Any:
    """The MLP, of jax's arrays or torch's."""
    for layer in range(LAYERS):
        x = x @ params[f"layer{layer}.kernel"] + params[f"layer{layer}.bias"]
        x = tanh(x) if layer < LAYERS - 1 else x
    return x


def courses(row: Row, steps: int) -> Distance:
    """Runs both sides of a row and compares where they end."""
    at = problem()
    ends, gradients = run_theirs(row.theirs, at, steps)
    tx = row.ours()
    if row.loop == "open":
        found, _ = run_open(tx, at, gradients)
    else:
        found, _ = run_closed(tx, at, steps)
    return distance(at.start, ends, found)


def run_theirs(
    make: Callable[[Parameters], Any], at: Problem, steps: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The reference's last parameters, and the gradients met, (steps, ...) by name."""
    params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in at.start.items()}
    optimizer = make(params)
    x, y = torch.from_numpy(at.x), torch.from_numpy(at.y)
    met: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for _ in range(steps):
        optimizer.zero_grad()
        torch.mean((network(params, x, torch.tanh) - y) ** 2).backward()
        for name, parameter in params.items():
            met[name].append(parameter.grad.numpy().copy())
        optimizer.step()
    ends = {n: p.detach().numpy().copy() for n, p in params.items()}
    return ends, {name: np.stack(values) for name, values in met.items()}


def run_closed(
    tx: optax.GradientTransformation, at: Problem, steps: int
) -> tuple[dict[str, jax.Array], Any]:
    """Our last parameters and state, each gradient taken at our own parameters."""

    def loss(params: Any) -> jax.Array:
        return jnp.mean((network(params, at.x, jnp.tanh) - at.y) ** 2)

    def body(carry: Any, _: None) -> tuple[Any, None]:
        return advanced(tx, carry, jax.grad(loss)(carry[0])), None

    @functools.partial(jax.jit, compiler_options=AS_EVER)
    def run(params: Any) -> Any:
        return jax.lax.scan(body, (params, tx.init(params)), None, steps)[0]

    return run(jax.tree.map(jnp.asarray, at.start))


def run_open(
    tx: optax.GradientTransformation, at: Problem, gradients: Mapping[str, np.ndarray]
) -> tuple[dict[str, jax.Array], Any]:
    """Our last parameters and state after the given gradients, (steps, ...) by name."""

    @functools.partial(jax.jit, compiler_options=AS_EVER)
    def run(params: Any, gradients: Any) -> Any:
        def body(carry: Any, grads: Any) -> tuple[Any, None]:
            return advanced(tx, carry, grads), None

        return jax.lax.scan(body, (params, tx.init(params)), gradients)[0]

    return run(jax.tree.map(jnp.asarray, at.start), dict(gradients))


def advanced(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    """(parameters, state) after one update."""
    params, state = carry
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def distance(start: Mapping, expected: Mapping, found: Mapping) -> Distance:
    """Between two ends of courses that began at `start`, all by name."""

    def all_of(tree: Mapping) -> np.ndarray:
        parts: Iterator[Any] = (tree[name] for name in start)
        return np.concatenate([np.asarray(p, np.float64).ravel() for p in parts])

    moved = all_of(expected) - all_of(start)
    apart = all_of(found) - all_of(expected)
    largest = float(np.max(np.abs(moved)))
    return Distance(
        max=float(np.max(np.abs(apart))) / largest,
        rms=float(np.sqrt(np.mean(apart**2) / np.mean(moved**2))),
        moved=largest,
    )
