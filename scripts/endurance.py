"""What a run bears: kills, damaged checkpoints, bad inputs, signals; one table each.

    python scripts/endurance.py                    all of it, about half an hour
    python scripts/endurance.py kills --count 20
    python scripts/endurance.py corruptions
    python scripts/endurance.py inputs
    python scripts/endurance.py signals

Exit code 0: everything ended as promised. The result stands in docs/reproducibility.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sigterm
from endured import corruptions, inputs, kills
from endured.runs import Trial

PARTS = ("kills", "corruptions", "inputs", "signals")


def signals() -> Iterator[Trial]:
    """SIGTERM at ten places of the quickstart, and the same command again."""
    places = list(sigterm.PLACES)
    for place, met, fine, ended in sigterm.table(places, "configs/quickstart.yaml", []):
        told = f"code {met.code}, repeated: {ended}"
        yield Trial(f"SIGTERM: {place}", fine, met.seconds, told)


def show(part: str, trials: Iterable[Trial]) -> list[Trial]:
    """Prints the table of one part as it fills."""
    print(f"\n### {part}\n\n| what | seconds | ended |\n|---|---|---|", flush=True)
    done = []
    for trial in trials:
        mark = "" if trial.passed else "**FAILED** "
        told = trial.told.replace("|", "\\|")
        print(f"| {trial.name} | {trial.seconds:.1f} | {mark}{told} |", flush=True)
        done.append(trial)
    passed = sum(trial.passed for trial in done)
    slowest = max((trial.seconds for trial in done), default=0.0)
    print(f"\n{part}: {passed}/{len(done)}, the slowest {slowest:.1f} s", flush=True)
    if part == "inputs":
        numbers = inputs.kinds([trial.name for trial in done])
        missing = sorted(set(range(1, 41)) - numbers)
        print(f"kinds of the forty: {40 - len(missing)}; without a row: {missing}")
        done += [Trial(f"{number}", False, 0.0, "no row") for number in missing]
    return done


def main() -> int:
    """Runs the parts that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=20, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--commands", type=int, default=4, help="damaged runs to end")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = {
            "kills": lambda: kills.trials(folder / "kills", args.count, args.seed),
            "corruptions": lambda: corruptions.trials(folder / "harm", args.commands),
            "inputs": lambda: inputs.trials(folder / "inputs"),
            "signals": signals,
        }
        for part in args.parts or PARTS:
            failed += sum(not trial.passed for trial in show(part, makers[part]()))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
