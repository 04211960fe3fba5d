"""What five runs of a fixed seed compute, as digests: equal before and after a change.

    python scripts/state_digests.py            runs them, prints a line each
    python scripts/state_digests.py --json     the same as one JSON object
    python scripts/state_digests.py --only nf4,fused

A change that must not touch what is computed is followed by the same lines. They hold
for one machine and one set of versions: another processor may round otherwise.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["data.eval=null", "training.eval_steps=null", "training.samples=0"]
# name: (configuration, overrides, options). A sweep's digest is that of its adapters.
RUNS: dict[str, tuple[str, list[str], list[str]]] = {
    "quickstart": ("quickstart", [], []),
    "packed with dropout and accumulation": (
        "quickstart",
        [
            *QUICK,
            "data.packing=true",
            "adapter.lora_dropout=0.1",
            "training.gradient_accumulation_steps=2",
            "training.max_steps=20",
        ],
        [],
    ),
    "fused adalomo": ("full_adalomo", ["training.max_steps=20"], []),
    "nf4": (
        "quickstart",
        [*QUICK, "model.quantization=nf4", "training.max_steps=20"],
        [],
    ),
    "sweep": (
        "quickstart",
        ["training.max_steps=20", "training.samples=0"],
        ["--grid", "optimizer.learning_rate=3e-3,1e-2", "--grid", "seed=1,2"],
    ),
}


def digest(name: str, folder: Path) -> str:
    """The digest of one of the runs, made in `folder`."""
    config, overrides, options = RUNS[name]
    command = "sweep" if options else "train"
    output = folder / "run"
    place = ["--out", str(output)] if options else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"jaxpeft.{command}"),
            *("--config", f"configs/{config}.yaml", f"output_dir={output}"),
            *(*overrides, *options, *place),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    if options:
        found = hashlib.blake2b(digest_size=16)
        for path in sorted(output.glob("points/*/adapter/*.safetensors")):
            found.update(path.read_bytes())
        return found.hexdigest()
    return re.findall(r"^state after step \d+: (\w+)$", done.stdout, re.M)[0]


def main() -> None:
    """Runs what was asked for, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", help="names, with commas between them")
    args = parser.parse_args()
    names = [n for n in RUNS if not args.only or n.split()[0] in args.only.split(",")]
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = digest(name, Path(folder))
        if not args.json:
            print(f"{name:<30} {found[name]}", flush=True)
    if args.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
