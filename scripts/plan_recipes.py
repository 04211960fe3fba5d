"""What the recipes in configs/ need, by `jaxpeft.plan`, on the first lines of each.

    python scripts/plan_recipes.py                      # all, 20 s each on 2 cores
    python scripts/plan_recipes.py llama-3.1-8b_lora    # some
    python scripts/plan_recipes.py --check NAME         # says whether it still holds

The figures are of one GPU, from shapes in configs/shapes/, and stand in each recipe and
in the table of docs/recipes.md.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "recipes.md"
# A recipe's model: the folder with its shapes.
SHAPES = {
    "llama-3.2-1b": "Llama-3.2-1B",
    "llama-3.1-8b": "Llama-3.1-8B",
    "qwen2.5-0.5b": "Qwen2.5-0.5B",
    "qwen2.5-7b": "Qwen2.5-7B",
    "qwen3-8b": "Qwen3-8B",
    "gemma-3-4b": "Gemma-3-4B",
    "mistral-7b": "Mistral-7B",
}
GIB, HEADROOM = 2**30, 0.92  # the rest is for the runtime, as plan has it
SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # GB of GPUs that there are
COLUMNS = ("weights", "adapters", "optimizer", "activations", "temporaries", "total")
HEAD = (
    "| recipe | trainable | weights | adapters | optimizer | activations | temporaries "
)
HEAD += "| total | one GPU of |"


def recipes() -> list[str]:
    """The names of all recipes, by model."""
    found = {path.stem for path in CONFIGS.glob("*.yaml")}
    return [
        name for model in SHAPES for name in sorted(found) if model_of(name) == model
    ]


def model_of(name: str) -> str:
    """A recipe's model: `qwen3-8b` of `qwen3-8b_lora`."""
    return name.partition("_")[0]


def planned(name: str) -> dict:
    """What `jaxpeft.plan` says of a recipe on one GPU."""
    command = [
        *(sys.executable, "-m", "jaxpeft.plan"),
        *("--config", str(CONFIGS / f"{name}.yaml")),
        f"model.path={CONFIGS / 'shapes' / SHAPES[model_of(name)]}",
        *("--devices", "1", "--platform", "gpu", "--json"),
    ]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def gpu(total: int) -> int:
    """The GB of the smallest GPU that so many bytes fit on."""
    return next(size for size in SIZES if total <= HEADROOM * size * 1e9)


def row(name: str, plan: dict) -> str:
    """The recipe's row of the table."""
    sizes = " | ".join(f"{plan[column] / GIB:.2f}" for column in COLUMNS)
    return (
        f"| [`{name}`](../configs/{name}.yaml) | {plan['trainable']:,} | {sizes} "
        f"| {gpu(plan['total'])} GB |"
    )


def head(plan: dict) -> str:
    """The recipe's lines about hardware and memory."""
    total, weights = plan["total"] / GIB, plan["weights"] / GIB
    return (
        f"# Hardware: one GPU of {gpu(plan['total'])} GB\n"
        f"# Expected: {total:.2f} GiB at the fullest moment, {weights:.2f} of them "
        "weights (docs/recipes.md)\n"
    )


def with_head(text: str, plan: dict) -> str:
    """A recipe's text with the lines about hardware and memory that hold."""
    return re.sub(r"# Hardware: .*\n# Expected: .*\n", head(plan), text, count=1)


def main(argv: list[str]) -> int:
    """Plans the recipes named, or all, and writes or checks what stands of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    differing = []
    for name in args.names or recipes():
        plan = planned(name)
        path, line = CONFIGS / f"{name}.yaml", row(name, plan)
        print(line, flush=True)
        page = PAGE.read_text()
        if line not in page or head(plan) not in path.read_text():
            differing.append(name)
        if not args.check:
            path.write_text(with_head(path.read_text(), plan))
            PAGE.write_text(with_row(page, name, line))
    if args.check and differing:
        print("these differ:", ", ".join(differing))
    return 1 if args.check and differing else 0


def with_row(page: str, name: str, line: str) -> str:
    """The page with a recipe's row in its place in the table."""
    before, _, after = page.partition(HEAD + "\n")
    rule, *lines = after.splitlines(keepends=True)
    end = next((i for i, text in enumerate(lines) if text[0] != "|"), len(lines))
    rows = {re.findall(r"`(.*?)`", text)[0]: text for text in lines[:end]}
    rows[name] = line + "\n"
    table = "".join(rows[known] for known in recipes() if known in rows)
    return before + HEAD + "\n" + rule + table + "".join(lines[end:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
