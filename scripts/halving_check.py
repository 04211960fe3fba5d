"""Successive halving beside the whole grid: the winner, the steps, the time.

    python scripts/halving_check.py
    python scripts/halving_check.py --steps 18 training.batch_size=2

Sweeps configs/quickstart.yaml over learning rates and ranks twice, once to the end of
every point and once with `--halving`; each sweep is a process of its own with nothing
compiled before. Prints wall time, the processor's time, the steps that all points took
together, and the best point of each with its evaluation loss.
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
CONFIG = ROOT / "configs" / "quickstart.yaml"
GRID = ("optimizer.learning_rate=1e-3,1e-2,1e-1", "adapter.r=4,16,64")
PLAIN = (
    *("training.batch_size=4", "training.eval_max_examples=32"),
    *("training.samples=0", "training.save_steps=1000"),
)


def sweep(folder: Path, *arguments: str) -> tuple[float, float, int, str]:
    """(seconds, processor seconds, steps of all points, the best in words)."""
    words = [sys.executable, "-m", "jaxpeft.sweep", "--config", str(CONFIG)]
    for axis in GRID:
        words += ["--grid", axis]
    start = time.monotonic()
    process = subprocess.Popen(
        [*words, *PLAIN, *arguments, "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "JAXPEFT_CACHE_DIR": "off"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sweep {' '.join(arguments)}: status {status}")
    seconds = time.monotonic() - start
    steps = sum(
        json.loads(path.read_text().splitlines()[-1])["step"]
        for path in folder.glob("points/*/metrics.jsonl")
    )
    points = json.loads((folder / "sweep.json").read_text())["points"]
    ended = [point for point in points if point["status"] == "done"]
    best = min(ended, key=lambda point: point["eval_loss"])
    said = f"{best['name']}, loss {best['eval_loss']:.4f}"
    return seconds, usage.ru_utime + usage.ru_stime, steps, said


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=54)
    parser.add_argument("overrides", nargs="*", help="section.key=value, of all points")
    parser.add_argument("--factor", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/halving_check"))
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    length = (
        f"training.max_steps={args.steps}",
        f"training.eval_steps={max(1, args.steps // args.factor**2)}",
    )
    print("| | s | processor s | steps of all points | best |")
    print("|---|---|---|---|---|")
    halving = ("--halving", str(args.factor))
    for name, more in (("whole grid", ()), (" ".join(halving), halving)):
        place = folder / name.replace(" ", "")
        found = sweep(place, *length, *args.overrides, *more)
        seconds, processor, steps, best = found
        print(f"| {name} | {seconds:.0f} | {processor:.0f} | {steps} | {best} |")


if __name__ == "__main__":
    main()
