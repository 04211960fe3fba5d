"""Runs over one axis: where their points lie, and what is said of their settings."""

import json
import math

import numpy as np
import pytest

from jaxpeft.board import comparison
from jaxpeft.compare.record import Record, read_all

from .conftest import CONFIG, line

SCRIPT = "<script>alert(1)</script>"


def training(speeds):
    """Lines at steps 10, 20, ... of 100 tokens a step, with these speeds."""
    return [
        {"step": 10 * n, "loss": 1.0, "tokens": 1000.0 * n, "tokens_per_second": speed}
        for n, speed in enumerate(speeds, 1)
    ]


def test_evaluations_lie_where_the_training_was():
    lines = training([100.0, 50.0, 200.0])
    evaluations = [{"step": step, "eval_loss": 1.0} for step in (0, 10, 15, 30)]
    places = comparison.places
    assert places(lines, evaluations, "step").tolist() == [0, 10, 15, 30]
    assert places(lines, evaluations, "tokens").tolist() == [0, 1000, 1500, 3000]
    # 10 s, then 20 s, then 5 s.
    assert places(lines, lines, "time").tolist() == [10, 30, 35]
    assert places(lines, evaluations, "time").tolist() == [0, 10, 20, 35]


@pytest.mark.parametrize("axis", ["tokens", "time"])
def test_what_is_not_known_lies_nowhere(axis):
    lines = [{"step": 1, "loss": 1.0}]
    assert np.isnan(comparison.places([], lines, axis)).all()
    odd = training([0.0, math.nan, -1.0, 100.0])
    found = comparison.places(odd, odd, "time")
    assert np.isfinite(found).all() and found[-1] == 10  # the known line's seconds


def records(**settings):
    """Runs with these values of settings and losses 1, 2, ..."""
    count = len(next(iter(settings.values())))
    return [
        Record(
            *(f"run {n}", comparison.inside.Path("x"), "finished"),
            settings={key: found[n] for key, found in settings.items()},
            figures={"best_eval_loss": 1.0 + n},
        )
        for n in range(count)
    ]


def test_parallel_coordinates_have_numbers_by_size_and_names_in_order():
    found = comparison.parallel(
        records(rate=["1e-4", "1e-3", "1e-2"], name=["b", "a", "b"], same=["1"] * 3)
    )
    assert [title for _, title, _ in found.axes] == ["rate", "name", "best loss"]
    points = [
        [tuple(map(float, p.split(","))) for p in one.points.split()]
        for one in found.lines
    ]
    rates, names, losses = ([line[n][1] for line in points] for n in range(3))
    assert rates[0] - rates[1] == pytest.approx(rates[1] - rates[2], abs=0.2)  # log
    assert rates[0] > rates[2] and losses[0] > losses[2]  # the greater stands higher
    assert names[0] == names[2] != names[1]
    xs = [line[0] for line in points[0]]
    assert xs == sorted(xs) and xs[0] > 0 and xs[-1] < found.width


def test_there_are_no_parallel_coordinates_of_one_run():
    assert comparison.parallel(records(rate=["1"])) is None
    assert comparison.parallel(records(rate=["1", "1"])) is None


def test_the_page_says_what_the_command_does(make_run, board):
    runs = []
    for number, rank in enumerate((8, 16)):
        config = CONFIG.replace("r: 16", f"r: {rank}")
        run = make_run(f"run{number}", summary={"steps": 20}, config=config)
        with run.joinpath("metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 20, "eval_loss": 1.0 + number}) + "\n")
        runs.append(run)
    entries = [board.entry(run.name) for run in runs]
    found = comparison.Compared(entries, entries, "tokens")
    found.read()
    ours, theirs = found.records(), read_all(runs)
    for one, other in zip(ours, theirs):
        assert one.settings == other.settings and one.figures == other.figures
        assert one.training == other.training and one.evaluation == other.evaluation
    asked = "&".join(f"run={entry.place.key}" for entry in entries)
    page = board.get(f"/compare?{asked}&x=tokens")
    assert page.code == 200 and "adapter.r" in page.text and "polyline" in page.text
    charts = {chart["title"]: chart for chart in found.charts(ours)}
    assert charts["Training loss of all runs"]["series"][0]["x"][-1] == 1000
    over = charts["Best loss over adapter.r"]["series"]
    assert [(one["x"], one["y"]) for one in over] == [([8], [1]), ([16], [2])]
    assert "event: charts" in board.get(f"/compare/events?{asked}").text


def test_a_sweep_stands_for_its_points(make_run, board, tmp_path):
    rows = []
    for number in range(3):
        make_run(f"sweep/points/{number:02}")
        place = f"points/{number:02}"
        rows.append({"name": f"{SCRIPT}{number}", "directory": place, "status": "done"})
    sweep = tmp_path / "runs" / "sweep"
    sweep.joinpath("sweep.json").write_text(json.dumps({"points": rows}))
    page = board.get(f"/compare?run={board.key('sweep')}")
    assert page.text.count('class="swatch') == 3 and "<script>alert" not in page.text


def test_damaged_runs_can_be_compared(make_run, board):
    one, two = make_run("one"), make_run("two")
    one.joinpath("config.yaml").write_text("[1")
    two.joinpath("metrics.jsonl").write_text("nonsense\n" + line(3))
    (make_run("three") / "metrics.jsonl").unlink()
    asked = "&".join(f"run={board.key(name)}" for name in ("one", "two", "three"))
    for path in (f"/compare?{asked}", f"/compare/events?{asked}"):
        assert board.get(path).code == 200


@pytest.mark.parametrize("query", ["?run=x", "?run=%22%3E&x=%22%3E"])
def test_nothing_to_compare_is_said(board, query):
    answer = board.get(f"/compare{query}")
    assert answer.code == 404 and '">&' not in answer.text


def test_nothing_marked_is_a_hint_and_no_missing_page(board):
    for query in ("", "?x=time"):
        answer = board.get(f"/compare{query}")
        assert answer.code == 200 and "<h1>Nothing is marked</h1>" in answer.text
        assert "Mark runs" in answer.text and "Not found" not in answer.text
