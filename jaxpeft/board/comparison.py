"""Runs side by side: one axis for the curves of all, and what their settings did."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpeft import tree
from jaxpeft.board import inside
from jaxpeft.board.catalog import Entry
from jaxpeft.board.follower import Follower
from jaxpeft.board.tail import Line
from jaxpeft.compare import table
from jaxpeft.compare.record import Record, figures_of
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.report import plots
from jaxpeft.report.charts import Chart, Series
from jaxpeft.rundir.files import CONFIG
from jaxpeft.rundir.metrics import values
from jaxpeft.rundir.outcome import USUAL

MOST = 60  # runs
LINES = 40_000  # of all of them together that are held, of training and of evaluations
LEAST = 1000  # of each
PLACE = "output_dir"
# What curves can go over: name -> the title of the axis.
STEPS, TOKENS, TIME = "step", "tokens", "time"
AXES = {
    STEPS: plots.STEP,
    TOKENS: "tokens trained on",
    TIME: "time of its steps (s)",
}
KEYS = 4  # settings over which the losses are drawn
LOSSES = ("best_eval_loss", "eval_loss", "train_loss")


class Compared:
    """Some runs, whose curves grow.

    Args:
        entries: the runs; a sweep stands for its points, which are among `known`.
        known: all runs.
        axis: a key of `AXES`.
    """

    def __init__(self, entries: Sequence[Entry], known: Sequence[Entry], axis: str):
        found: dict[str, Entry] = {}
        for entry in entries:
            points = [one for one in known if one.place.sweep == entry.place.key]
            for one in points if entry.place.is_sweep else [entry]:
                found[one.place.key] = one
        self.entries = list(found.values())[:MOST]
        self.axis = axis
        most = max(LEAST, LINES // max(1, len(self.entries)))
        self._followers = [Follower(one.place.folder, most) for one in self.entries]

    def read(self) -> bool:
        """Reads what is new; whether there was anything."""
        changed = False
        for follower in self._followers:
            try:
                changed = follower.read() or changed
            except OSError:
                continue  # the run's own page says why
        return changed

    def records(self) -> list[Record]:
        """The runs as the command `compare` has them."""
        return [_record(*both) for both in zip(self.entries, self._followers)]

    def charts(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The curves of all over one axis, and their losses over their settings.

        Args:
            records: see `records`.
        """
        lines = [line for one in records for line in one.evaluation]
        names = dict.fromkeys(n for line in lines for n in line if n not in USUAL)
        loss = _label(records)
        charts = [
            self._chart(records, "Evaluation loss", "eval_loss", loss),
            self._chart(records, "Training loss", "loss", loss),
        ]
        for name in names:
            title = name.removeprefix("eval_")
            label = f"{title} (as the metric has it)"
            charts.append(self._chart(records, title, name, label))
        charts += _over_settings(records)
        return [chart.data() for chart in charts if chart.series]

    def _chart(
        self, records: Sequence[Record], title: str, key: str, label: str
    ) -> Chart:
        series = []
        for number, one in enumerate(records):
            own = one.training if key == "loss" else one.evaluation
            known = [line for line in own if key in line]
            if known:
                x, y = places(one.training, known, self.axis), values(known, key)
                smooth = plots.smoothed(y) if key == "loss" else None
                points = key != "loss"
                series.append(
                    Series(one.name, x, y, smooth, points=points, color=number)
                )
        return Chart(f"{title} of all runs", label, series, x_label=AXES[self.axis])


def places(training: list[Line], lines: list[Line], axis: str) -> np.ndarray:
    """Where lines of a run lie on an axis; NaN where that is not known.

    An evaluation lies where the training was at its step. Time is that of steps alone,
    as the tokens of each line and their speed give it.

    Args:
        training: the training lines of the run.
        lines: those lines, or its evaluations.
        axis: a key of `AXES`.

    Returns:
        An array of shape (lines,).
    """
    steps = values(lines, "step")
    if axis == STEPS or not training:
        return steps if axis == STEPS else np.full(len(lines), np.nan)
    tokens = values(training, "tokens")
    at = tokens
    if axis == TIME:
        with np.errstate(divide="ignore", invalid="ignore"):
            took = np.diff(tokens, prepend=0) / values(training, "tokens_per_second")
        at = np.cumsum(np.where(np.isfinite(took) & (took > 0), took, 0))
    own, known = values(training, "step"), np.isfinite(at)
    if not known.any():
        return np.full(len(lines), np.nan)
    return np.interp(steps, np.r_[0, own[known]], np.r_[0, at[known]])


