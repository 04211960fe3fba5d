"""The pictures beside a page: what is drawn, and how the axes are labelled."""

import json

import pytest
from matplotlib.figure import Figure

from jaxpeft import cli, report
from jaxpeft.report import plots
from jaxpeft.rundir import files, sweep_files


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures = []
    save = Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


@pytest.mark.parametrize("name", ["loss.png", "report.html"])
def test_a_link_in_the_place_of_a_file_is_replaced(make_run, tmp_path, name):
    """Whoever made the run's folder may have put one there, to any file."""
    run, mine = make_run("one"), tmp_path / "mine"
    mine.write_text("mine")
    for link in (name, f"{name}.partial"):
        (run / link).symlink_to(mine)
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert mine.read_text() == "mine" and not (run / name).is_symlink()


def test_the_picture_of_a_run_marks_its_best_evaluation(make_run, drawn):
    run = make_run("one")
    assert cli.run(report.main, ["--run", str(run)]) == 0
    top, bottom = drawn[0].axes
    assert top.get_ylabel() == "loss (nats per token)"
    assert labels(bottom) == ("step (updates)", "learning rate\n(per update)")
    (best,) = [line for line in top.lines if line.get_marker() == "*"]
    assert [*best.get_xdata(), *best.get_ydata()] == [30, 2.0]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_a_sweep_has_a_line_for_each_choice(sweep, drawn):
    assert cli.run(report.main, ["--sweep", str(sweep)]) == 0
    left, right = drawn[0].axes
    rate = "optimizer.learning_rate (per update)"
    assert labels(left) == (rate, "final evaluation loss (nats per token)")
    assert labels(right) == ("step (updates)", "evaluation loss (nats per token)")
    assert left.get_xscale() == "log"
    assert [line.get_label() for line in left.lines] == ["seed=1", "seed=2"]
    assert list(left.lines[0].get_ydata()) == pytest.approx([2.01, 1.01, 2.01])
    assert len(right.lines) == 6
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_sweep_without_numbers_or_results_is_drawn(tmp_path, drawn):
    point = {
        "name": r"target_modules=.*\.q_proj$|.*\.k_proj$",  # no mathematics
        "directory": "points/00",
        "values": {"optimizer.name": "lion"},
    }
    content = {"axes": {"optimizer.name": ["lion"]}, "points": [point]}
    files.write_json(tmp_path / "sweep.json", content)
    sweep = sweep_files.read_sweep(tmp_path)
    plots.plot_sweep(sweep, tmp_path / "sweep.png", "empty")
    (only,) = drawn[0].axes
    assert only.get_xlabel() == "step (updates)"


def test_what_a_search_drew_is_dots_over_its_first_number(sweep, drawn):
    content = json.loads((sweep / "sweep.json").read_text())
    space = {"kind": "log", "low": 1e-6, "high": 1e-2}
    seeds = {"kind": "choice", "values": [1, 2]}
    content["axes"] = {"seed": seeds, "optimizer.learning_rate": space}
    files.write_json(sweep / "sweep.json", content)
    assert cli.run(report.main, ["--sweep", str(sweep)]) == 0
    left = drawn[0].axes[0]
    (dots,) = left.lines
    assert (left.get_xscale(), dots.get_linestyle()) == ("log", "None")
    assert list(dots.get_xdata()) == sorted(2 * [1e-5, 1e-4, 1e-3])
    assert "1e-06 to 0.01 (log)" in (sweep / "report.html").read_text()
