"""Measures best learning rates beside range tests: docs/calibration.jsonl.

    python scripts/calibration_models.py              # once: three of the five models
    python scripts/gguf_to_hf.py FILE --out runs/calibration/models/smollm2/model
    python scripts/calibrate_rates.py --minutes 30    # a sitting; repeat it to go on
    python scripts/calibrate_rates.py --list
    python scripts/calibrate_rates.py --only toy/ full

A cell is a model, a data set, a method, an optimizer, a batch size and a number of
steps. Each has one line in the file: the losses of `lr_find`'s range test of 50 steps,
and of the same batches before it; and the evaluation loss at the end of training for
rates a factor of 2 apart, as many as it takes until the best has two worse ones on
either side. The rates of a cell train from the same weights on the same batches, by one
compiled program, in turn. A line is written as soon as its cell is done, and a cell
that has a line is not repeated. Takes about a minute a cell on one core, and ten to
twenty of SmolLM2-135M. scripts/rate_rules.py reads the file.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft.assembly import configuration
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import TrainState
from jaxpeft.devices import programs
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError
from jaxpeft.lr_find import curve as range_curve
from jaxpeft.lr_find import ramp
from jaxpeft.objectives import evaluation

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "calibration.jsonl"
MODELS = ROOT / "runs" / "calibration" / "models"
SHARED = ROOT.parent / "shared" / "data"
RANGE_STEPS, EVALUATED = 50, 48
LONGER = {"smollm2": 128}  # tokens: its chat template writes more
CENTRE, FACTOR = 1e-3, 2.0  # the lattice of rates
EITHER, MOST = 2, 12  # rates on either side of the guess, and rates in all
BLOCK = 5  # steps of training over whose losses a mean is kept
NO_CLIP = ("lora_rite", "lora_muon")
WEATHER = "jaxpeft:weather/{}.json"
# Name: where training and evaluation data lie, their format, tokens, whether packed.
DATA = {
    "weather": (WEATHER, "alpaca", 96, False),
    "e2e": (f"{SHARED}/e2e/{{}}.json", "alpaca", 96, False),
    "gsm8k": (f"{SHARED}/gsm8k/{{}}.jsonl", "alpaca", 96, True),
}
FIELDS = {"gsm8k": {"instruction": "question", "output": "answer"}}


@dataclass(frozen=True)
class Cell:
    """What a best rate is looked for.

    Attributes:
        model: "toy", or a folder of `MODELS`.
        data: a key of `DATA`.
        method: "full", or "lora-" and the rank, whose alpha is twice the rank or what
            follows an "@".
        optimizer: as in the configuration, with its default keys.
        batch: sequences a step.
        steps: of a run.
    """

    model: str
    data: str
    method: str
    optimizer: str
    batch: int = 4
    steps: int = 60

    @property
    def name(self) -> str:
        """What --only looks for."""
        return (
            f"{self.model}/{self.data}/{self.method}/{self.optimizer}"
            f"/b{self.batch}/{self.steps}"
        )


KINDS: tuple[tuple[Any, ...], ...] = (
    ("lora-16", "adamw"),
    ("full", "adamw"),
    ("lora-64", "adamw"),
    ("lora-4", "adamw"),
    ("lora-16", "lion"),
    ("lora-16", "schedule_free_adamw"),
    ("lora-16", "muon"),
    ("full", "lion"),
    ("lora-16", "adamw_8bit"),
    ("lora-16", "lora_rite"),
    ("lora-16", "riemannian_adamw"),
    ("lora-16", "adamw", 16),
    ("full", "muon"),
    ("full", "adamw_8bit"),
    ("full", "adamw", 16),
)
PLACES = (("qwen3", "e2e"), ("gemma3", "e2e"), ("toy", "weather"))
MORE = (("gemma3", "weather"), ("qwen3", "gsm8k"), ("toy", "e2e"))
ALPHA = (("lora-4@32", "adamw"), ("lora-64@32", "adamw"))
LONG = (("lora-16", "adamw", 4, 300), ("full", "adamw", 4, 300))
WIDE = tuple((f"lora-{rank}", "adamw") for rank in (256, 64, 16, 4))
# Of a model of 135 million parameters: small batches and short runs.
REAL = (
    ("lora-16", "adamw", 2, 30),
    ("lora-4", "lion", 2, 20),
    ("full", "adamw", 2, 30),
    ("lora-16", "schedule_free_adamw", 2, 30),
)
CELLS = tuple(
    Cell(*place, *kind)
    for kinds, places in (
        (KINDS[:8], PLACES),
        (KINDS[:3], MORE),
        (KINDS[8:], PLACES),
        (LONG, PLACES[:2]),
        (ALPHA, PLACES),
        (REAL, [("smollm2", "e2e")]),
        (WIDE, [("wide", "e2e")]),
        (KINDS[3:], MORE),
    )
    for kind in kinds
    for place in places
)


def lora_of(method: str) -> tuple[int, int]:
    """The rank and the alpha of a cell's method; 0 and 0 without LoRA."""
    if method == "full":
        return 0, 0
    rank, _, alpha = method.removeprefix("lora-").partition("@")
    return int(rank), int(alpha or 2 * int(rank))


