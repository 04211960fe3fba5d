"""The best learning rate of each optimizer against LoRA's rank, on two small models.

    python scripts/calibration_models.py --only wide    # once: one of the models
    python scripts/rate_against_rank.py           # trains the cells not there yet
    python scripts/rate_against_rank.py --plot    # the picture and the table alone

A cell is a model, a method and a rank: at most the shorter side of any matrix, 64 in
the shipped toy and 256 in the other. Its learning rates train by one program, in turn,
and the best is the one whose evaluation loss is lowest after the last step. Every cell
is added to the results as soon as it is done, so that the command may be stopped and
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
# The ranks that each takes.
MODELS = {"toy": (4, 64, 16), "wide": (256, 16, 64, 4)}
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


Cells = dict[str, list[float | None]]


def key_of(model: str, method: str, rank: int) -> str:
    """Where a cell's losses are in the results."""
    return f"{method}|{rank}" + (f"|{model}" if model != "toy" else "")


def train(model: str, method: str, rank: int, opened: list[Run]) -> list[float | None]:
    """The evaluation loss at the end for each rate; None where it is no number.

    Args:
        model: a key of `MODELS`.
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
    if model != "toy":
        values["model.path"] = str(calibrate_rates.MODELS / model / "model")
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


def known_ranks(cells: Cells, model: str) -> list[int]:
    """The ranks that a model has a cell of, rising."""
    return sorted(
        rank
        for rank in MODELS[model]
        if any(key_of(model, method, rank) in cells for method in METHODS)
    )


def table(cells: Cells, model: str) -> str:
    """Markdown: the best rate and its loss of each method, a column for each rank.

    Where the best is the first or the last of the grid, it may lie beyond.
    """
    ranks = known_ranks(cells, model)
    lines = [f"| {model} | " + " | ".join(f"r {r}" for r in ranks) + " | spread |"]
    lines.append("|---|" + "---|" * (len(ranks) + 1))
    for method in METHODS:
        texts, rates = [], []
        for rank in ranks:
            if (losses := cells.get(key_of(model, method, rank))) is None:
                texts.append("")
                continue
            rate, loss = best(losses)
            rates.append(rate)
            ends = {float(RATES[0]): "at most ", float(RATES[-1]): "at least "}
            texts.append(f"{ends.get(rate, '')}{rate:.2g} ({loss:.3f})")
        spread = f"{max(rates) / min(rates):.1f}" if len(rates) > 1 else ""
        lines.append(f"| {method} | " + " | ".join([*texts, spread]) + " |")
    return "\n".join(lines)


def draw(cells: Cells) -> None:
    """The picture: the best rate against the rank, a part for each model."""
    import matplotlib.pyplot as plt

    shown = [model for model in MODELS if len(known_ranks(cells, model)) > 1]
    figure, parts = plt.subplots(
        1, len(shown), figsize=(5 * len(shown) + 2, 4), sharey=True, squeeze=False
    )
    figure.set_layout_engine("constrained")
    for axes, model in zip(parts[0], shown, strict=True):
        ranks = known_ranks(cells, model)
        for method, mark in zip(METHODS, "osD^vP", strict=True):
            known = [
                (rank, best(losses)[0])
                for rank in ranks
                if (losses := cells.get(key_of(model, method, rank))) is not None
            ]
            if known:
                axes.plot(*zip(*known, strict=True), marker=mark, label=method)
        axes.set_yscale("log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(r) for r in ranks])
        axes.set_xlabel("rank")
        axes.set_title(f"best learning rate, {model}")
        axes.grid(alpha=0.3)
    figure.legend(*parts[0][0].get_legend_handles_labels(), loc="outside right")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Train what is missing, then print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plot", action="store_true", help="train nothing")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--ranks", type=int, nargs="+", help="default: all of a model")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    cells = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    programs.keep()
    for model in () if args.plot else args.models:
        opened: list[Run] = []
        for rank in args.ranks or MODELS[model]:
            for method in args.methods:
                if (key := key_of(model, method, rank)) not in cells:
                    cells[key] = train(model, method, rank, opened)
                    RESULTS.write_text(json.dumps(cells, indent=1) + "\n")
                    print(key, cells[key], flush=True)
    print("\n".join(table(cells, model) for model in MODELS))
    draw(cells)


if __name__ == "__main__":
    main()
