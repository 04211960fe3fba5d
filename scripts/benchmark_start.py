"""Seconds from the command to its first step, without kept programs and with them.

    python scripts/benchmark_start.py
    python scripts/benchmark_start.py --config configs/e2e_lora.yaml --rounds 3

Starts `jaxpeft.train` in new output directories and ends it after its first step: with
JAXPEFT_CACHE_DIR=off, with an empty folder, and with what that start has left there.
Prints wall time and processor time (all threads); on a machine with other work only the
second says something.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(config: str, output: Path, kept: str) -> tuple[float, float]:
    """(wall seconds, processor seconds) until the first step is logged."""
    command = (sys.executable, "-m", "jaxpeft.train", "--config", config)
    begun = time.monotonic()
    child = subprocess.Popen(
        [*command, f"output_dir={output}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAXPEFT_CACHE_DIR": kept},
    )
    assert child.stdout is not None
    first = next((s for s in child.stdout if re.match(r"step +1/", s)), None)
    wall = time.monotonic() - begun
    child.kill()
    _, _, usage = os.wait4(child.pid, 0)
    if first is None:
        raise SystemExit("the run ended before its first step")
    return wall, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--rounds", type=int, default=1, help="default: 1; the least")
    args = parser.parse_args()
    found: dict[str, tuple[float, float]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            kept = str(Path(folder) / "kept")
            ways = {"off": "off", "first start": kept, "second start": kept}
            for number, (way, setting) in enumerate(ways.items()):
                taken = start(args.config, Path(folder) / str(number), setting)
                found[way] = tuple(map(min, found.get(way, taken), taken))
    print("| kept programs | wall s | processor s |")
    print("|---|---|---|")
    for way, (wall, processor) in found.items():
        print(f"| {way} | {wall:.1f} | {processor:.1f} |")


if __name__ == "__main__":
    main()
