"""What is found below a folder, and that only what is new is read."""

import json
import math
import os
import re

import pytest

from jaxpeft import config, replacing
from jaxpeft.assembly import configuration
from jaxpeft.board import inside, life, pages, tail
from jaxpeft.board.figures import Figures, glance
from jaxpeft.board.folders import Folders
from jaxpeft.board.follower import Follower
from jaxpeft.board.tail import Tail

from .conftest import CONFIG, grow_old, line


def names(folders: Folders) -> set[str]:
    return {place.name for place in folders.find().values()}


def test_runs_appear_and_vanish_at_any_depth(make_run, tmp_path):
    make_run("one")
    folders = Folders([tmp_path / "runs"])
    assert names(folders) == {"one"}
    two = make_run("a/b/two")
    assert names(folders) == {"one", "a/b/two"}
    late = tmp_path / "runs" / "late"
    late.mkdir()
    assert names(folders) == {"one", "a/b/two"}
    late.joinpath("config.yaml").write_text(CONFIG)
    assert names(folders) == {"one", "a/b/two", "late"}
    for file in two.iterdir():
        file.unlink()
    two.rmdir()
    assert names(folders) == {"one", "late"}


def test_a_change_while_the_table_is_made_is_told_by_its_stream(
    make_run, board, monkeypatch
):
    run = make_run("one")
    real = pages.row

    def late(entry):
        found = real(entry)
        if not run.joinpath("summary.json").exists():
            run.joinpath("summary.json").write_text('{"steps": 20}')
            board.entry("one")  # as another page looks meanwhile
        return found

    monkeypatch.setattr(pages, "row", late)
    text = board.get("/").text
    since = re.search(r"since=([0-9a-f]+-\d+)", text)[1]
    assert "finished" not in text
    assert "finished" in board.get(f"/events?since={since}").text


def test_a_run_can_be_named_itself(make_run):
    assert names(Folders([make_run("one")])) == {"one"}


def test_a_configuration_above_all_runs_hides_none(make_run, tmp_path):
    run = make_run("a/one")
    (run / "checkpoints" / "20").mkdir(parents=True)
    for folder in ("runs", "runs/checkpoints", "runs/a/one/checkpoints/20"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.yaml").write_text(CONFIG)
    folders = Folders([tmp_path / "runs"])
    assert names(folders) == {"runs", "a/one"}
    assert {place.sweep for place in folders.find().values()} == {""}


def test_no_link_leads_out_of_a_folder(make_run, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    secret.joinpath("config.yaml").write_text(CONFIG)
    make_run("one")
    (tmp_path / "runs" / "link").symlink_to(secret)
    assert names(Folders([tmp_path / "runs"])) == {"one"}


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../secret", "", ".", "link", "below/x", "fifo"]
    + ["a\0b", "folder"],
)
def test_nothing_outside_of_a_folder_is_opened(tmp_path, name):
    top = tmp_path / "top"
    top.mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "x").write_text("secret")
    (top / "link").symlink_to(tmp_path / "secret")
    (top / "below").symlink_to(tmp_path)
    (top / "folder").mkdir()
    os.mkfifo(top / "fifo")  # opening it must not wait
    with pytest.raises(OSError):
        inside.opened(top, name)
    (top / "folder" / "own").write_text("own")
    assert inside.text(top, "folder/own") == "own"


def test_each_line_is_given_once_and_half_a_line_waits(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    found = Tail(tmp_path, whole=True)
    assert found.more() == []
    with metrics.open("a", buffering=1) as file:
        file.write(line(1))
        assert [one["step"] for one in found.more()] == [1]
        file.write(line(2)[:-10])
        file.flush()
        assert found.more() == []
        file.write(line(2)[-10:] + line(3))
        assert [one["step"] for one in found.more()] == [2, 3]
    assert found.more() == [] and not found.fresh
    metrics.unlink()
    metrics.write_text(line(1))  # as a run does that goes on
    assert [one["step"] for one in found.more()] == [1] and found.fresh


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(map(line, range(1, 2001))))
    found, seen = Tail(tmp_path, whole=True), []
    found.more()
    monkeypatch.setattr(tail, "read", lambda text: seen.append(text))
    with metrics.open("a") as file:
        file.write(line(2001))
    found.more()
    assert seen == [line(2001).strip().encode()]


@pytest.mark.parametrize(
    "text",
    [b"nonsense", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b'{"step": true}']
    + [b'{"step": -1}', b'{"step": 1e400}', b"[" * 100_000, b'{"step": NaN}', b"\xff"]
    + [b'{"step": ' + b"9" * 400 + b"}"],
)
def test_a_line_that_is_none_is_passed_over_and_counted(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1).encode() + text + b"\n" + line(2).encode())
    found = Tail(tmp_path, whole=True)
    assert [one["step"] for one in found.more()] == [1, 2]
    assert found.bad == 1