def _record(entry: Entry, follower: Follower) -> Record:
    name = inside.shown(entry.place.name)
    if entry.title:
        name = f"{name.rpartition('/points/')[0] or name}: {entry.title}"
    status, settings = entry.state, {}
    try:
        text = inside.text(entry.place.folder, CONFIG, strict_yaml.MAX_BYTES + 1)
        mapping = strict_yaml.load(text, CONFIG)
        settings = {
            key: strict_yaml.dump_scalar(value)
            for key, value in tree.walk(mapping)
            if key != PLACE
        }
    except InputError as error:
        status = f"{status}; {error.problems[0]}"
    except OSError as error:
        status = f"{status}; {CONFIG} cannot be read ({error.strerror})"
    training, evaluation = follower.training, follower.evaluation
    figures = figures_of(entry.summary, training, evaluation)
    return Record(
        name, entry.place.folder, status, settings, figures, training, evaluation
    )


def differing(records: Sequence[Record]) -> list[str]:
    """The keys of which not all configurations that can be read say the same."""
    return [row.label for row in table.rows(records) if row.is_setting]


def _label(records: Sequence[Record]) -> str:
    """The name of the losses of runs at an axis, with their unit."""
    return plots.label_of_loss(
        [line for one in records for line in (*one.training, *one.evaluation)]
    )


def _loss(record: Record) -> float | None:
    found = (record.figures.get(name) for name in LOSSES)
    return next((value for value in found if value is not None), None)


def _over_settings(records: Sequence[Record]) -> list[Chart]:
    """The best loss of each run over each number in which the runs differ."""
    charts = []
    for key in differing(records):
        at = [_number(one.settings.get(key)) for one in records]
        known = {number for number in at if number is not None}
        if len(known) < 2 or len(charts) == KEYS:
            continue
        series = [
            Series(
                *(one.name, np.array([x], float), np.array([loss], float)),
                points=True,
                color=number,
                line=False,
            )
            for number, (one, x) in enumerate(zip(records, at))
            if x is not None and (loss := _loss(one)) is not None
        ]
        log = min(known) > 0 and max(known) >= plots.FACTOR * min(known)
        title = f"Best loss over {key}"
        label = plots.axis_label(key)
        y_label = _label(records)
        charts.append(Chart(title, y_label, series, x_label=label, x_log=log))
    return charts


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class Across(NamedTuple):
    """A run in parallel coordinates.

    Attributes:
        name: the run's.
        color: the number of its color.
        points: its places, as an SVG has them.
    """

    name: str
    color: int
    points: str


class Parallel(NamedTuple):
    """Runs as lines across axes that stand side by side.

    Attributes:
        axes: (place from the left, title, [(place from above, label)]) of each.
        lines: the runs.
        width: of the picture.
        height: likewise.
    """

    axes: list[tuple[float, str, list[tuple[float, str]]]]
    lines: list[Across]
    width: int
    height: int


WIDTH, HEIGHT, SIDE, TOP = 900, 280, 90, 40
APART = 14  # from one label of an axis to the next


def parallel(records: Sequence[Record]) -> Parallel | None:
    """The settings in which runs differ and their best loss, as parallel coordinates.

    Args:
        records: the runs.

    Returns:
        None where fewer than two runs have a loss, or nothing differs.
    """
    known = [(n, one) for n, one in enumerate(records) if _loss(one) is not None]
    keys = differing(records)[:6]
    if len(known) < 2 or not keys:
        return None
    columns = [(key, [one.settings.get(key, "-") for _, one in known]) for key in keys]
    columns.append(("best loss", [f"{_loss(one):.4f}" for _, one in known]))
    axes, heights = [], []
    for number, (title, texts) in enumerate(columns):
        x = SIDE + number * (WIDTH - 2 * SIDE) / (len(columns) - 1)
        at = _heights(texts)
        labels: list[tuple[float, str]] = []
        for y, text in sorted(set(zip(at, texts))):
            if not labels or y - labels[-1][0] >= APART:
                labels.append((y, text))
        axes.append((round(x, 1), title, labels))
        heights.append(at)
    lines = [
        Across(
            one.name,
            number % 12,
            " ".join(f"{x},{own[i]}" for (x, _, _), own in zip(axes, heights)),
        )
        for i, (number, one) in enumerate(known)
    ]
    return Parallel(axes, lines, WIDTH, HEIGHT)


def _heights(texts: Sequence[str]) -> list[float]:
    """Where values stand: numbers by size or logarithm, others one below the other."""
    numbers = [_number(text) for text in texts]
    room = HEIGHT - 2 * TOP
    if any(number is None for number in numbers):
        kinds = sorted(set(texts))
        return [
            round(TOP + room * (kinds.index(text) + 0.5) / len(kinds), 1)
            for text in texts
        ]
    found = np.array(numbers, float)
    if found.min() > 0 and found.max() >= plots.FACTOR * found.min():
        found = np.log(found)
    low, span = found.min(), np.ptp(found) or 1.0
    return [round(float(TOP + room * (1 - (v - low) / span)), 1) for v in found]
