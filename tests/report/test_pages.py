"""Pages as files: what stands in them, escaped, in every state of a run."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.report.charts import MOST, thinned
from jaxpeft.report.run_page import write_run
from jaxpeft.report.sweep_page import write_sweep


class Page(HTMLParser):
    """The texts and links of a page, and its charts, as a browser reads them."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.links, self.scripts, self._open = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.charts = {c["title"]: c for c in json.loads(self.scripts[0])}

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style" and data.strip():
            self.texts.append(data.strip())

    def series(self, chart):
        return {one["name"]: one for one in self.charts[chart]["series"]}


def test_a_run_is_shown_whole(make_run):
    run = make_run("one")
    page = Page(write_run(run, findings=["flat <since> step 3"]))
    for text in ("finished", "flat <since> step 3", "3.0 GiB", "1 h 02 min", "1,234.5"):
        assert text in page.texts
    assert "1.25% of the parameters" in page.texts
    assert page.links == []
    losses = page.series("Loss")
    assert losses["training"]["y"][:8] == [
        2.99,
        2.98,
        2.97,
        2.96,
        2.95,
        2.94,
        None,
        2.92,
    ]
    assert losses["evaluation"]["x"] == [0, 10, 20, 30, 40]
    assert losses["evaluation"]["best"] == [30, 2.0]
    assert page.charts["Loss"]["yLabel"] == "loss (nats per token)"
    assert page.charts["Learning rate"]["series"][0]["y"] == [1e-4] * 40


def test_what_data_and_configuration_say_stays_text(make_run):
    run = make_run("one")
    sample = json.loads((run / "samples.json").read_text())[0]
    page = Page(write_run(run))
    assert page.texts.count(sample["prompt"]) == 3  # prompt, before, environment
    assert (run / "config.yaml").read_text().strip() in page.texts
    assert len(page.scripts) == 2


def test_a_run_without_its_end_is_shown_up_to_there(make_run):
    run = make_run("one", steps=12, every=None, summary=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # a run is writing it
    page = Page(write_run(run))
    assert "not finished: step 12 logged so far" in page.texts
    assert set(page.series("Loss")) == {"training"}


def test_a_run_before_its_first_line_has_a_page(make_run):
    run = make_run("one", summary=False)
    (run / "metrics.jsonl").unlink()
    page = Page(write_run(run))
    assert "no step logged yet" in page.texts
    assert page.charts == {}


def test_losses_that_are_never_finite_are_gaps(make_run):
    run = make_run("one", summary=False)
    lines = [{"step": step, "loss": None, "eval_loss": None} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = Page(write_run(run))
    assert page.series("Loss")["training"]["y"] == [None, None]
    assert page.series("Loss")["evaluation"]["best"] is None
    assert "not finite" in page.texts


def test_a_line_that_is_no_json_is_named(make_run):
    run = make_run("one")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\nnot so\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: found 'not so'"):
        write_run(run)


def test_long_curves_keep_their_peaks():
    y = np.sin(np.arange(100_000) / 7)
    y[61_234], y[5_000:6_000] = 9.0, np.nan
    kept = thinned(y, MOST)
    assert len(kept) <= MOST
    assert {0, 61_234, 99_999} <= set(kept)
    assert np.isnan(y[kept]).any()
    assert (np.diff(kept) > 0).all()


def test_a_sweep_is_shown_best_first(sweep):
    write_run(sweep / "points" / "02")
    path = write_sweep(sweep)
    page = Page(path)
    assert page.links == ["points/02/report.html"]
    names = [text for text in page.texts if text.startswith("learning_rate=")]
    assert names[0] == "learning_rate=0.0001 seed=1"
    assert names[-1] == "learning_rate=0.001 seed=2"  # it has no loss
    over_rate = page.charts["Final evaluation loss over optimizer.learning_rate"]
    assert over_rate["xLog"]
    first, second = over_rate["series"]
    assert (first["name"], second["name"]) == ("seed=1", "seed=2")
    assert first["x"] == [1e-5, 1e-4, 1e-3]
    assert first["y"] == pytest.approx([2.01, 1.01, 2.01])
    assert second["y"] == [pytest.approx(2.02), pytest.approx(1.02), None]
    curves = page.charts["Evaluation loss of all points, best first"]["series"]
    assert [curve["name"] for curve in curves] == names
    assert [curve["color"] for curve in curves] == list(range(6))


def test_a_point_of_a_sweep_says_its_values_and_leads_back(sweep):
    page = Page(write_run(sweep / "points" / "02"))
    assert "02: learning_rate=0.0001 seed=1" in page.texts
    [back] = page.links
    assert (sweep / "points" / "02" / back).resolve() == sweep / "report.html"


def test_a_sweep_that_evaluates_nothing_goes_by_its_training_losses(sweep):
    content = json.loads((sweep / "sweep.json").read_text())
    for at, point in enumerate(content["points"]):
        point |= {"eval_loss": None, "best_eval_loss": None, "train_loss": 9.0 - at}
    (sweep / "sweep.json").write_text(json.dumps(content))
    page = Page(write_sweep(sweep))
    names = [text for text in page.texts if text.startswith("learning_rate=")]
    # The last one's is the lowest, but it diverged.
    assert names[0] == "learning_rate=0.001 seed=1"
    assert "Final training loss over optimizer.learning_rate" in page.charts


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="name the output_dir of a run"):
        write_run(tmp_path)
    with pytest.raises(InputError, match="name the directory of a sweep"):
        write_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"points": [{"directory": "x"}]}')
    with pytest.raises(InputError, match="each with its name and directory"):
        write_sweep(tmp_path)


@pytest.mark.parametrize(
    ("more", "unit"),
    [
        ({}, "nats per token"),
        ({"rewards/margins": 0.1}, "mean over pairs or answers"),
        ({"accuracy": 0.5}, "nats per text"),
    ],
)
def test_losses_have_the_unit_of_their_objective(make_run, more, unit):
    run = make_run("one")
    path = run / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines())
    path.write_text(
        "".join(
            json.dumps(line | more) + "\n" for line in lines if "eval_loss" not in line
        )
    )
    page = Page(write_run(run))
    assert page.charts["Loss"]["yLabel"] == f"loss ({unit})"
    assert unit in page.texts
    others = {"nats per token", "mean over pairs or answers", "nats per text"} - {unit}
    assert not [t for t in page.texts for other in others if other in t]
