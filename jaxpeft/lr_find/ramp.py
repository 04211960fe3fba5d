"""The learning-rate range test (Smith, 2017): a short run whose rate only rises.

The configured step, at the configured batch size, with a rate that grows by the same
factor from step to step. It starts where a run would, and leaves that run untouched.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpeft import console, optim, tree
from jaxpeft.assembly import step as step_of
from jaxpeft.assembly import updates as assembly
from jaxpeft.assembly.places import make_places
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError
from jaxpeft.lr_find import curve as range_curve
from jaxpeft.lr_find import trust
from jaxpeft.lr_find.curve import Curve
from jaxpeft.rundir.files import finite

START, STOP, STEPS = 1e-6, 1e-1, 50
FEWEST = 10  # steps of which a curve can be made
LINES, FOUND, PLOT = "lr_find.jsonl", "lr_find.json", "lr_find.png"
FILES = LINES, FOUND, PLOT


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        curve: the losses of its steps.
        rates: {rule: rate} of each rule of `curve.RULES`.
        suggestion: the rate to write into the configuration: one of `rates`, over
            `factor`.
        settings: what the test was made with.
        factor: by which `training.lr_scaling` multiplies the rate in the configuration.
    """

    curve: Curve
    rates: dict[str, float]
    suggestion: float
    settings: dict[str, Any]
    factor: float = 1.0

    @property
    def rate(self) -> float:
        """The suggested rate of its steps, before `factor`."""
        return self.rates[range_curve.SUGGESTED]

    @property
    def doubts(self) -> list[str]:
        """Why it should not be trusted, see `trust.doubts`."""
        return trust.doubts(self.curve)

    def describe(self) -> list[str]:
        """The lines for a person; the last one goes into the YAML."""
        lines = [
            f"{rate:.1e}  {range_curve.RULES[rule]}"
            + ("  <- suggested" if rule == range_curve.SUGGESTED else "")
            for rule, rate in self.rates.items()
        ]
        low, high = (format(rate, ".1e") for rate in trust.interval(self.rate))
        lines.append(
            f"in 8 of 10 measured cases the best rate lay from {low} to {high} "
            f"{trust.basis()}"
        )
        lines += [f"not to be trusted: {doubt}" for doubt in self.doubts]
        if self.factor != 1:
            lines.append(
                "the line below is the suggested rate over "
                f"{self.factor:g}, by which training.lr_scaling multiplies it"
            )
        return [*lines, f"optimizer: {{learning_rate: {self.suggestion:g}}}"]

    def write(self, directory: Path, title: str) -> None:
        """Writes lr_find.jsonl, lr_find.json and lr_find.png.

        Args:
            directory: made where it is missing.
            title: above the picture.
        """
        write_lines(self.curve, directory)
        low, high = trust.interval(self.rate)
        result = {
            "suggestion": self.suggestion,
            "rule": range_curve.SUGGESTED,
            "candidates": self.rates,
            "interval": [low / self.factor, high / self.factor],
            "doubts": self.doubts,
            "diverged": self.curve.diverged,
            "settings": self.settings,
        }
        (directory / FOUND).write_text(json.dumps(result, indent=2) + "\n")
        range_curve.plot(self.curve, self.rates, directory / PLOT, title)


