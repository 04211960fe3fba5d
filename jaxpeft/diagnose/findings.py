"""What the metrics of a run say of its settings, in plain words with their evidence.

A pure function of the lines of `metrics.jsonl`. Each finding names what was seen, in
numbers, and the setting to change, with its number. A healthy run gives none.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpeft.assembly import configuration
from jaxpeft.config import OptimizerSection
from jaxpeft.diagnose import answers
from jaxpeft.diagnose.finding import Finding, Line, Settings, number
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import CONFIG, METRICS
from jaxpeft.rundir.metrics import read_lines

__all__ = ["Finding", "Line", "Settings", "diagnose", "of_run"]

FEWEST = 8  # logged steps of which anything is said
FEWEST_FLAT = 30  # before a loss over batches that differ is called flat
SHARE = 10  # an average is taken over a tenth of the lines, and over 3 at least
# A loss that fell by less than this share was as good as never trained. Where nothing
# is evaluated, the noise of the averages is allowed for besides.
FLAT = 0.02
# Of the mean loss. Batches of 16 conversations differ by 10 % or so; what swings by
# more than twice that is the weights.
SWING = 0.25
JUMP = 0.2  # above the loss of the first step, which batches alone do not differ by
TURN = 0.02  # a move of the evaluation loss, whose data are the same each time
OVERFIT = 0.01  # evaluation loss above its best, as the data are the same each time
SPIKE = 10.0  # gradient norm over the median of all: clipping at 1 hides it from no one
CLIPPED = 5.0  # median gradient norm over max_grad_norm; Adam shrugs at less
# What else is seen of losses that rise.
OF_DIVERGENCE = {
    *("oscillating", "gradient spikes", "overfitting", "rate at the end", "flat"),
}
ASK = "; `jaxpeft lr_find` looks for the best one"
END = 0.2  # of the highest rate: every schedule that falls ends below it


@dataclass(frozen=True)
class _Curves:
    """The columns of a run: of its logged steps, and of its evaluations."""

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    norms: np.ndarray
    eval_steps: np.ndarray
    eval_losses: np.ndarray
    settings: Settings

    @property
    def width(self) -> int:
        """Lines that an average is taken over."""
        return max(3, len(self.steps) // SHARE)

    @property
    def means(self) -> np.ndarray:
        """The mean of the last `width` losses, from the first full window on."""
        return np.convolve(self.losses, np.ones(self.width) / self.width, "valid")

    def rate(self) -> float:
        """The highest rate so far."""
        return float(self.rates.max())

    def mean_at(self, step: int) -> float:
        """The mean training loss of the lines up to a step."""
        end = int(np.searchsorted(self.steps, step, "right"))
        return float(self.losses[max(0, end - self.width) : max(end, 1)].mean())


def diagnose(
    lines: Sequence[Line], settings: Settings, *, ended: bool = True
) -> list[Finding]:
    """The findings of a run, the most important first.

    Args:
        lines: those of `metrics.jsonl`, null or NaN for what was not finite.
        settings: what must be known of the configuration.
        ended: whether the run is over, so that the end of its schedule can be judged.
    """
    training = [line for line in lines if "loss" in line]
    if not training:
        return []
    broken = _not_finite(training)
    if not broken and (ended or len(training) >= FEWEST):  # before, it may warm up yet
        broken = _without_rate(training, settings)
    sound = [line for line in training if number(line, "loss") is not None]
    if len(sound) < FEWEST or any(finding.kind == "no rate" for finding in broken):
        return broken
    curves = _curves(sound, lines, settings)
    checks: list[Callable[[_Curves], Finding | None]] = [
        _diverging,
        _overfitting,
        *([] if answers.are_compared(sound) else [_oscillating]),
        _flat,
        _spikes,
        _clipped,
    ]
    if ended:
        checks.append(_end_of_schedule)
    noticed = [finding for check in checks if (finding := check(curves)) is not None]
    noticed += answers.noticed(lines, settings)
    kinds = {finding.kind for finding in [*broken, *noticed]}
    # They are the same trouble seen from another side.
    if "diverging" in kinds:
        noticed = [finding for finding in noticed if finding.kind not in OF_DIVERGENCE]
    if "flat" in kinds:  # a rate that does nothing need not fall
        noticed = [finding for finding in noticed if finding.kind != "rate at the end"]
    return [*broken, *noticed]


def _curves(sound: Sequence[Line], lines: Sequence[Line], given: Settings) -> _Curves:
    evaluations = [s for s in lines if number(s, "eval_loss") is not None]

    def column(rows: Sequence[Line], key: str) -> np.ndarray:
        return np.asarray([number(row, key) or 0.0 for row in rows], float)

    return _Curves(
        steps=column(sound, "step"),
        losses=column(sound, "loss"),
        rates=column(sound, "learning_rate"),
        norms=column(sound, "grad_norm"),
        eval_steps=column(evaluations, "step"),
        eval_losses=column(evaluations, "eval_loss"),
        settings=given,
    )


def _overflowed(line: Line) -> bool:
    """Whether only the scale of the loss was too large, which then halves (float16)."""
    scale = number(line, "loss_scale")
    return scale is not None and scale > 1 and number(line, "loss") is not None


def _not_finite(training: Sequence[Line]) -> list[Finding]:
    lost = [
        line
        for line in training
        if number(line, "loss") is None or number(line, "grad_norm") is None
        # A gradient of 0: no token of the step was learned, so it has no loss.
        if number(line, "grad_norm") != 0 and not _overflowed(line)
    ]
    if not lost:
        return []
    step, rates = int(lost[0]["step"]), [number(s, "learning_rate") for s in training]
    rate = max(r for r in [*rates, 0.0] if r is not None)
    return [
        Finding(
            "not finite",
            step,
            f"{len(lost)} of {len(training)} logged steps had no finite loss or "
            f"gradient, the first at step {step}",
            (f"lower optimizer.learning_rate to {rate / 3:.0e}, or " if rate else "")
            + "use model.dtype float32",
        )
    ]


def _without_rate(training: Sequence[Line], settings: Settings) -> list[Finding]:
    """No logged step had a rate above 0: whatever the losses do, nothing trained."""
    rates = [number(line, "learning_rate") for line in training]
    if any(rate is None or rate > 0 for rate in rates):
        return []
    default = OptimizerSection.model_fields["learning_rate"].default
    remedy = f"set optimizer.learning_rate to {default:.0e}, the default{ASK}"
    if settings.learning_rate:
        remedy = (
            "set schedule.warmup_steps to 0, or train for more steps than it warms up"
        )
    seen = f"all {len(rates)} logged steps had a learning rate of 0"
    return [Finding("no rate", int(training[-1]["step"]), seen, remedy)]


def _diverging(c: _Curves) -> Finding | None:
    """The loss is up from its lowest by half its fall, and a tenth of the first.

    Or it is far above that of the very first step: then it jumped before there was an
    average to compare with.
    """
    means = c.means
    low = int(np.argmin(means))
    first, best, last = means[0], means[low], means[-1]
    at, seen = int(c.steps[low + c.width - 1]), f"means of {c.width} logged steps"
    if last <= best + (first - best) / 2 + first / 10:
        if last <= (1 + JUMP) * c.losses[0]:
            return None
        best, at, seen = c.losses[0], int(c.steps[0]), "the first, and a mean"
    return Finding(
        "diverging",
        at,
        f"training loss rose from {best:.3f} at step {at} to {last:.3f} at step "
        f"{int(c.steps[-1])} ({seen}), at a rate of {c.rate():.1e}",
        f"lower optimizer.learning_rate to {c.rate() / 3:.0e}{ASK}",
    )


def _overfitting(c: _Curves) -> Finding | None:
    """Two evaluations or more after the best one are worse, and training goes on."""
    if len(c.eval_losses) < 3:
        return None
    best = int(np.argmin(c.eval_losses))
    low, last = float(c.eval_losses[best]), float(c.eval_losses[-1])
    later = len(c.eval_losses) - 1 - best
    step = int(c.eval_steps[best])
    before, after = c.mean_at(step), c.mean_at(int(c.steps[-1]))
    if later < 2 or last <= low * (1 + OVERFIT) or after >= before:
        return None
    remedy = (
        f"what step {step} trained is kept; to get further give it more data, or "
        "adapter.lora_dropout=0.1"
        if c.settings.keeps_best
        else f"stop at step {step}: training.early_stopping_patience=2, or "
        "optimizer.weight_decay=0.1"
    )
    return Finding(
        "overfitting",
        step,
        f"evaluation loss rose from {low:.3f} at step {step} to {last:.3f}, while "
        f"training loss fell from {before:.3f} to {after:.3f} on average",
        remedy,
    )


def _oscillating(c: _Curves) -> Finding | None:
    """The training loss swings around its trend, or the evaluation loss turns often."""
    half = len(c.losses) // 2
    trend = c.means[max(0, half - c.width + 1) :]
    recent = c.losses[-len(trend) :]
    swing = float(np.std(recent - trend) / trend.mean())
    moves = np.diff(c.eval_losses) / c.eval_losses[:-1]
    large = np.sign(moves[np.abs(moves) > TURN])
    turns = int(np.count_nonzero(np.diff(large)))
    if swing > SWING:
        seen = f"training loss swings by {swing:.0%} around its trend since step "
        seen += str(int(c.steps[half]))
    elif turns >= 3:
        seen = (
            f"evaluation loss turned {turns} times, by {np.abs(moves).max():.0%} at "
            "the most, over the same data"
        )
    else:
        return None
    return Finding(
        "oscillating",
        int(c.steps[half]),
        seen,
        f"lower optimizer.learning_rate to {c.rate() / 3:.0e}, or set "
        f"training.batch_size={4 * c.settings.batch_size}",
    )


def _flat(c: _Curves) -> Finding | None:
    """The loss has hardly fallen, of the evaluations if there are any, nor risen."""
    if len(c.eval_losses) > 1:
        kind, error = "evaluation", 0.0
        first, last = float(c.eval_losses[0]), float(c.eval_losses[-1])
        best = float(c.eval_losses.min())
    elif len(c.losses) < FEWEST_FLAT:
        return None
    else:
        kind = "training"
        first, best = float(c.means[0]), float(c.means[-1])
        last = best
        # Two standard errors of the difference of two averages.
        error = 2 * float(np.std(np.diff(c.losses))) / math.sqrt(c.width)
    rose = last > first * (1 + FLAT) + error
    if rose or best < first * (1 - FLAT) - error:
        return None
    return Finding(
        "flat",
        int(c.steps[-1]),
        f"{kind} loss was {first:.3f} at first and is {last:.3f} at step "
        f"{int(c.steps[-1])}, at a rate of {c.rate():.1e}",
        f"raise optimizer.learning_rate to {c.rate() * 10:.0e}{ASK}",
    )


def _spikes(c: _Curves) -> Finding | None:
    """Gradients far above the median, in three lines and in a fiftieth of them."""
    median = float(np.median(c.norms))
    high = np.flatnonzero(c.norms > SPIKE * median)
    high = high[high >= c.width]  # the first steps are large by nature
    if median <= 0 or len(high) < max(3, len(c.norms) / 50):
        return None
    worst = int(high[np.argmax(c.norms[high])])
    return Finding(
        "gradient spikes",
        int(c.steps[worst]),
        f"the gradient norm was {c.norms[worst]:.1f} at step {int(c.steps[worst])}, "
        f"and over {SPIKE:.0f} times its median of {median:.2f} in {len(high)} lines",
        f"set optimizer.max_grad_norm={2 * median:.1g}, or look at the data there",
    )


def _clipped(c: _Curves) -> Finding | None:
    """Nearly every gradient is cut to a fraction of itself."""
    most, median = c.settings.max_grad_norm, float(np.median(c.norms))
    if most is None or median <= CLIPPED * most or np.mean(c.norms > most) < 0.9:
        return None
    return Finding(
        "always clipped",
        int(c.steps[-1]),
        f"the gradient norm's median is {median:.1f}, {median / most:.0f} times "
        f"optimizer.max_grad_norm, so that clipping sets the size of every step",
        f"raise optimizer.max_grad_norm to {2 * median:.1g}",
    )


def _end_of_schedule(c: _Curves) -> Finding | None:
    """The rate never fell, and the last third of the evaluations brought nothing."""
    end, peak = float(c.rates[-1]), c.rate()
    if c.settings.averages or end <= END * peak or len(c.eval_losses) < 4:
        return None
    third = max(2, len(c.eval_losses) // 3)
    before = float(c.eval_losses[:-third].min())
    lately = c.eval_losses[-third:]
    if float(lately.min()) < before * (1 - OVERFIT / 2):
        return None  # it still falls: a longer run, not a lower rate
    return Finding(
        "rate at the end",
        int(c.eval_steps[-third]),
        f"the rate ends at {end:.1e}, {end / peak:.0%} of its highest, and the last "
        f"{third} evaluations brought nothing below {before:.3f}",
        "let the rate fall: schedule.name=cosine",
    )


def of_run(directory: Path) -> list[Finding]:
    """The findings in the metrics of a run directory, by its configuration.

    Args:
        directory: the run directory; where its configuration is of another version, the
            defaults of `Settings` stand for it.
    """
    settings = Settings()
    # Of another version's configuration the curves still say what they can.
    with contextlib.suppress(InputError):
        settings = Settings.of(configuration.open_config(directory / CONFIG))
    return diagnose(read_lines(directory / METRICS), settings)
