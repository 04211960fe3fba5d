"""The best learning rate of each optimizer against LoRA's rank, on the shipped toy.

    python scripts/rate_against_rank.py           # trains the cells not there yet
    python scripts/rate_against_rank.py --plot    # the picture and the table alone

A cell is a method and a rank; its learning rates train by one program, in turn, and
the best is the one whose evaluation loss is lowest after the last step. Every cell is
added to the results as soon as it is done, so that the command may be stopped and
repeated. The picture needs matplotlib.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import calibrate_rates

from jaxpeft.assembly import configuration
from jaxpeft.assembly.run import Run
from jaxpeft.devices import programs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "rate_against_rank.json"
PICTURE = ROOT / "docs" / "images" / "rate_against_rank.png"
RANKS = (4, 64, 16)
RATES = ("1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1", "1e0")
ADAMW: dict[str, Any] = {"name": "adamw", "weight_decay": 0.0}
# The update is multiplied by 2 at every rank, but for rsLoRA: by 8 / sqrt(rank).
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": ADAMW},
    "adamw, rsLoRA": {
        "optimizer": ADAMW,
        "adapter.use_rslora": True,
        "adapter.lora_alpha": 8,
    },
    "adamw, LoRA+": {"optimizer": {**ADAMW, "lora_plus_ratio": 16.0}},
    "riemannian_adamw": {
        "optimizer": {"name": "riemannian_adamw", "weight_decay": 0.0}
    },
    "lora_muon": {"optimizer": {"name": "lora_muon", "max_grad_norm": None}},
    "lora_rite": {"optimizer": {"name": "lora_rite", "max_grad_norm": None}},
}
STEPS, BATCH, TARGETS = 30, 4, ["q_proj", "v_proj"]


def train(method: str, rank: int, opened: list[Run]) -> list[float | None]:
    """The evaluation loss at the end for each rate; None where it is no number.

    Args:
        method: a key of `METHODS`.
        rank: of the adapter.
        opened: a run whose base and data serve this one; empty: it is put there.
    """
    values = {
        "training.max_steps": STEPS,
        "training.batch_size": BATCH,
        "training.eval_max_examples": 64,
        "data.max_length": 96,
        "adapter.target_modules": TARGETS,
        "adapter.r": rank,
        "adapter.lora_alpha": 2 * rank,
        **METHODS[method],
    }
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", values=values)
    if not opened:
        opened.append(Run(cfg, shares=True))
    bench = calibrate_rates.Bench(Run(cfg, like=opened[0]))
    return [bench.trained(float(rate))["loss"] for rate in RATES]


def best(losses: list[float | None]) -> tuple[float, float]:
    """The best rate and the lowest loss.

    The rate is at the vertex of a parabola in its logarithm, through the best of the
    grid and its neighbours; at the end of the grid it is the grid's own.
    """
    known = [math.inf if x is None else x for x in losses]
    i = min(range(len(known)), key=known.__getitem__)
    logs = [math.log10(float(rate)) for rate in RATES]
    around = known[i - 1 : i + 2] if 0 < i < len(known) - 1 else []
    if len(around) < 3 or not all(map(math.isfinite, around)):
        return 10 ** logs[i], known[i]
    left, middle, right = around
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return 10 ** (logs[i] + shift * (logs[i + 1] - logs[i - 1]) / 2), known[i]


def table(cells: dict[str, list[float | None]]) -> str:
    """Markdown: the best rate and its loss of each method, a column for each rank.

    Where the best is the first or the last of the grid, it may lie beyond.
    """
    ranks = sorted({int(key.split("|")[1]) for key in cells})
    lines = ["| optimizer | " + " | ".join(f"r {r}" for r in ranks) + " | spread |"]
    lines.append("|---|" + "---|" * (len(ranks) + 1))
    for method in METHODS:
        texts, rates = [], []
        for rank in ranks:
            if (losses := cells.get(f"{method}|{rank}")) is None:
                texts.append("")
                continue
            rate, loss = best(losses)
            rates.append(rate)
            ends = {float(RATES[0]): "at most ", float(RATES[-1]): "at least "}
            texts.append(f"{ends.get(rate, '')}{rate:.2g} ({loss:.3f})")
        spread = f"{max(rates) / min(rates):.1f}" if len(rates) > 1 else ""
        lines.append(f"| {method} | " + " | ".join([*texts, spread]) + " |")
    return "\n".join(lines)


def draw(cells: dict[str, list[float | None]]) -> None:
    """The picture: the best rate, and the loss there, against the rank."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    ranks = sorted({int(key.split("|")[1]) for key in cells})
    for method, mark in zip(METHODS, "osD^vP"):
        at = [r for r in ranks if f"{method}|{r}" in cells]
        ends = [best(cells[f"{method}|{r}"]) for r in at]
        left.plot(at, [rate for rate, _ in ends], marker=mark, label=method)
        right.plot(at, [loss for _, loss in ends], marker=mark, label=method)
    left.set_yscale("log")
    for axes, title in ((left, "best learning rate"), (right, "evaluation loss there")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(r) for r in ranks])
        axes.set_xlabel("rank")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Train what is missing, then print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plot", action="store_true", help="train nothing")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    cells = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    programs.keep()
    opened: list[Run] = []
    for rank in () if args.plot else args.ranks:
        for method in args.methods:
            if (key := f"{method}|{rank}") not in cells:
                cells[key] = train(method, rank, opened)
                RESULTS.write_text(json.dumps(cells, indent=1) + "\n")
                print(key, cells[key], flush=True)
    print(table(cells))
    draw(cells)


if __name__ == "__main__":
    main()
