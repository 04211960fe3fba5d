"""Shows that a killed run resumes bit for bit: the same final state, the same losses.

    python scripts/resume_check.py               20 steps against 10 + kill -9 + resume
    python scripts/resume_check.py --rounds 20   and 20 runs killed at random moments

Trains the quickstart's model and data with dropout, accumulation and packing. Exit
code 0: every run ended like the uninterrupted one.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
SETTINGS = [
    "adapter.lora_dropout=0.1",
    "data.packing=true",
    "data.eval=null",
    "training.eval_steps=null",
    f"training.max_steps={STEPS}",
    "training.gradient_accumulation_steps=2",
    "training.logging_steps=1",
    "training.save_steps=5",
    "training.samples=0",
]


def start(output: Path) -> subprocess.Popen:
    """The training command, running in a process of its own."""
    command = [sys.executable, "-m", "jaxpeft.train", "--config"]
    command += ["configs/quickstart.yaml", f"output_dir={output}", *SETTINGS]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def follow(child: subprocess.Popen) -> tuple[list[tuple[float, str]], str]:
    """((seconds since now, line) of all it says, the final state's hash or "")."""
    begun, lines = time.monotonic(), []
    for line in child.stdout:
        lines.append((time.monotonic() - begun, line.rstrip()))
    child.wait()
    hashes = [line for _, line in lines if line.startswith("state after step")]
    return lines, hashes[0].split(": ")[1] if hashes else ""


def losses(output: Path) -> dict[int, float]:
    """{step: training loss} of a run."""
    text = (output / "metrics.jsonl").read_text()
    return {line["step"]: line["loss"] for line in map(json.loads, text.splitlines())}


def sealed(output: Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    folders = (output / "checkpoints").glob("*/manifest.json")
    names = (path.parent.name for path in folders)
    return sorted(int(name) for name in names if name.isdigit())


def killed(output: Path, moment: float | None) -> tuple[list[int], str, str]:
    """Kills a run after `moment` seconds (None: once step 10 is sealed); repeats it.

    Returns the steps that were sealed, the step it continued from, the final hash.
    """
    child = start(output)
    time.sleep(moment or 0.0)
    while moment is None and 10 not in sealed(output):
        time.sleep(0.01)
    child.kill()
    child.communicate()
    before = sealed(output)
    lines, digest = follow(start(output))
    marks = [line.split()[-1] for _, line in lines if line.startswith("continuing")]
    return before, marks[0] if marks else "0", digest


def main() -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=0, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder, "straight")
        lines, expected = follow(start(straight))
        print(f"{STEPS} steps straight: state {expected or 'missing'}", flush=True)
        first = next((at for at, line in lines if line.startswith("step  1/")), 0.0)
        failures = not expected
        for number in range(args.rounds + 1) if expected else ():
            moment = draw.uniform(first, lines[-1][0]) if number else None
            output = Path(folder, str(number))
            before, at, digest = killed(output, moment)
            newest = str(before[-1]) if before else "0"
            ours, theirs = losses(output), losses(straight)
            apart = max(abs(ours.get(s, 1e9) - theirs[s]) for s in theirs)
            same = digest == expected and ours == theirs and at == newest
            when = f"after {moment:.1f} s" if moment else "after step 10"
            print(
                f"killed {when}: sealed {before}, resumed from {at}: state {digest}, "
                f"largest loss difference {apart:g}: {'same' if same else 'DIFFERENT'}",
                flush=True,
            )
            failures += not same
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
