"""How much a learning rate chosen by a rule costs, from docs/calibration.jsonl alone.

    python scripts/rate_rules.py              # the tables of docs/learning_rate.md
    python scripts/rate_rules.py --cells      # and the rates of each cell
    python scripts/rate_rules.py --best       # the best rates alone
    python scripts/rate_rules.py --transfer   # how they move with one setting

Regret is what a run at the chosen rate loses: its evaluation loss over that at the best
rate, as a share of what the best run brought the loss down by. Between the rates that
were trained, losses are interpolated in the logarithm of the rate. Whatever a rule has
to be fitted to are the cells of the other models: each model is left out once.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calibrate_rates
import numpy as np
from scipy.interpolate import Akima1DInterpolator

from jaxpeft.errors import InputError
from jaxpeft.lr_find import curve as range_curve
from jaxpeft.lr_find.curve import Curve
from jaxpeft.optim import OPTIMIZERS

FINE = 64  # points of the interpolation in a factor of 2


@dataclass(frozen=True)
class Measured:
    """A cell as it was measured; rates are natural logarithms.

    Attributes:
        record: its line.
        rates: (n,), those trained at, rising.
        regrets: (n,), of each of them, at most 1.
        best: the rate at the bottom of the interpolation.
        curve: of the range test.
        level: the same, its batches made alike by their losses before it.
    """

    record: dict[str, Any]
    rates: np.ndarray
    regrets: np.ndarray
    best: float
    curve: Curve
    level: Curve

    @property
    def kind(self) -> str:
        """lora or full."""
        return self.record["method"].split("-")[0]

    @property
    def optimizer(self) -> str:
        """The steps that are taken, however the state is held."""
        return self.record["optimizer"].removesuffix("_8bit")

    @property
    def rank(self) -> int | None:
        """LoRA's."""
        return calibrate_rates.lora_of(self.record["method"])[0] or None

    def regret(self, rate: Any) -> Any:
        """What a rate costs, from 0 to 1; beyond those trained at, what the last does.

        Args:
            rate: one, or an array of them.
        """
        inside = np.clip(rate, self.rates[0], self.rates[-1])
        return np.clip(self._spline(inside), 0.0, 1.0)

    @functools.cached_property
    def _spline(self) -> Any:
        return Akima1DInterpolator(self.rates, self.regrets)


def measured(record: dict[str, Any]) -> Measured:
    """A line, with what it says of each rate."""
    first = record["first_loss"]
    rates = np.log([point["rate"] for point in record["sweep"]])
    ends = [first if p["loss"] is None else p["loss"] for p in record["sweep"]]
    losses = np.minimum(ends, first)  # what is worse than no training is not told apart
    spline = Akima1DInterpolator(rates, losses)
    count = round((rates[-1] - rates[0]) / math.log(2) * FINE) + 1
    dense = np.linspace(rates[0], rates[-1], count)
    lowest = int(np.argmin(spline(dense)))
    least = float(spline(dense[lowest]))
    told = record["range"]
    whole = [math.inf if x is None else x for x in told["losses"]]
    steps = np.geomspace(told["start"], told["stop"], told["steps"])[: len(whole)]
    before = np.asarray(told["before"])
    level = range_curve.levelled(whole, before)
    ended = (
        range_curve.diverged(level[:n], told["steps"]) for n in range(1, 1 + len(level))
    )
    end = next((n for n, over in enumerate(ended, 1) if over), len(level))
    return Measured(
        record,
        rates,
        (losses - least) / (first - least),
        float(dense[lowest]),
        Curve(steps, np.asarray(whole), told["steps"]),
        Curve(steps[:end], level[:end], told["steps"]),
    )


# From a cell to the logarithm of a rate; None where the rule has nothing to say.
Rule = Callable[[Measured], float | None]
Fit = Callable[[Sequence[Measured]], Rule]


def classical(name: str, of: str = "curve") -> Rule:
    """One of `curve.RULES`, of a curve as it is or of the level one."""

    def rule(cell: Measured) -> float | None:
        try:
            return math.log(range_curve.candidates(getattr(cell, of))[name])
        except InputError:
            return None

    return rule


def fallen(share: float, of: str = "level") -> Rule:
    """Where the smoothed loss has first come down by a share of its whole way."""

    def rule(cell: Measured) -> float | None:
        curve = getattr(cell, of)
        smoothed = curve.smoothed
        lowest = int(np.nanargmin(smoothed))
        first = float(np.mean(curve.losses[: range_curve.FIRST]))
        bar = first - share * (first - smoothed[lowest])
        rates = np.log(curve.rates)
        after = int(np.argmax(smoothed <= bar))
        if after == 0:
            return float(rates[0])
        part = (smoothed[after - 1] - bar) / (smoothed[after - 1] - smoothed[after])
        return float(rates[after - 1] + part * (rates[after] - rates[after - 1]))

    return rule