def write_lines(curve: Curve, directory: Path) -> None:
    """Writes lr_find.jsonl, a line for each step.

    Args:
        curve: of a range test.
        directory: made where it is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    columns = {
        "learning_rate": curve.rates,
        "loss": curve.losses,
        "smoothed": curve.smoothed,
    }
    if curve.before is not None:
        columns["before"] = curve.before[: len(curve.losses)]
    with (directory / LINES).open("w") as file:
        for step, values in enumerate(zip(*columns.values(), strict=True), 1):
            named = zip(columns, map(float, values), strict=True)
            line = {"step": step, **{name: finite(x) for name, x in named}}
            file.write(json.dumps(line) + "\n")


def conclude(curve: Curve, cfg: RunConfig) -> RangeTest:
    """The rates that a range test suggests.

    Args:
        curve: of the test.
        cfg: the configuration that it was made with.

    Raises:
        InputError: where the loss never fell.
    """
    averaged = optim.OPTIMIZERS[cfg.optimizer.name].averages
    rates = range_curve.candidates(curve, averaged)
    settings = {
        "start": float(curve.rates[0]),
        "end": float(curve.rates[-1]),
        "steps": curve.steps,
        "optimizer": cfg.optimizer.name,
        "method": cfg.adapter.method,
        "batch_size": cfg.training.batch_size,
        "seed": cfg.seed,
    }
    factor = assembly.learning_rate(cfg.at_rate(1.0))
    suggestion = range_curve.suggestion(rates, factor)
    return RangeTest(curve, rates, suggestion, settings, factor)


def prepare(cfg: RunConfig) -> Run:
    """A run for a range test alone: its rate stands for the one to be found.

    Args:
        cfg: the configuration.

    Raises:
        InputError: for optimizers without a rate to look for, before anything is read.
    """
    assembly.updates(cfg, FEWEST, exponential(START, STOP, FEWEST))
    return Run(cfg.at_rate(1.0))


def exponential(start: float, stop: float, steps: int) -> optax.Schedule:
    """A learning rate that grows by the same factor from step to step.

    Args:
        start: the rate at step 0.
        stop: the rate at step `steps - 1`.
        steps: how many there are.

    Returns:
        step -> rate, () float32.
    """
    growth = math.log(stop / start) / (steps - 1)

    def rate(count: Any) -> jax.Array:
        return start * jnp.exp(growth * jnp.asarray(count, jnp.float32))

    return rate


def range_test(
    run: Run,
    *,
    start: float = START,
    stop: float = STOP,
    steps: int | None = None,
    keep: bool = True,
) -> Curve:
    """The training losses of a run's own steps while the learning rate rises.

    It ends before `stop` where the loss diverges. Before it the losses of its batches
    are computed with the weights as they are: see `curve.levelled`.

    Args:
        run: the run, before its first step.
        start: the first rate.
        stop: the last rate.
        steps: how many; None: 50, as the calibration took.
        keep: whether `run` stays as it is, which holds what trains twice; otherwise it
            is used up.

    Raises:
        InputError: for ranges that make no sense, and for data without anything to
            learn.
    """
    check(start, stop, steps)
    steps = steps or STEPS
    console.say(f"range test: {steps} steps, learning rate {start:g} to {stop:g}")
    before = _before(run, steps)
    rate = exponential(start, stop, steps)
    updates = assembly.updates(run.cfg, steps, rate)
    state = _initial_state(run, updates.tx, keep)
    step = Compiled(
        updates.train_step(run.base.cfg, run.objective),
        "step of the range test",
        console.say,
        carries=True,
        mesh=run.mesh,
    )
    fixed = run.fixed._replace(rates=run.rates_of(updates))
    seen: list[float | None] = []
    losses: list[float] = []
    for i, batch in zip(range(steps), run.batches.iterate(), strict=False):
        state, metrics = step(state, fixed, run.micro_batches(batch))
        seen.append(float(metrics["loss"]) if metrics["weight"] else None)
        losses = range_curve.filled(seen)
        level = range_curve.levelled(losses, before)
        ended = bool(losses) and range_curve.diverged(level, steps)
        if ended or (i + 1) % max(1, steps // 10) == 0:
            console.say(
                f"range test {i + 1}/{steps}  lr {np.asarray(rate(i)):.2e}"
                f"  loss {f'{losses[-1]:.4f}' if losses else 'none'}"
                f"{'  diverged' if ended else ''}"
            )
        if ended:
            break
    if not losses:
        raise InputError(
            f"lr_find: no batch of the {steps} steps has a token to learn; raise "
            "data.max_length so that the answers fit"
        )
    rates = [np.asarray(rate(i)) for i in range(len(losses))]
    return Curve(np.asarray(rates), np.asarray(losses), steps, np.asarray(before))


def _before(run: Run, steps: int) -> list[float]:
    """The losses of the first batches with the weights as they are; [] if none has any.

    Without gradients, which takes a third to a half of the time of steps.
    """
    program = Compiled(
        step_of.make_loss(run.base.cfg, run.objective),
        "losses before the range test",
        console.say,
        mesh=run.mesh,
    )
    seen: list[float | None] = []
    for i, batch in zip(range(steps), run.batches.iterate(), strict=False):
        given = run.trainable, run.fixed, run.key, jnp.int32(i)
        loss, weight = program(*given, run.micro_batches(batch))
        seen.append(float(loss) if weight else None)
    return range_curve.filled(seen)


def _initial_state(
    run: Run, tx: optax.GradientTransformation, keep: bool
) -> TrainState:
    params = tree.combine(run.trainable, run.frozen)
    scales = run.base.scales_loss
    offloads = run.cfg.optimizer.offload
    places = make_places(params, run.base.cfg, run.mesh, tx, scales, offloads)

    def create(trainable: Any) -> TrainState:
        # Copies: the steps overwrite what they are given.
        trainable = jax.tree.map(jnp.copy, trainable) if keep else trainable
        return TrainState.create(trainable, tx, run.key, scales)

    donated = () if keep else (0,)
    made = jax.jit(create, out_shardings=places.state, donate_argnums=donated)
    return made(run.trainable)


def check(start: float, stop: float, steps: int | None) -> None:
    """Checks that a range makes sense.

    Args:
        start: the first rate.
        stop: the last rate.
        steps: how many, or None.

    Raises:
        InputError: where it does not.
    """
    problems = []
    if not 0 < start < stop < math.inf:
        problems.append(
            f"--start, --stop: found {start:g} and {stop:g}; the first must be above 0 "
            f"and below the second, as in --start {START:g} --stop {STOP:g}"
        )
    if steps is not None and steps < FEWEST:
        problems.append(f"--steps: found {steps}; give {FEWEST} or more")
    if problems:
        raise InputError(*problems)
