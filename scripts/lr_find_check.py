"""How near `lr_find` comes to the best rate of a grid: docs/learning_rate.md's table.

    python scripts/lr_find_check.py
    python scripts/lr_find_check.py --only lora --steps 100

The run is configs/e2e_lora.yaml, once as it is and once as full fine-tuning. Nine rates
from 1e-4 to 1e-1, evenly spaced in their logarithm, and the rate that `lr_find`
suggests are each trained to the end; the table gives their last evaluation losses.
Finished runs are not repeated. Takes about half an hour on 2 cores.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "e2e_lora.yaml"
RATES = tuple(float(f"{10 ** (-4 + 3 * i / 8):.2e}") for i in range(9))
METHODS = {"lora": (), "full": ("adapter={method: full}",)}
WITHIN = 0.02  # of the best loss of the grid


def evaluation_loss(folder: Path, method: str, rate: float, steps: int) -> float:
    """The last evaluation loss of a run, which is made unless it is there."""
    output = folder / f"{method}-{steps}-{rate:g}"
    metrics = output / "metrics.jsonl"
    if not metrics.exists() or len(_evaluations(metrics)) < 2:
        jaxpeft(
            folder,
            "train",
            *METHODS[method],
            f"output_dir={output}",
            f"optimizer.learning_rate={rate}",
            f"training.max_steps={steps}",
            "training.eval_steps=null",
            "training.samples=0",
            f"training.save_steps={steps}",
            "training.save_total_limit=1",
        )
    return _evaluations(metrics)[-1]


def suggestion(folder: Path, method: str, steps: int) -> float:
    """The rate that `lr_find` suggests for these runs."""
    output = folder / f"{method}-{steps}-lr_find"
    if not (output / "lr_find.json").exists():
        arguments = *METHODS[method], f"training.max_steps={steps}"
        jaxpeft(folder, "lr_find", *arguments, "--out", str(output))
    return json.loads((output / "lr_find.json").read_text())["suggestion"]


def jaxpeft(folder: Path, command: str, *arguments: str) -> None:
    """Runs a command of the package on the configuration."""
    subprocess.run(
        (
            *(sys.executable, "-m", f"jaxpeft.{command}"),
            *("--config", str(CONFIG), *arguments),
        ),
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
    )


def _evaluations(metrics: Path) -> list[float]:
    lines = map(json.loads, metrics.read_text().splitlines())
    return [
        float("inf") if line["eval_loss"] is None else line["eval_loss"]
        for line in lines
        if "eval_loss" in line
    ]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--folder", default="runs/lr_find_check", help="of the runs")
    parser.add_argument("--grid-only", action="store_true", help="no suggestion")
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    for method in args.only:
        # From the middle outwards, so that what matters is there first.
        order = sorted(RATES, key=lambda rate: abs(RATES.index(rate) - 4))
        losses = {}
        for rate in order:
            losses[rate] = evaluation_loss(folder, method, rate, args.steps)
            print(f"{method} {rate:.2e} {losses[rate]:.4f}", file=sys.stderr)
        if args.grid_only:
            continue
        chosen, best = suggestion(folder, method, args.steps), min(losses.values())
        print(f"\n| rate, {method} | evaluation loss | above the best |\n|---|---|---|")
        for rate in sorted(losses):
            loss = losses[rate]
            print(f"| {rate:.2e} | {loss:.4f} | {loss / best - 1:.1%} |")
        loss = evaluation_loss(folder, method, chosen, args.steps)
        above = loss / best - 1
        verdict = "within" if above <= WITHIN else "not within"
        print(f"| {chosen:.2e}, suggested | {loss:.4f} | {above:.1%} |")
        print(f"\n{method}: {verdict} {WITHIN:.0%} of the best rate of the grid")


if __name__ == "__main__":
    main()