def last_good(climb: float, of: str = "level") -> Rule:
    """The last rate before the smoothed loss climbs by a share of its whole way."""

    def rule(cell: Measured) -> float | None:
        curve = getattr(cell, of)
        smoothed = curve.smoothed
        lowest = int(np.nanargmin(smoothed))
        first = float(np.mean(curve.losses[: range_curve.FIRST]))
        bar = smoothed[lowest] + climb * (first - smoothed[lowest])
        good = [i for i in range(lowest, len(smoothed)) if smoothed[i] <= bar]
        return math.log(curve.rates[good[-1]])

    return rule


def window(cell: Measured) -> float | None:
    """The middle of the window, without the library's factor."""
    try:
        rate = range_curve.candidates(cell.level)["window"]
    except InputError:
        return None
    return math.log(rate / range_curve.TIMES)


By = Callable[[Measured], str]


def all_alike(cell: Measured) -> str:
    """One factor for all."""
    return ""


def by_averaging(cell: Measured) -> str:
    """One for optimizers that average their parameters, one for the others."""
    return "averaged" * OPTIMIZERS[cell.optimizer].averages


def by_group(cell: Measured) -> str:
    """One for each method and optimizer."""
    return f"{cell.kind} {cell.optimizer}"


SHIFTS = np.arange(-12.0, 4.0, 0.05)  # logarithms of factors that are tried


def shift(cells: Sequence[tuple[Measured, float]], like: Measured, by: By) -> float:
    """The logarithm of the factor by which rates are best multiplied.

    It is the one of the least mean regret. Cells of other groups count for a fiftieth
    too: where a group has one cell or none they say something.

    Args:
        cells: each with the rate to be multiplied.
        like: a cell of the group that it is for.
        by: names the group of a cell.
    """
    total = np.zeros_like(SHIFTS)
    for cell, rate in cells:
        weight = 1.0 if by(cell) == by(like) else 0.02
        total += weight * cell.regret(rate + SHIFTS)
    return float(SHIFTS[int(np.argmin(total))])


def shifted(rule: Rule, weight: float = 1.0, by: By = by_group) -> Fit:
    """A rule's rate to a power, times a factor that suits the other models.

    Args:
        rule: to begin with.
        weight: the power; 0 leaves the factor alone, which is a prior.
        by: which cells share a factor.
    """

    def fit(others: Sequence[Measured]) -> Rule:
        known = [(c, weight * r) for c in others if (r := rule(c)) is not None]

        def shifted_rule(cell: Measured) -> float | None:
            if (rate := rule(cell)) is None:
                return None
            return weight * rate + shift(known, cell, by)

        return shifted_rule

    return fit


def weighed(rule: Rule) -> Fit:
    """`shifted` by the power that suits the other models, each of them left out."""

    def fit(others: Sequence[Measured]) -> Rule:
        def cost(weight: float) -> float:
            rates = left_out(shifted(rule, weight), others)
            pairs = zip(others, rates, strict=True)
            return float(np.mean([c.regret(r) for c, r in pairs if r is not None]))

        best = min((0.0, 0.25, 0.5, 0.75, 1.0), key=cost)
        return shifted(rule, best)(others)

    return fit


def constant(cell: Measured) -> float:
    """The rule that says nothing of the cell."""
    return 0.0


def fixed(rule: Rule) -> Fit:
    """A rule that is fitted to nothing."""
    return lambda others: rule


def halving(*rounds: tuple[int, int]) -> Rule:
    """The rate left over of a few, of which the better part goes on from time to time.

    The rates lie a factor of 2 apart around the middle of the window, and are judged by
    the training loss of the last of some blocks of steps, on the same batches.

    Args:
        rounds: how many rates there are, and after how many blocks of
            `calibrate_rates.BLOCK` steps each they are judged, the last one for good.
    """

    def rule(cell: Measured) -> float | None:
        if (centre := window(cell)) is None:
            return None

        def loss(i: int, block: int) -> float:
            trained = cell.record["sweep"][i]["train"]
            return trained[min(block, len(trained)) - 1] if trained else math.inf

        left = list(np.argsort(np.abs(cell.rates - centre)))
        blocks = 0
        for count, until in (*rounds, (1, 0)):
            if blocks:
                left.sort(key=lambda i, b=blocks: loss(i, b))
            left, blocks = left[:count], until
        return float(cell.rates[left[0]])

    return rule


