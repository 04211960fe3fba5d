"""The run that is harmed: the quickstart's, with all that makes resuming hard."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
SAVE_STEPS = 5
SETTINGS = [
    "adapter.lora_dropout=0.1",
    "data.packing=true",
    "data.eval=null",
    "training.eval_steps=null",
    f"training.max_steps={STEPS}",
    "training.gradient_accumulation_steps=2",
    "training.logging_steps=1",
    f"training.save_steps={SAVE_STEPS}",
    "training.save_total_limit=2",
    "training.samples=0",
]


class Trial(NamedTuple):
    """One thing that was done to a run, and how it ended.

    Attributes:
        name: what was done.
        passed: whether it ended as promised.
        seconds: that it took.
        told: what was seen.
    """

    name: str
    passed: bool
    seconds: float
    told: str


def command(output: Path, *more: str) -> list[str]:
    """The training command into `output`."""
    train = [sys.executable, "-m", "jaxpeft.train", "--config"]
    return [*train, "configs/quickstart.yaml", f"output_dir={output}", *SETTINGS, *more]


def start(output: Path) -> subprocess.Popen:
    """The training command, running in a process of its own."""
    return subprocess.Popen(
        command(output),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def digest(lines: list[str]) -> str:
    """The final state's hash among the lines that a run printed, or ""."""
    found = [line for line in lines if line.startswith("state after step")]
    return found[0].split(": ")[1].strip() if found else ""


def losses(output: Path) -> dict[int, float]:
    """{step: training loss} of a run."""
    text = (output / "metrics.jsonl").read_text()
    return {line["step"]: line["loss"] for line in map(json.loads, text.splitlines())}


def sealed(output: Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    folders = (output / "checkpoints").glob("*/manifest.json")
    names = (path.parent.name for path in folders)
    return sorted(int(name) for name in names if name.isdigit())
