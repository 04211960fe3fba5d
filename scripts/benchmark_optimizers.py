"""Times of optimizer updates on one leaf, jitted and donated, beside the references'.

    python scripts/benchmark_optimizers.py
    python scripts/benchmark_optimizers.py --sizes 16777216 268435456 --rounds 20

Rounds are interleaved, so that what else the machine does falls on all alike. On a GPU
also the bandwidth of a large copy, and each optimizer's share of it: the bytes that an
update cannot avoid to read and write, over its time. bitsandbytes and torch are timed
on a CPU where they are installed.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpeft import tree
from jaxpeft.optim.adamw import adamw
from jaxpeft.optim.adamw_4bit import adamw_4bit
from jaxpeft.optim.adamw_8bit import adamw_8bit
from jaxpeft.optim.lion_8bit import lion_8bit
from jaxpeft.optim.quantize_state import quantize_state

OURS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "optax.adamw": lambda: optax.adamw(1e-3),
    "adamw": lambda: adamw(1e-3),
    "adamw_8bit": lambda: adamw_8bit(1e-3),
    "lion_8bit": lambda: lion_8bit(1e-4),
    "adamw_4bit": lambda: adamw_4bit(1e-3),
    "quantize_state": lambda: quantize_state(optax.adamw(1e-3)),
}


# They work in the gradient's buffer.
IN_PLACE = ("adamw_8bit", "lion_8bit", "adamw_4bit")


class Jitted:
    """One optimizer, its parameters and state, updated in place."""

    def __init__(self, name: str, size: int):
        tx, in_place = OURS[name](), name in IN_PLACE

        def step(params: Any, grads: Any, state: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            # What was the gradient's buffer goes back, to be the next gradient's.
            spent = updates if in_place else None
            return optax.apply_updates(params, updates), spent, state

        params = 0.02 * jax.random.normal(jax.random.key(0), (size,))
        state = tx.init(params)
        grads = jax.random.normal(jax.random.key(1), (size,))
        jitted = jax.jit(step, donate_argnums=(0, 1, 2) if in_place else (0, 2))
        self.step = jitted.lower(params, grads, state).compile()
        self.arrays = params, grads, state
        self.state_bytes = tree.nbytes(state)
        self.temp = self.step.memory_analysis().temp_size_in_bytes
        # Parameters and state are read and written, gradients read.
        self.moved = 2 * (4 * size + self.state_bytes) + 4 * size

    def __call__(self) -> None:
        _, grads, _ = self.arrays
        params, spent, state = jax.block_until_ready(self.step(*self.arrays))
        self.arrays = params, grads if spent is None else spent, state


class Torch:
    """An optimizer of torch's kind."""

    def __init__(self, make: Callable[[list], Any], size: int):
        import torch

        parameter = torch.nn.Parameter(0.02 * torch.randn(size))
        parameter.grad = torch.randn(size)
        self.optimizer = make([parameter])

    def __call__(self) -> None:
        self.optimizer.step()


def references() -> dict[str, Callable[[int], Torch]]:
    """The references that are installed; says which ones are not."""
    missing = [
        n for n in ("torch", "bitsandbytes") if importlib.util.find_spec(n) is None
    ]
    if missing:
        print(f"Left out, for want of {' and '.join(missing)}: rows of these.")
    found: dict[str, Callable[[int], Torch]] = {}
    if "torch" not in missing:
        import torch

        found["torch AdamW"] = lambda n: Torch(
            lambda p: torch.optim.AdamW(p, lr=1e-3), n
        )
        if "bitsandbytes" not in missing:
            import bitsandbytes

            found["bitsandbytes AdamW8bit"] = lambda n: Torch(
                lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-3), n
            )
    return found


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def copy_bandwidth(size: int = 2**28) -> float:
    """Bytes a second, read plus written, of adding 1 to a large array in place."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, times = jnp.zeros(size), []
    for _ in range(20):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - start)
    return 8 * size / min(times)


def compare(size: int, rounds: int, names: list[str]) -> None:
    """Print the table of one size."""
    gpu = jax.default_backend() == "gpu"
    runs: dict[str, Any] = {n: Jitted(n, size) for n in OURS if n in names}
    if not gpu:
        runs |= {name: make(size) for name, make in references().items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            seconds = timed(run)
            if number >= 2:
                times[name].append(seconds)
    copy = copy_bandwidth() if gpu else 0.0
    print(f"\n{size:,} parameters on {jax.devices()[0].device_kind}, {rounds} rounds")
    if gpu:
        print(f"a copy reads and writes {copy / 1e9:.0f} GB/s")
    print(
        "| optimizer | least ms | median ms | ratio | state B/param | temp MiB |",
        end="",
    )
    print(" share of copy |" if gpu else "")
    print("|---|---|---|---|---|---|" + ("---|" if gpu else ""))
    base = min(times["optax.adamw"])
    for name, run in runs.items():
        least = min(times[name])
        line = (
            f"| {name} | {1e3 * least:.2f} | {1e3 * statistics.median(times[name]):.2f}"
        )
        line += f" | {least / base:.2f}"
        if isinstance(run, Jitted):
            line += f" | {run.state_bytes / size:.2f} | {run.temp / 2**20:.1f} |"
        else:
            line += " | | |"
        print(line + (f" {run.moved / least / copy:.0%} |" if gpu else ""), flush=True)


def main() -> None:
    """Print one table a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [2**24, 2**28] if jax.default_backend() == "gpu" else [2**24]
    parser.add_argument("--sizes", type=int, nargs="*", default=sizes)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=list(OURS), default=list(OURS))
    args = parser.parse_args()
    for size in args.sizes:
        compare(size, args.rounds, ["optax.adamw", *args.only])


if __name__ == "__main__":
    main()
