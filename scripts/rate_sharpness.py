"""Whether the sharpness of the loss tells the best rate, beside docs/calibration.jsonl.

    python scripts/rate_sharpness.py --only /lora-16/adamw/b4/60

For each AdamW cell that has a line: the largest eigenvalue of the Hessian of what
trains, by Lanczos' method with products on two batches of the run, at the start and
after 30 steps of Adam at the rates of a range test; the latter also of the Hessian
as Adam sees it, D^-1/2 H D^-1/2 with D the root of its second moments (Cohen et al.,
2022, arXiv:2207.14484). A rule is a rate inverse to such a number, times a factor
fitted to the other models. What is known goes to a file and is not computed again.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import calibrate_rates
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rate_rules
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from jaxpeft.assembly import step
from jaxpeft.assembly.run import Run
from jaxpeft.devices import programs
from jaxpeft.lr_find import ramp

OUT = calibrate_rates.ROOT / "runs" / "calibration" / "sharpness.json"
WARM, BATCHES = 30, 2  # steps of Adam; batches that a Hessian is of
NEAR = 0.02  # the length of the way on either side, for differences of gradients
VECTORS, TOLERANCE = 10, 0.1  # of Lanczos' method
KINDS = ("at the start", "after 30 steps", "after 30 steps, as Adam sees it")


def largest(product: Any, size: int) -> tuple[float, int]:
    """The largest eigenvalue of a symmetric matrix, and how many products it took.

    Args:
        product: from a (size,) vector to the matrix times it.
        size: of the matrix.
    """
    count = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(product(jnp.asarray(vector.ravel(), jnp.float32)))

    matrix = LinearOperator((size, size), matvec=counted, dtype=np.float32)
    begin = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    options = {"ncv": VECTORS, "tol": TOLERANCE, "maxiter": 2, "v0": begin}
    try:
        found = eigsh(matrix, k=1, which="LA", return_eigenvectors=False, **options)
    except ArpackNoConvergence as early:  # what it came to serves as well
        found = early.eigenvalues
    return float(found[0]) if len(found) else math.nan, count


def sharpness(run: Run) -> dict[str, float]:
    """{kind: largest eigenvalue} of a run, and the products they took together."""
    loss_of = step.make_loss(run.base.cfg, run.objective)
    start, unravel = ravel_pytree(run.trainable)

    @jax.jit
    def gradient(flat: Any, fixed: Any, batch: Any) -> Any:
        def loss(flat: Any) -> Any:
            return loss_of(unravel(flat), fixed, run.key, jnp.int32(0), batch)[0]

        return jax.grad(loss)(flat)

    def times(flat: Any, root: Any, vector: Any, fixed: Any, batch: Any) -> Any:
        # By differences: the second derivative as a program takes minutes to compile.
        way = vector / root
        way = NEAR * way / jnp.linalg.norm(way)
        ends = (gradient(flat + s * way, fixed, batch) for s in (1, -1))
        apart = next(ends) - next(ends)
        return apart / (2 * NEAR) * jnp.linalg.norm(vector / root) / root

    data = zip(range(WARM), run.batches.iterate(), strict=False)
    batches = [run.micro_batches(batch) for _, batch in data]
    fixed = run.fixed
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *batches[:BATCHES])
    tx = optax.adam(ramp.exponential(ramp.START, ramp.STOP, ramp.STEPS))
    flat, state = start, tx.init(start)
    for batch in batches:
        updates, state = tx.update(gradient(flat, fixed, batch), state)
        flat = optax.apply_updates(flat, updates)
    second = state[0].nu / (1 - 0.999 ** len(batches))
    plain, adams = jnp.ones_like(start), jnp.sqrt(jnp.sqrt(second) + 1e-8)
    found, products = {}, 0
    places = ((start, plain), (flat, plain), (flat, adams))
    for kind, (place, root) in zip(KINDS, places, strict=True):
        found[kind], count = largest(
            lambda v, place=place, root=root: times(place, root, v, fixed, whole),
            start.size,
        )
        products += count
    return {**found, "products": products}


def main() -> None:
    """Computes what is missing, then prints the regret of each kind as a rule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of cells' names")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    parser.add_argument("--models", type=Path, default=calibrate_rates.MODELS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    known = json.loads(args.out.read_text()) if args.out.is_file() else {}
    done = [rate_rules.measured(record) for record in calibrate_rates.records()]
    named = {calibrate_rates.cell_of(cell.record): cell for cell in done}
    wanted = [
        cell
        for cell in named
        if cell.optimizer == "adamw" and all(part in cell.name for part in args.only)
    ]
    programs.keep()
    left = [cell for cell in wanted if cell.name not in known and not args.report]
    for cell, run in calibrate_rates.runs(left, args.models):
        known[cell.name] = sharpness(run)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(known, indent=1) + "\n")
        print(cell.name, f"best {math.exp(named[cell].best):.2g}", known[cell.name])
    report(known, [named[cell] for cell in wanted if cell.name in known])


def report(known: dict[str, Any], cells: list[rate_rules.Measured]) -> None:
    """Prints the regret of each kind, beside that of what lr_find suggests."""

    def inverse(kind: str) -> rate_rules.Rule:
        def rule(cell: rate_rules.Measured) -> float | None:
            value = known[calibrate_rates.cell_of(cell.record).name][kind]
            return -math.log(value) if value > 0 else None  # nor where it is no number

        return rule

    fits = {
        f"sharpness {kind}{name}": rate_rules.shifted(inverse(kind), by=by)
        for kind in KINDS
        for name, by in (("", rate_rules.all_alike), (", by method", by_method))
    }
    for name, fit in {**fits, "the window": suggested()}.items():
        rates = rate_rules.left_out(fit, cells)
        pairs = [(c, r) for c, r in zip(cells, rates, strict=True) if r is not None]
        regrets = [cell.regret(rate) for cell, rate in pairs]
        off = math.exp(np.mean([abs(rate - cell.best) for cell, rate in pairs]))
        print(f"| {name} | {len(pairs)} | {rate_rules.row(regrets)} | {off:.2f} |")


def by_method(cell: rate_rules.Measured) -> str:
    """One factor for LoRA, one for full fine-tuning."""
    return cell.kind


def suggested() -> rate_rules.Fit:
    """What lr_find does."""
    return rate_rules.fits()[rate_rules.SUGGESTED]


if __name__ == "__main__":
    main()