@pytest.mark.parametrize("length", [999, 1000, 1001, 2000, 5678])
def test_a_line_that_is_too_long_is_counted_and_passed_over(
    tmp_path, monkeypatch, length
):
    monkeypatch.setattr(tail, "PIECE", 1000)
    path, found = tmp_path / "metrics.jsonl", Tail(tmp_path, whole=True)
    path.write_text(line(1) + "x" * length)
    assert [one["step"] for one in found.more()] == [1] and found.more() == []
    with path.open("a") as file:
        file.write("x" * length)
    assert found.more() == []
    with path.open("a") as file:
        file.write("\n" + "".join(map(line, range(2, 40))) + line(40)[:9])
    assert [one["step"] for one in found.more()] == [*range(2, 40)]
    assert found.bad == 1
    with path.open("a") as file:
        file.write(line(40)[9:])
    assert [one["step"] for one in found.more()] == [40] and found.bad == 1


def test_of_long_metrics_a_piece_at_a_time_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "PIECE", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(line, range(1, 1001))))
    pieces = list(Tail(tmp_path, whole=True).pieces())
    assert [one["step"] for piece in pieces for one in piece] == [*range(1, 1001)]
    assert max(map(len, pieces)) <= 1000 // len(line(1))


def test_what_is_no_number_in_a_line_is_left_out():
    read = tail.read(b'{"step": 3, "loss": null, "a": "<b>", "c": [1], "d": true}')
    assert read is not None
    assert read.keys() == {"step", "loss"} and math.isnan(read["loss"])


def test_the_table_needs_only_the_end_of_long_metrics(make_run, board):
    run = make_run("one", steps=0)
    with run.joinpath("metrics.jsonl").open("w") as file:
        for step in range(1, 5001):
            file.write(line(step))
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "eval_loss": step / 1000}) + "\n")
    entry = board.entry("one")
    assert entry.figures.training["step"] == 5000
    assert entry.figures.evaluation["eval_loss"] == 5.0
    assert entry.figures.seconds_a_step == pytest.approx(0.5)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.method=dora", "model.path='a: b#c'", "training.num_epochs=2.5"],
        ["data.train=[{path: 'x y'}, {path: '[z'}]", "data.eval=null"],
        ["model.quantization=nf4", "objective.name=dpo", "training.max_steps=7"],
        ["model.path='it''s'", "optimizer.name=adamw_8bit"],
    ],
)
def test_a_glance_at_a_configuration_sees_what_reading_it_all_does(overrides):
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", overrides)
    seen = glance(config.to_yaml(cfg))
    assert seen == {
        "adapter.method": cfg.adapter.method,
        "objective.name": cfg.objective.name,
        "model.path": cfg.model.path,
        "model.quantization": cfg.model.quantization,
        "optimizer.name": cfg.optimizer.name,
        "training.max_steps": cfg.training.max_steps,
        "training.num_epochs": cfg.training.num_epochs,
        "data.train": [source.path for source in cfg.data.train],
    }


def test_the_steps_of_a_run_of_epochs_follow_from_the_share_that_is_done():
    figures = Figures()
    figures.add([{"step": 30, "loss": 1.0, "epoch": 0.25}])
    assert figures.steps({"training.num_epochs": 2.0}, {}) == 240
    assert figures.steps({"training.num_epochs": None}, {}) == 120  # the default
    assert figures.steps({}, {}) is None  # no configuration that could say so
    assert figures.steps({"training.max_steps": 50}, {}) == 50
    assert Figures().steps({"training.num_epochs": 2.0}, {}) is None


def test_the_time_left_is_that_of_the_steps_left(make_run, board):
    make_run("one", lock={"pid": 1, "host": "another"})
    row = pages.row(board.entry("one"))
    assert (row["step"], row["steps"], row["left"]) == (20, 40, pytest.approx(10.0))


def test_sorting_puts_what_is_not_known_last_whichever_way():
    rows = [{"name": n, "loss": x} for n, x in zip("abcd", (2.0, None, math.nan, 1.0))]
    for down, expected in ((False, "dabc"), (True, "adbc")):
        assert (
            "".join(r["name"] for r in pages.in_order(rows, "loss", down)) == expected
        )


def test_very_long_metrics_are_thinned_while_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxpeft.board.follower.MOST", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(line, range(1, 1001))))
    found = Follower(tmp_path)
    assert found.read() and not found.read()
    assert found.every == 16 and len(found.training) <= 100
    assert found.evaluation == []
    steps = [one["step"] for one in found.training]
    assert {b - a for a, b in zip(steps, steps[1:])} == {16}


