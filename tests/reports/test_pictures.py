"""The pictures beside a page: what is drawn, and how the axes are labelled."""

import pytest
from matplotlib import pyplot

from jaxpeft import cli, plots, report, run_files


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, still open."""
    figures = []
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def test_the_picture_of_a_run_marks_its_best_evaluation(make_run, drawn):
    run = make_run("one")
    assert cli.run(report.main, ["--run", str(run)]) == 0
    top, bottom = drawn[0].axes
    assert top.get_ylabel() == "loss (nats per token)"
    assert labels(bottom) == ("step (updates)", "learning rate (per update)")
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
        "name": "a",
        "directory": "points/00",
        "values": {"optimizer.name": "lion"},
    }
    content = {"axes": {"optimizer.name": ["lion"]}, "points": [point]}
    run_files.write_json(tmp_path / "sweep.json", content)
    sweep = run_files.read_sweep(tmp_path)
    plots.plot_sweep(sweep, tmp_path / "sweep.png", "empty")
    assert drawn[0].axes[0].get_xlabel() == "no axis has numbers"
