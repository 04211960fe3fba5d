"""What a public sweep says of LoRA's best rate and the size of the model.

    python scripts/public_rates.py ../shared/spec/rates_tulu3.csv

The table is tinker-cookbook's `recipes/chat_sl/results/sft_sweep.md` (Apache-2.0): LoRA
of alpha 32 on all linear layers, tulu3, batch 128, 780 steps; columns model,
learning_rate, lora_rank, test_nll. For each model and rank with three rates or more the
best is at the vertex of a parabola through the lowest and its neighbours; the ranks of
a model are averaged, in the logarithm. Prints the models, and the line through them.
"""

import collections
import csv
import re
import sys

import numpy as np

# Those whose names do not say how many billion parameters they have.
SIZES = {"DeepSeek-V3.1": 671.0, "DeepSeek-V3.1-Base": 671.0}
SIZES |= {"Kimi-K2-Thinking": 1000.0, "Kimi-K2.5": 1000.0, "Kimi-K2.6": 1000.0}


def billions(model: str) -> float:
    """The parameters of a model, as its name has them."""
    name = model.split("/")[-1]
    found = re.search(r"(\d+(?:\.\d+)?)[Bb]", name)
    return float(found.group(1)) if found else SIZES[name]


def best(losses: dict[float, float]) -> float:
    """The logarithm of the best rate."""
    rates = sorted(losses)
    at = min(range(len(rates)), key=lambda n: losses[rates[n]])
    if 0 < at < len(rates) - 1:
        near = rates[at - 1 : at + 2]
        bend, slope, _ = np.polyfit(np.log(near), [losses[r] for r in near], 2)
        if bend > 0:
            return float(-slope / 2 / bend)
    return float(np.log(rates[at]))


def main() -> None:
    """Prints the table and the line."""
    sweeps: dict[tuple[str, str], dict[float, float]] = collections.defaultdict(dict)
    with open(sys.argv[1], encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rate, loss = float(row["learning_rate"]), float(row["test_nll"])
            sweeps[row["model"], row["lora_rank"]][rate] = loss
    of_model = collections.defaultdict(list)
    for (model, _), losses in sweeps.items():
        if len(losses) >= 3:
            of_model[model].append(best(losses))
    rows = sorted((billions(m), float(np.mean(b)), m) for m, b in of_model.items())
    for size, rate, model in rows:
        print(f"{size:7.1f}B  {np.exp(rate):.2e}  {model}")
    x, y = np.log([row[0] for row in rows]), np.array([row[1] for row in rows])
    line, spread = np.polyfit(x, y, 1, cov=True)
    off = np.abs(y - np.polyval(line, x))
    print(
        f"{np.exp(line[1]):.2e} x billions^{line[0]:.3f} (+- {spread[0, 0] ** 0.5:.3f})"
        f"; off by a factor of {np.exp(np.sqrt(np.mean(off**2))):.2f}, at worst "
        f"{np.exp(off.max()):.2f}, over {len(rows)} models"
    )


if __name__ == "__main__":
    main()