def settings(cell: Cell, models: Path) -> dict[str, Any]:
    """{section: its keys} of a run of the cell, over those of the quickstart."""
    path, form, length, packed = DATA[cell.data]
    sources = {
        name: {"path": path.format(name), "format": form}
        | ({"fields": FIELDS[cell.data]} if cell.data in FIELDS else {})
        for name in ("train", "eval")
    }
    own = models / cell.model / "model"
    toy = cell.model == "toy"
    rank, alpha = lora_of(cell.method)
    adapter = {"method": "lora", "r": rank, "lora_alpha": alpha}
    optimizer: dict[str, Any] = {"name": cell.optimizer, "learning_rate": 1.0}
    if cell.optimizer in NO_CLIP:
        optimizer["max_grad_norm"] = None
    level = "constant" if cell.optimizer.startswith("schedule_free") else "cosine"
    return {
        "output_dir": "unused",
        "model": {
            "path": "jaxpeft:tiny-llama" if toy else str(own),
            "dtype": "float32",
        },
        "adapter": adapter if rank else {"method": "full"},
        "data": {
            **sources,
            "max_length": LONGER.get(cell.model, length),
            "packing": packed,
            "length_buckets": 1,
            "eval_batch_size": cell.batch,  # one program for both
        },
        "optimizer": optimizer,
        "schedule": {"name": level, "warmup_ratio": 0.1},
        "training": {
            "max_steps": cell.steps,
            "batch_size": cell.batch,
            "eval_max_examples": EVALUATED,
        },
    }


class Bench:
    """One cell's run, whose steps are compiled once for all its rates.

    Args:
        run: before its first step, at any rate; its arrays stay as they are.
    """

    def __init__(self, run: Run):
        self.run = run
        trainable = jax.tree.map(jnp.copy, run.trainable)  # the state takes them over
        create = jax.jit(
            lambda params: TrainState.create(params, run.tx, run.key),
            out_shardings=run.places.state,
        )
        self.start = create(trainable)
        self._step = Compiled(
            run.train_step(), "step", lambda line: None, carries=True, mesh=run.mesh
        )
        self._evaluate = Compiled(
            run.eval_step(), "evaluation", lambda line: None, mesh=run.mesh
        )

    def loss(self, state: TrainState, batches: Iterable[Any] | None = None) -> float:
        """The loss of a state on batches; None: on the evaluation data."""
        run, trained = self.run, self.run.view(state)
        given = (run.evaluation or ()) if batches is None else batches
        sums = (
            self._evaluate(trained, run.fixed, run.on_devices(batch)) for batch in given
        )
        found = evaluation.figures(run.objective, evaluation.streamed(sums))
        return found["eval_loss"]

    def before(self, steps: int) -> list[float]:
        """The loss of each of the first batches before any step was taken."""
        batches = zip(range(steps), self.run.batches.iterate(), strict=False)
        return [self.loss(self.start, [batch]) for _, batch in batches]

    def trained(self, rate: float) -> dict[str, Any]:
        """A run at a rate, as the record has it; it ends where it is lost."""
        own = self.run.at_rate(rate)
        fixed, state = own.fixed, jax.tree.map(jnp.copy, self.start)
        losses: list[float] = []
        for _, batch in zip(range(own.steps), own.batches.iterate(), strict=False):
            state, metrics = self._step(state, fixed, own.micro_batches(batch))
            losses.append(float(metrics["loss"]))
            if not math.isfinite(losses[-1]) or losses[-1] > losses[0] + 4:
                break
        done = len(losses) == own.steps
        loss = self.loss(state) if done else math.inf
        blocks = [losses[i : i + BLOCK] for i in range(0, own.steps, BLOCK)]
        return {
            "rate": float(f"{rate:.4g}"),
            "loss": round(loss, 5) if math.isfinite(loss) else None,
            "train": [
                round(float(np.mean(block)), 4) for block in blocks if done and block
            ],
        }


