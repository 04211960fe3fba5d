"""Steps of large models compiled for TPUs and GPUs that are not here: docs/planning.md.

    python scripts/aot_check.py
    python scripts/aot_check.py --only "8B LoRA, 8 x H100" --json steps.json

Needs the extras aot-tpu and aot-cuda, and no device. One row after another, each in a
process of its own; a row for a TPU takes minutes. What a compiler said of the same step
before is kept beside the cache of programs and not asked again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
GIB = 2**30
SHAPES = "model.path=configs/shapes/"


class Row(NamedTuple):
    """A step.

    Attributes:
        target: what it is compiled for.
        config: its configuration.
        overrides: of the configuration.
    """

    target: str
    config: str
    overrides: tuple[str, ...]


B1 = ("configs/llama-3.2-1b_lora.yaml", (f"{SHAPES}Llama-3.2-1B",))
B8 = ("configs/plan_only.yaml", ())
QLORA = ("configs/llama-3.1-8b_qlora.yaml", (f"{SHAPES}Llama-3.1-8B",))
FULL = ("configs/llama-3.1-8b_full_adamw_8bit.yaml", (f"{SHAPES}Llama-3.1-8B",))
LONG = ("data.max_length=8192", "training.batch_size=1")
LONG += ("training.gradient_accumulation_steps=1",)
ONE_BY_ONE = "training.gradient_accumulation_steps=16"
ROWS = {
    "1B LoRA, v5e": Row("v5e-1", *B1),
    "1B LoRA, v5e, one by one": Row("v5e-1", B1[0], (*B1[1], ONE_BY_ONE)),
    "1B LoRA, v5e-8, fsdp 8": Row("v5e-8", B8[0], (f"{SHAPES}Llama-3.2-1B",)),
    "8B LoRA, v5e-16, fsdp 16": Row("v5e-16", *B8),
    "8B LoRA, v5p:2x2x2, fsdp 8": Row("v5p:2x2x2", *B8),
    "8B QLoRA nf4, v5e": Row("v5e-1", *QLORA),
    "8B full adamw_8bit, v5p": Row("v5p:1x1x1", *FULL),
    "1B LoRA, H100": Row("h100x1", *B1),
    "8B LoRA, 8 x H100, fsdp 8": Row("h100x8", *B8),
    "8B QLoRA nf4, H100": Row("h100x1", *QLORA),
    "8B full adamw_8bit, H100": Row("h100x1", *FULL),
    "1B LoRA, 8192 tokens, H100": Row("h100x1", B1[0], (*B1[1], *LONG)),
}
HEAD = (
    *("step", "compiled, GiB", "estimated step, s", "at the peak, s", "ratio"),
    *("MFU", "tokens/s a device", "waiting", "costliest"),
)


def main() -> int:
    """Prints the table; 1 where a step does not compile or does not fit."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these")
    parser.add_argument("--json", help="a file for all figures")
    parser.add_argument("--facts", action="store_true", help="print them for each row")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        Path(args.json).write_text(json.dumps(measure(ROWS[args.row])))
        return 0
    named = [n for n in ROWS if args.only and n in args.only]
    chosen = named or [
        n for n in ROWS if not args.only or any(x in n for x in args.only)
    ]
    if not chosen:
        parser.error(f"--only {args.only}: no row is called so; there are {list(ROWS)}")
    print("|".join(("", *HEAD, "")), "|---" * len(HEAD) + "|", sep="\n", flush=True)
    figures = {}
    for name in chosen:
        figures[name] = in_child(name)
        print(as_line(name, figures[name]), flush=True)
        if args.facts:
            print(*(f"    {line}" for line in figures[name].get("facts", ())), sep="\n")
        if args.json:
            Path(args.json).write_text(json.dumps(figures, indent=1))
    return int(any("failed" in one for one in figures.values()))


def in_child(name: str) -> dict[str, Any]:
    """The figures of a row, by a process that has no device."""
    from jaxpeft.plan.targeted import ALONE

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "row.json")
        done = subprocess.run(
            [sys.executable, __file__, "--row", name, "--json", str(path)],
            cwd=ROOT,
            env={**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        return json.loads(path.read_text())


def measure(row: Row) -> dict[str, Any]:
    """What a step needs and takes, on one device."""
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import topologies
    from jaxpeft.plan import compiling
    from jaxpeft.plan.facts import facts

    target = topologies.parse(row.target)
    cfg = configuration.open_config(row.config, list(row.overrides))
    found = compiling.compiled(cfg, target, topologies.devices(target))
    cost = found.estimate
    if cost is None:
        return {"failed": found.verdict.refused[:300], "bytes": found.total}
    step = facts(
        found.program, length=cfg.data.max_length, vocabulary=found.model.vocab_size
    )
    return {
        "bytes": found.total,
        "seconds": cost.seconds,
        "roofline": cost.roofline,
        "at_peak": cost.at_peak,
        "mfu": found.mfu,
        "speed": found.speed / found.target.count,
        "waits": cost.waits,
        "sent": step.sent,
        "places": [place._asdict() for place in cost.places[:20]],
        "unknown": cost.unknown,
        "facts": step.lines(),
        "compiler": found.verdict.compiler,
        "compiling": found.verdict.seconds,
    }


def as_line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    if "failed" in row:
        return f"| {name} | failed: {row['failed']} |" + " |" * (len(HEAD) - 2)
    costliest = ", ".join(
        f"{place['name']} {place['seconds'] / row['seconds']:.0%}"
        for place in row["places"][:3]
    )
    cells = (
        name,
        f"{row['bytes'] / GIB:.2f}",
        f"{row['seconds']:.3g}",
        f"{row['at_peak']:.3g}",
        f"{row['seconds'] / row['at_peak']:.2f}",
        f"{row['mfu']:.0%}",
        f"{row['speed']:,.0f}",
        f"{row['waits'] / row['seconds']:.0%}",
        costliest,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