def test_an_unchanged_run_is_not_read_again(make_run, board, monkeypatch):
    make_run("one", summary={"steps": 20})
    version = board.entry("one").version
    monkeypatch.setattr(inside, "opened", lambda *_: pytest.fail("it was opened"))
    entry = board.entry("one")
    assert entry.version == version and entry.state == life.FINISHED


def test_the_page_of_a_sweep_shows_its_points_the_best_first(make_run, board, tmp_path):
    rows = []
    for number, loss in enumerate((2.0, 1.0, 3.0)):
        run = make_run(f"sweep/points/{number:02}", summary={"steps": 20})
        with run.joinpath("metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 22, "eval_loss": loss}) + "\n")
        name, place = f"point <{number}>", f"points/{number:02}"
        rows.append({"name": name, "directory": place, "status": "done"})
    sweep = tmp_path / "runs" / "sweep" / "sweep.json"
    sweep.write_text(json.dumps({"points": rows}))
    for path in ("", "/events"):
        text = board.get(f"/run/{board.key('sweep')}{path}").text
        at = [text.index(f"point &lt;{number}&gt;") for number in (1, 0, 2)]
        assert at == sorted(at)
    page = board.get(f"/run/{board.key('sweep')}").text
    assert "3 of 3" in page and "compare its points" in page
    assert "best first" not in board.get(f"/run/{board.key('sweep/points/00')}").text


def test_no_time_is_left_of_a_run_that_goes_past_its_steps(make_run, board):
    make_run("one", steps=50, lock={"pid": 7, "host": "another-host"})
    text = board.get(f"/run/{board.key('one')}").text
    assert "50 of 40" in text and ">0.0 s<" in text


@pytest.mark.parametrize("config", ["", "[1", "\0\0"])
def test_a_run_without_a_readable_configuration_says_so_in_its_row(
    make_run, board, config
):
    run = make_run("one", config=config)
    run.joinpath("metrics.jsonl").write_text(line(5, epoch=0.5))
    found = pages.row(board.entry("one"))
    assert found["step"] == 5 and found["steps"] is None and found["share"] is None
    assert any(one.startswith("config.yaml cannot be read") for one in found["faults"])
    # As runs write it: in place of the other.
    replacing.write_text(run / "config.yaml", CONFIG)
    found = pages.row(board.entry("one"))
    assert found["steps"] == 40 and not found["faults"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (1, "1 of its last lines is no object"),
        (2, "2 of its last lines are no objects"),
    ],
)
def test_what_cannot_be_read_is_counted_in_words(make_run, board, bad, said):
    make_run("one").joinpath("metrics.jsonl").write_text("nonsense\n" * bad + line(3))
    assert said in board.get("/").text


@pytest.fixture
def dated(make_run):
    """The folder of runs and sweeps whose files are as old as said, in seconds."""
    ages = {"old": 900, "s/points/00": 700, "s/points/01": 100, "new": 50, "mid": 150}
    top = [make_run(name) for name in (*ages, "t/points/00")][0].parent
    ages |= {"s": 800, "t": 300, "t/points/00": 200}
    for name in ("s", "t"):
        (top / name / "sweep.json").write_text('{"points": []}')
    for name, age in ages.items():
        for file in (top / name).iterdir():
            if file.is_file():
                grow_old(file, age)
    return top


def test_the_newest_stand_first_and_a_sweep_is_as_new_as_its_points(dated, board):
    text = board.get("/").text
    names = ["new", "s", "01", "00", "mid", "t", "00", "old"]
    assert re.findall(r'aria-label="compare ([^"]+)"', text) == names
    before = board.entry("t").version
    grow_old(dated / "t" / "points" / "00" / "metrics.jsonl", 1)
    assert board.entry("t").version > before  # its row is told again
    text = board.get("/").text
    assert re.findall(r'aria-label="compare ([^"]+)"', text)[0] == "t"
    # Every sweep has its own body, and what begins has one above all others.
    groups = re.findall(r'<tbody[^>]*id="group-(\w*)"', text)
    assert groups == ["", board.key("t"), board.key("s")]


def test_a_filter_without_a_hit_and_an_empty_board_say_what_to_do(make_run, board):
    def is_shown(mark, text):
        return "hidden" not in re.search(f'<p[^>]*id="{mark}"[^>]*>', text)[0]

    text = board.get("/").text
    assert is_shown("none", text) and not is_shown("no-hit", text)
    assert 'href="/new">make a new run' in text
    make_run("one")
    for words, hit in (("one", True), ("zebra", False)):
        text = board.get(f"/?words={words}").text
        assert not is_shown("none", text) and is_shown("no-hit", text) == (not hit)
