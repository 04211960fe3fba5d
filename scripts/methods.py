"""Every adapter method on the same data: the table of docs/methods.md.

    python scripts/methods.py > table.md

Each trains the model and data of configs/e2e_lora.yaml, which lie in ../shared, for
the same steps; only the method, its size and its learning rate differ. Timings want
an idle machine. Takes about two minutes a method on 2 cores.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RANK = ["adapter.r=16", "adapter.lora_alpha=32"]
# name -> (learning rate, overrides). The rates are usual ones, not searched.
METHODS: dict[str, tuple[float, list[str]]] = {
    "full": (1e-3, ["adapter.method=full"]),
    "lora": (3e-3, RANK),
    "lora, rslora": (3e-3, [*RANK, "adapter.use_rslora=true"]),
    "lora, pissa": (1e-3, [*RANK, "adapter.init_lora_weights=pissa"]),
    "lora, olora": (1e-3, [*RANK, "adapter.init_lora_weights=olora"]),
    "lora, norms trained too": (
        3e-3,
        [*RANK, "adapter.modules_to_save=[norm, input_layernorm]"],
    ),
    "lora_fa": (3e-3, [*RANK, "adapter.method=lora_fa"]),
    "dora": (3e-3, [*RANK, "adapter.method=dora"]),
    "oft": (3e-3, ["adapter.method=oft"]),
    "vera": (3e-2, ["adapter.method=vera", "adapter.r=128"]),
    "ia3": (3e-2, ["adapter.method=ia3"]),
    "bottleneck": (3e-3, ["adapter.method=bottleneck", "adapter.reduction_factor=8"]),
    "prompt_tuning": (3e-2, ["adapter.method=prompt_tuning"]),
    "prefix_tuning": (3e-2, ["adapter.method=prefix_tuning"]),
    "lora over int8": (3e-3, [*RANK, "model.quantization=int8"]),
    "lora over nf4": (3e-3, [*RANK, "model.quantization=nf4"]),
}
HEADER = """| method | rate | trainable | adapter + optimizer MiB | temporaries MiB | \
tokens/s | evaluation loss |
|---|---|---|---|---|---|---|"""


def config(folder: Path) -> Path:
    """The recipe without what belongs to one method."""
    text = (ROOT / "configs/e2e_lora.yaml").read_text()
    kept = [
        line
        for line in text.splitlines()
        if line.strip().split(":")[0] not in ("r", "lora_alpha", "target_modules")
    ]
    path = folder / "methods.yaml"
    path.write_text("\n".join(kept) + "\n")
    return path


def run(name: str, recipe: Path, folder: Path, steps: int) -> str:
    """Trains one method and returns its line of the table."""
    rate, overrides = METHODS[name]
    output = folder / name.replace(" ", "_").replace(",", "")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaxpeft.train", "--config", str(recipe)),
            f"output_dir={output}",
            f"optimizer.learning_rate={rate}",
            f"training.max_steps={steps}",
            f"training.eval_steps={steps}",
            f"training.save_steps={steps}",
            *overrides,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    said = done.stdout + done.stderr
    total = re.search(r"total +[\d,]+ +([\d,]+ \([\d.]+%\))", said)
    kept = re.search(
        r"memory: .*?(adapter|weights) ([\d.,]+) MiB, optimizer ([\d.,]+)", said
    )
    widest = re.findall(r"(?:compil|load)ed the step .*?\((\d+) MiB of tempo", said)
    assert total and kept and widest, said
    lines = [json.loads(x) for x in (output / "metrics.jsonl").read_text().splitlines()]
    speeds = [
        line["tokens_per_second"] for line in lines if "tokens_per_second" in line
    ]
    loss = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    size = sum(float(kept[i].replace(",", "")) for i in (2, 3))
    return (
        f"| {name} | {rate:g} | {total[1]} | {size:.2f} | {max(map(int, widest))} | "
        f"{statistics.median(speeds):,.0f} | {loss:.4f} |"
    )


def main() -> None:
    """Prints the table, a line as soon as its method has trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        recipe = config(Path(folder))
        for name in args.only:
            print(run(name, recipe, Path(folder), args.steps), flush=True)


if __name__ == "__main__":
    main()