def fits() -> dict[str, Fit]:
    """All that is compared."""
    return {
        "steepest": fixed(classical("steepest")),
        "tenth": fixed(classical("tenth")),
        "between": fixed(classical("between")),
        "steepest, level": fixed(classical("steepest", "level")),
        "tenth, level": fixed(classical("tenth", "level")),
        "between, level": fixed(classical("between", "level")),
        "prior of method and optimizer": shifted(constant, 0.0),
        "between x factor": shifted(classical("between"), by=all_alike),
        "between, level, x factor": shifted(
            classical("between", "level"), by=all_alike
        ),
        "last good, level, x factor": shifted(last_good(0.1), by=all_alike),
        "half down, level, x factor": shifted(fallen(0.5), by=all_alike),
        "half down, level, with prior": weighed(fallen(0.5)),
        "window, level, x factor": shifted(window, by=all_alike),
        "window, level, x factors of averaging": shifted(window, by=by_averaging),
        "window, level, with prior": weighed(window),
        "5 rates of 10 steps each": fixed(halving((5, 2))),
        "5 rates of 20 steps each": fixed(halving((5, 4))),
        "5 rates of 10 steps, the best 2 of 30": fixed(halving((5, 2), (2, 6))),
        "the same x factor": shifted(halving((5, 2), (2, 6)), by=all_alike),
    }


SUGGESTED = "window, level, x factors of averaging"  # what lr_find does


def left_out(fit: Fit, cells: Sequence[Measured]) -> list[float | None]:
    """The rate of each cell by a rule that has not seen its model."""
    rates = {}
    for model in {cell.record["model"] for cell in cells}:
        rule = fit([cell for cell in cells if cell.record["model"] != model])
        for number, cell in enumerate(cells):
            if cell.record["model"] == model:
                rates[number] = rule(cell)
    return [rates[number] for number in range(len(cells))]


def row(regrets: Sequence[float]) -> str:
    """Median, 90 % and worst, as cells of a table."""
    a = 100 * np.asarray(regrets)
    return f"{np.median(a):.1f} | {np.percentile(a, 90):.1f} | {a.max():.1f}"


def table(cells: Sequence[Measured]) -> list[str]:
    """Markdown: the regret of each rule in percent, over all and by model left out.

    A model's column has the median and the worst. The last has the factor by which the
    rule's rate is off the best one, in the geometric mean.
    """
    models = sorted({cell.record["model"] for cell in cells})
    lines = [
        f"| rule | cells | median | 90 % | worst | {' | '.join(models)} | off by |",
        "|---" * (6 + len(models)) + "|",
    ]
    for name, fit in fits().items():
        rates = left_out(fit, cells)
        said = [(c, r) for c, r in zip(cells, rates, strict=True) if r is not None]
        if not said:
            continue
        of_model = [
            [cell.regret(rate) for cell, rate in said if cell.record["model"] == model]
            for model in models
        ]
        parts = " | ".join(
            f"{100 * np.median(one):.1f}, {100 * max(one):.1f}" if one else "-"
            for one in of_model
        )
        off = math.exp(np.mean([abs(rate - cell.best) for cell, rate in said]))
        regrets = [cell.regret(rate) for cell, rate in said]
        said_of = f"{name} | {len(said)} | {row(regrets)}"
        lines.append(f"| {said_of} | {parts} | {off:.2f} |")
    return lines


def best_rates(cells: Sequence[Measured]) -> list[str]:
    """Markdown: the best rate of each method, optimizer and batch, a column a place."""

    def place(cell: Measured) -> str:
        return f"{cell.record['model']}, {cell.record['data']}"

    def kind(cell: Measured) -> str:
        keys = ("method", "optimizer", "batch", "steps")
        return " | ".join(str(cell.record[key]) for key in keys)

    found = {(kind(cell), place(cell)): f"{math.exp(cell.best):.2g}" for cell in cells}
    places = list(dict.fromkeys(map(place, cells)))
    lines = [
        f"| method | optimizer | batch | steps | {' | '.join(places)} |",
        "|---" * (4 + len(places)) + "|",
    ]
    for name in dict.fromkeys(map(kind, cells)):
        row = " | ".join(found.get((name, place), "") for place in places)
        lines.append(f"| {name} | {row} |")
    return lines


