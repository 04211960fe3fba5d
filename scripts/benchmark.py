"""One LoRA training step here and in torch + peft, side by side.

    python scripts/benchmark.py
    python scripts/benchmark.py --dtype float32 bfloat16 --remat none full

Both programs are started with the same shapes, weights, data and threads, and take
turns step by step, so that whatever else the machine does meets both alike. On a
machine with an NVIDIA GPU the shapes are those of Llama-3.2-1B in bfloat16, and the
memory is the device's; elsewhere it is the resident memory of the process.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_child

PROGRAMS = {"jaxpeft": "benchmark_jax.py", "torch": "benchmark_torch.py"}
COLUMNS = {
    "program": "{name}",
    "dtype": "{dtype}",
    "remat": "{remat}",
    "s/step": "{seconds:.3f}",
    "tokens/s": "{tokens_per_second:,.0f}",
    "ratio": "{ratio}",
    "peak MiB": "{peak_mib:,.0f}",
    "first step s": "{first_step_seconds:.1f}",
    "first loss": "{first_loss:.5f}",
}


class Child:
    """A program under benchmark, running in a process of its own."""

    def __init__(
        self, name: str, args: argparse.Namespace, dtype: str, remat: str, *more: str
    ):
        """Start the program and wait until its first step is done."""
        self.name = name
        script = Path(__file__).with_name(PROGRAMS[name])
        options = [*benchmark_child.flags(args), "--dtype", dtype, "--remat", remat]
        options += more
        self.process = subprocess.Popen(
            [sys.executable, str(script), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment(args)},
        )
        self.first = self.read()
        self.last = self.first
        self.seconds: list[float] = []

    def read(self) -> dict[str, Any]:
        """The next line that the program prints."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"{PROGRAMS[self.name]} ended early with exit code {code}")
        return json.loads(line)

    def steps(self, count: int) -> list[float]:
        """Train `count` steps; the seconds that each took."""
        self.process.stdin.write(f"steps {count}\n")
        self.process.stdin.flush()
        self.last = self.read()
        return self.last["seconds"]

    def close(self) -> None:
        """End the program; a second call does nothing."""
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def environment(args: argparse.Namespace) -> dict[str, str]:
    """What both programs are told by environment variables."""
    result = {
        "OMP_NUM_THREADS": str(args.threads),
        "MKL_NUM_THREADS": str(args.threads),
        # Both share the device: neither may take all of its memory beforehand.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if args.device == "cpu":
        result["JAX_PLATFORMS"] = "cpu"
    return result


def say(text: str) -> None:
    """Progress, apart from the results on standard output."""
    print(text, file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, dtype: str, remat: str) -> list[dict[str, Any]]:
    """Start the programs, let them take turns, and return a row for each."""
    children: list[Child] = []
    try:
        for name in args.only or PROGRAMS:
            say(f"starting {name} ({dtype}, remat {remat})")
            children.append(Child(name, args, dtype, remat))
        for child in children:
            child.steps(args.steps)  # warm-up, not counted
        for turn in range(args.rounds):
            # Who goes first alternates too.
            for child in children if turn % 2 == 0 else reversed(children):
                child.seconds += child.steps(args.steps)
            latest = {c.name: round(c.seconds[-1], 3) for c in children}
            say(f"round {turn + 1} of {args.rounds}: {latest}")
    finally:
        for child in children:
            child.close()
    return rows(args, dtype, remat, children)


def rows(
    args: argparse.Namespace, dtype: str, remat: str, children: list[Child]
) -> list[dict[str, Any]]:
    """What was measured, with the speed of each relative to torch."""
    medians = {child.name: statistics.median(child.seconds) for child in children}
    return [
        {
            "name": child.name,
            "dtype": dtype,
            "remat": remat,
            "seconds": medians[child.name],
            "all_seconds": child.seconds,
            "tokens_per_second": args.batch * args.length / medians[child.name],
            "ratio": medians["torch"] / medians[child.name]
            if "torch" in medians
            else None,
            "peak_mib": child.last["peak_mib"],
            "current_mib": child.last["current_mib"],
            "first_step_seconds": child.first["first_step_seconds"],
            "first_loss": child.first["loss"],
            "last_loss": child.last["loss"],
            **{key: child.first[key] for key in ("program", "device", "trainable")},
        }
        for child in children
    ]


def table(measured: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table with aligned columns."""
    lines = [list(COLUMNS)]
    for row in measured:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        shown = {**row, "ratio": ratio}
        lines.append([text.format(**shown) for text in COLUMNS.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def arguments() -> argparse.Namespace:
    """The command line, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmark_child.add_shapes(parser)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(PROGRAMS), help="default: both")
    add("--dtype", nargs="+", choices=("float32", "bfloat16"))
    add("--remat", nargs="+", choices=("none", "full", "dots"), default=["none"])
    add("--rounds", type=int, default=5, help="turns of each program")
    add("--steps", type=int, default=2, help="steps a turn")
    add("--json", action="store_true", help="print JSON instead of a table")
    args = benchmark_child.complete(parser.parse_args())
    args.dtype = args.dtype or ["bfloat16" if args.device == "gpu" else "float32"]
    return args


def main() -> None:
    """Measure every dtype with every remat and print the results."""
    args = arguments()
    measured = []
    for dtype, remat in itertools.product(args.dtype, args.remat):
        measured += measure(args, dtype, remat)
    if args.json:
        print(json.dumps({"shapes": vars(args), "results": measured}, indent=2))
        return
    names = ("hidden", "layers", "heads", "kv_heads", "mlp", "vocab", "batch", "length")
    print(", ".join(f"{name} {getattr(args, name)}" for name in names))
    print(f"{measured[0]['device']}, {args.threads} threads, LoRA rank {args.rank}")
    print(", ".join(dict.fromkeys(row["program"] for row in measured)), end="\n\n")
    print(table(measured))


if __name__ == "__main__":
    main()
