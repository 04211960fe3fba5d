"""What each optimizer makes of a fine-tuning run: the last table of docs/optimizers.md.

    python scripts/optimizer_quality.py
    python scripts/optimizer_quality.py --only adamw adamw_8bit --seeds 1 --steps 50

The run is configs/e2e_lora.yaml, LoRA on the E2E restaurant data. For each optimizer a
short run with each of a few learning rates chooses the rate; with it come full runs
from several seeds. Finished runs are not repeated. Takes most of an hour on 2 cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "e2e_lora.yaml"
RATES = (1e-3, 3e-3, 1e-2)
# Optimizer's keys, rates to choose from, keys of the schedule.
COSINE = "{name: cosine, warmup_ratio: 0.1}"
CHOICES = {
    "adamw": ("", RATES, COSINE),
    "adamw_8bit": ("weight_decay: 0.01", RATES, COSINE),
    "adafactor": ("", RATES, COSINE),
    "lion": ("", (3e-4, 1e-3, 3e-3), COSINE),
    "apollo": ("rank: 8", RATES, COSINE),
    "grokadamw": ("", RATES, COSINE),
    "schedule_free_adamw": ("", RATES, "{name: constant, warmup_ratio: 0.1}"),
}


def evaluation_loss(
    folder: Path, name: str, rate: float, steps: int, seed: int
) -> float:
    """The last evaluation loss of a run, which is made unless it is there."""
    keys, _, schedule = CHOICES[name]
    output = folder / f"{name}-{rate:g}-{steps}-{seed}"
    metrics = output / "metrics.jsonl"
    if not (output / "adapter").is_dir():
        optimizer = f"name: {name}, learning_rate: {rate}, {keys}".rstrip(", ")
        command = [
            *(sys.executable, "-m", "jaxpeft.train", "--config", str(CONFIG)),
            f"output_dir={output}",
            f"seed={seed}",
            f"optimizer={{{optimizer}}}",
            f"schedule={schedule}",
            f"training.max_steps={steps}",
            "training.eval_steps=null",
            "training.samples=0",
            f"training.save_steps={steps}",
        ]
        programs = str(folder / "programs")
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": programs},
        )
    lines = map(json.loads, metrics.read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line][-1]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CHOICES), choices=CHOICES)
    parser.add_argument("--steps", type=int, default=200, help="of a full run")
    parser.add_argument("--seeds", type=int, default=3, help="full runs of each")
    parser.add_argument("--folder", default="runs/quality", help="where runs are kept")
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    print("| optimizer | rate | evaluation loss, mean | of each seed |")
    print("|---|---|---|---|")
    for name in args.only:
        short = {
            rate: evaluation_loss(folder, name, rate, args.steps * 3 // 10, 42)
            for rate in CHOICES[name][1]
        }
        rate = min(short, key=lambda rate: short[rate])
        losses = [
            evaluation_loss(folder, name, rate, args.steps, 42 + seed)
            for seed in range(args.seeds)
        ]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        print(f"| {name} | {rate:g} | {statistics.mean(losses):.4f} | {each} |")
        tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in short.items())
        print(f"{name}: short runs {tried}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