# What differs between two cells that are otherwise alike.
MOVES: dict[str, tuple[str, Any, Any]] = {
    "batch 4 to 16": ("batch", 4, 16),
    "steps 60 to 300": ("steps", 60, 300),
    "rank 4 to 16": ("method", "lora-4", "lora-16"),
    "rank 16 to 64": ("method", "lora-16", "lora-64"),
    "rank 64 to 256": ("method", "lora-64", "lora-256"),
    "rank 4 to 16, alpha 32": ("method", "lora-4@32", "lora-16"),
    "rank 16 to 64, alpha 32": ("method", "lora-16", "lora-64@32"),
    "full to LoRA of rank 16": ("method", "full", "lora-16"),
    "adamw to adamw_8bit": ("optimizer", "adamw", "adamw_8bit"),
}


def transfers(cells: Sequence[Measured]) -> list[str]:
    """Markdown: by what one difference multiplies the best rate, in all pairs known."""
    named = {calibrate_rates.cell_of(cell.record): cell for cell in cells}
    lines = [
        "| what differs | pairs | x, in the mean | least | most |",
        "|---" * 5 + "|",
    ]
    for what, (key, before, after) in MOVES.items():
        pairs = [
            (cell, other)
            for cell, measured in named.items()
            if getattr(cell, key) == before
            if (other := dataclasses.replace(cell, **{key: after})) in named
        ]
        if pairs:
            logs = [named[other].best - named[cell].best for cell, other in pairs]
            told = (float(f(logs)) for f in (np.mean, np.min, np.max))
            numbers = " | ".join(f"{math.exp(x):.2f}" for x in told)
            lines.append(f"| {what} | {len(pairs)} | {numbers} |")
    return [*lines, *powers(cells)]


def powers(cells: Sequence[Measured]) -> list[str]:
    """The powers of rank and of scale, alpha over rank, that the best rates go with.

    By least squares over AdamW's LoRA cells, each model and data set with a level of
    its own.
    """
    known = [
        cell
        for cell in cells
        if cell.kind == "lora" and cell.record["optimizer"] == "adamw"
        if (cell.record["batch"], cell.record["steps"]) == (4, 60)
    ]
    places = sorted({(c.record["model"], c.record["data"]) for c in known})
    rows = []
    for cell in known:
        rank, alpha = calibrate_rates.lora_of(cell.record["method"])
        own = [(cell.record["model"], cell.record["data"]) == one for one in places]
        rows.append([math.log(rank), math.log(alpha / rank), *map(float, own)])
    best = np.array([cell.best for cell in known])
    table, (power, scale) = np.array(rows), (math.nan, math.nan)
    if len(known):
        (power, scale, *_), *_ = np.linalg.lstsq(table, best, rcond=None)
    return [f"rate ~ rank^{power:.2f} x scale^{scale:.2f}, of {len(known)} cells"]


def constants(cells: Sequence[Measured]) -> list[str]:
    """What the library is given: the factors, and by what the best rates were off."""
    known = [(cell, rate) for cell in cells if (rate := window(cell)) is not None]
    found = {
        by_averaging(cell) or "others": shift(known, cell, by_averaging)
        for cell in cells
    }
    lines = [f"factor of {name}: {math.exp(x):.2f}" for name, x in found.items()]
    rates = left_out(fits()[SUGGESTED], cells)
    off = [c.best - r for c, r in zip(cells, rates, strict=True) if r is not None]
    low, high = np.exp(np.percentile(off, [10, 90]))
    lines.append(f"best over suggested, 10 and 90 %: {low:.2f}, {high:.2f}")
    return lines


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cells", action="store_true", help="each cell's best rate")
    parser.add_argument("--best", action="store_true", help="the table of best rates")
    parser.add_argument("--transfer", action="store_true", help="factors between cells")
    parser.add_argument("--table", type=Path, default=calibrate_rates.TABLE)
    args = parser.parse_args()
    cells = [measured(record) for record in calibrate_rates.records(args.table)]
    if args.best:
        print("\n".join(best_rates(cells)))
        return
    if args.transfer:
        print("\n".join(transfers(cells)))
        return
    if args.cells:
        rates = left_out(fits()[SUGGESTED], cells)
        for cell, rate in zip(cells, rates, strict=True):
            name = calibrate_rates.cell_of(cell.record).name
            said = "nothing"
            if rate is not None:
                said = f"{math.exp(rate):.2g}, regret {cell.regret(rate):.1%}"
            print(f"{name:48} best {math.exp(cell.best):.2g}, suggested {said}")
    print("\n".join([*table(cells), *constants(cells)]))


if __name__ == "__main__":
    main()
