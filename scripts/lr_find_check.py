"""How near `lr_find` comes to the best rate of a grid: docs/learning_rate.md's table.

    python scripts/lr_find_check.py
    python scripts/lr_find_check.py --only lora --steps 100

The run is configs/e2e_lora.yaml, once as it is and once as full fine-tuning. Nine rates
from 1e-4 to 1e-1, evenly spaced in their logarithm, the rate that `lr_find` suggests
and the two of the classical rules are trained to the end, in one sweep; the table gives
their last evaluation losses. What is there already is not repeated. Takes one to two
hours on 2 cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "e2e_lora.yaml"
RATES = tuple(float(f"{10 ** (-4 + 3 * i / 8):.2e}") for i in range(9))
METHODS = {"lora": (), "full": ("adapter={method: full}",)}
WITHIN = 0.02  # of the best loss of the grid


def jaxpeft(command: str, *arguments: str) -> None:
    """Runs a command of the package on the configuration."""
    words = (sys.executable, "-m", f"jaxpeft.{command}", "--config", str(CONFIG))
    subprocess.run((*words, *arguments), check=True, cwd=ROOT)


def suggested(folder: Path, method: str, steps: int) -> dict[str, float]:
    """{rule: rate} of `lr_find` for these runs; "suggestion" is its choice, rounded."""
    if not (folder / "lr_find.json").exists():
        arguments = *METHODS[method], f"training.max_steps={steps}"
        jaxpeft("lr_find", *arguments, "--out", str(folder))
    found = json.loads((folder / "lr_find.json").read_text())
    others = {k: v for k, v in found["candidates"].items() if k != found["rule"]}
    return {"suggestion": found["suggestion"], **others}


def trained(
    folder: Path, method: str, rates: list[float], steps: int
) -> dict[float, float]:
    """{rate: evaluation loss at the end} of runs that train in one program."""
    grid = f"optimizer.learning_rate={','.join(f'{rate:g}' for rate in rates)}"
    jaxpeft(
        *("sweep", *METHODS[method], f"training.max_steps={steps}"),
        *("training.eval_steps=null", "training.samples=0"),
        *("--grid", grid, "--at-once", str(len(rates)), "--out", str(folder)),
    )
    points = json.loads((folder / "sweep.json").read_text())["points"]
    key = "optimizer.learning_rate"
    losses = {point["values"][key]: point["eval_loss"] for point in points}
    return {rate: float("inf") if x is None else x for rate, x in losses.items()}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--folder", default="runs/lr_find_check", help="of the runs")
    args = parser.parse_args()
    tables = []
    for method in args.only:
        folder = Path(args.folder).resolve() / f"{method}-{args.steps}"
        found = suggested(folder / "lr_find", method, args.steps)
        names = {float(f"{rate:.3g}"): name for name, rate in found.items()}
        names[float(f"{found['suggestion']:.3g}")] = "suggestion"
        rates = sorted({*RATES, *names})
        losses = trained(folder / "sweep", method, rates, args.steps)
        best = min(losses[rate] for rate in RATES)
        tables += [f"| rate, {method} | evaluation loss | above the best |"]
        tables += ["|---|---|---|"]
        for rate in rates:
            name = f", {names[rate]}" if rate in names else ""
            above = losses[rate] / best - 1
            tables.append(f"| {rate:.3g}{name} | {losses[rate]:.4f} | {above:.1%} |")
        above = losses[float(f"{found['suggestion']:.3g}")] / best - 1
        verdict = "within" if above <= WITHIN else "not within"
        tables += ["", f"{method}: {verdict} {WITHIN:.0%} of the grid's best", ""]
    print("\n".join(tables))


if __name__ == "__main__":
    main()
