"""Runs side by side as a page: the table, and the curves of all in one picture."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxpeft.compare import table
from jaxpeft.compare.record import Record
from jaxpeft.report import page, plots
from jaxpeft.report.charts import Chart, Series
from jaxpeft.rundir.files import REPORT
from jaxpeft.rundir.metrics import values
from jaxpeft.rundir.outcome import USUAL


def write(path: Path, records: Sequence[Record]) -> None:
    """Writes the page, which links to the runs' own pages where they are.

    Args:
        path: the file.
        records: the runs.
    """
    found = table.rows(records)
    lines = [line for one in records for line in one.evaluation]
    label = plots.label_of_loss([*lines, *(x for one in records for x in one.training)])
    charts = [
        _chart(records, "Evaluation loss", "eval_loss", label),
        _chart(records, "Training loss", "loss", label, training=True),
    ]
    names = dict.fromkeys(name for line in lines for name in line if name not in USUAL)
    for name in names:
        title = name.removeprefix("eval_")
        charts.append(_chart(records, title, name, f"{title} (as the metric has it)"))
    page.write(
        path,
        "compare.html",
        title=f"{len(records)} runs side by side",
        state="the settings in which they differ, and what came of them",
        runs=[(one.name, _link(path, one)) for one in records],
        rows=[
            (row.label, [(c, n in row.best) for n, c in enumerate(row.cells)])
            for row in found
        ],
        charts=[chart.data() for chart in charts if chart.series],
    )


def _link(path: Path, record: Record) -> str:
    report = record.directory / REPORT
    if not report.is_file():
        return ""
    return Path(os.path.relpath(report, path.absolute().parent)).as_posix()


def _chart(
    records: Sequence[Record], title: str, key: str, label: str, training: bool = False
) -> Chart:
    series = []
    for number, one in enumerate(records):
        own = one.training if training else one.evaluation
        known = [line for line in own if key in line]
        if known:
            steps, y = values(known, "step"), values(known, key)
            smooth = plots.smoothed(y) if training else None
            series.append(
                Series(one.name, steps, y, smooth, points=not training, color=number)
            )
    return Chart(f"{title} of all runs", label, series)