def wanted(known: dict[int, float], guess: int) -> int | None:
    """The next place on the lattice to train at; None: the best is in the middle.

    Args:
        known: {place: evaluation loss} so far, inf where a run was lost.
        guess: the place to begin around.
    """
    first = [guess, *(guess + s * i for i in range(1, EITHER + 1) for s in (-1, 1))]
    for place in first:
        # What lies beyond a lost run is lost.
        lost = any(math.isinf(known.get(p, 0.0)) for p in range(guess, place))
        if place not in known and not lost:
            return place
    if len(known) >= MOST:
        return None
    best = min(known, key=lambda place: (known[place], place))
    for place in (best + 1, best - 1, best + 2, best - 2):
        lost = place > best and any(
            math.isinf(known.get(p, 0.0)) for p in range(best, place)
        )
        if place not in known and not lost:
            return place
    return None


def measure(cell: Cell, run: Run) -> dict[str, Any]:
    """The record of a cell."""
    begun = time.process_time()
    curve = ramp.range_test(run, steps=RANGE_STEPS)
    try:
        rate = range_curve.candidates(curve)["between"]
    except InputError:
        rate = CENTRE
    bench, guess = Bench(run), round(math.log(rate / CENTRE, FACTOR))
    first, known, sweep = bench.loss(bench.start), {}, []
    while (place := wanted(known, guess)) is not None:
        point = bench.trained(CENTRE * FACTOR**place)
        known[place] = math.inf if point["loss"] is None else point["loss"]
        sweep.append(point)
    trained = sum(x.size for x in jax.tree.leaves(run.trainable))
    whole = sum(x.size for x in jax.tree.leaves(run.frozen)) + trained
    return {
        **asdict(cell),
        "max_length": run.cfg.data.max_length,
        "trained_parameters": trained,
        "parameters": whole,
        "first_loss": round(first, 5),
        "range": {
            "start": ramp.START,
            "stop": ramp.STOP,
            "steps": RANGE_STEPS,
            "losses": [
                round(x, 4) if math.isfinite(x) else None for x in curve.losses.tolist()
            ],
            "before": [round(x, 4) for x in bench.before(len(curve.losses))],
        },
        "sweep": sorted(sweep, key=lambda point: point["rate"]),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def records(path: Path = TABLE) -> list[dict[str, Any]]:
    """The records of the cells that are done."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def cell_of(record: dict[str, Any]) -> Cell:
    """The cell of a record."""
    return Cell(**{key: record[key] for key in Cell.__dataclass_fields__})


def runs(cells: Sequence[Cell], models: Path) -> Iterator[tuple[Cell, Run]]:
    """The run of each cell; those of one model, data set and batch share them."""
    opened: dict[tuple[str, str, int], Run] = {}
    for cell in cells:
        cfg = configuration.open_config(
            "jaxpeft:quickstart.yaml", values=settings(cell, models)
        )
        key = (cell.model, cell.data, cell.batch)
        if key not in opened:
            opened[key] = Run(cfg, shares=True)
        yield cell, Run(cfg, like=opened[key])


def main() -> None:
    """Measures what is not there yet, or says what is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of cells' names")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of a sitting")
    parser.add_argument("--list", action="store_true", help="say what is done")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    found = {cell_of(record): record for record in records(args.out)}
    cells = [c for c in CELLS if all(part in c.name for part in args.only)]
    if args.list:
        for cell in cells:
            done = found.get(cell)
            print(f"{done['cpu_seconds']:6.0f} s" if done else "       -", cell.name)
        print(f"{sum(cell in found for cell in cells)} of {len(cells)} cells are done")
        return
    programs.keep()
    end = time.monotonic() + 60 * args.minutes
    left = [cell for cell in cells if cell not in found]
    for cell, run in runs(left, args.models):
        if time.monotonic() > end:
            break
        record = measure(cell, run)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        best = min((p for p in record["sweep"] if p["loss"]), key=lambda p: p["loss"])
        seconds, points = record["cpu_seconds"], len(record["sweep"])
        print(f"{cell.name}: {best} of {points}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
