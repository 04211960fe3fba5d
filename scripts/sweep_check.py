"""A sweep in one program beside lone runs: time, memory, and whether they agree.

    python scripts/sweep_check.py
    python scripts/sweep_check.py --steps 60 --rates 1e-3 3e-3 1e-2

Trains configs/e2e_lora.yaml at several learning rates, first each rate alone, with
`train`, then all of them with one `sweep`; every command is a process of its own with
nothing compiled before. Prints wall time and peak resident memory of both, and how far
the losses of each point are from its lone run's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "e2e_lora.yaml"
RATES = ("3e-4", "1e-3", "3e-3", "6e-3", "1e-2", "2e-2")
# Neither evaluated nor answered on the way: what is compared is the training.
PLAIN = ("training.eval_steps=null", "training.samples=0", "training.save_steps=1000")


def run(command: str, *arguments: str) -> tuple[float, float]:
    """(seconds, peak MiB) of a command."""
    words = [sys.executable, "-m", f"jaxpeft.{command}", "--config", str(CONFIG)]
    start = time.monotonic()
    process = subprocess.Popen(
        [*words, *PLAIN, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "JAXPEFT_CACHE_DIR": "off"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} {' '.join(arguments)}: status {status}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def losses(folder: Path) -> list[float]:
    """All losses in a run's metrics."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("eval_loss")) for line in lines]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep_check"))
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    steps = f"training.max_steps={args.steps}"
    alone = []
    for rate in args.rates:
        output = f"output_dir={folder / rate}"
        alone.append(run("train", steps, output, f"optimizer.learning_rate={rate}"))
        print(f"alone {rate}: {alone[-1][0]:.1f} s", file=sys.stderr)
    grid = f"optimizer.learning_rate={','.join(args.rates)}"
    seconds, peak = run("sweep", steps, "--grid", grid, "--out", str(folder / "sweep"))

    apart = 0.0
    for number, rate in enumerate(args.rates):
        point = losses(folder / "sweep" / "points" / f"{number:02}")
        lone = losses(folder / rate)
        assert len(point) == len(lone)
        apart = max(apart, *(abs(a - b) / b for a, b in zip(point, lone)))
    total, largest = sum(s for s, _ in alone), max(m for _, m in alone)
    print(f"| {len(args.rates)} learning rates, {args.steps} steps | s | peak MiB |")
    print("|---|---|---|")
    print(f"| one after another | {total:.0f} | {largest:,.0f} |")
    print(f"| one program | {seconds:.0f} | {peak:,.0f} |")
    print(f"\ntime {seconds / total:.2f} of theirs, memory {peak / largest:.2f} of one")
    print(f"losses at most {apart:.1e} apart (relative)")


if __name__ == "__main__":
    main()
