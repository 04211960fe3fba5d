"""Links that lead out of the folders that were named at start, each tried."""

import json
import os
from urllib.parse import urlencode

import pytest

from jaxpeft.board import confine, processes
from jaxpeft.board.jobs import Queue
from jaxpeft.errors import InputError

from .conftest import HOST, TOKEN, Asked

OWN = {"x-board-token": TOKEN, "origin": f"http://{HOST}"}


@pytest.fixture
def away(tmp_path):
    """A folder that no board was told of."""
    folder = tmp_path / "away"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_text("a secret")
    return folder


def absolute(run, away):
    (run / "checkpoints").symlink_to(away)


def relative(run, away):
    (run / "adapter").symlink_to(os.path.relpath(away / "adapter", run))


def deep(run, away):
    (run / "checkpoints" / "20").mkdir(parents=True)
    (run / "checkpoints" / "20" / "state").symlink_to(away / "adapter")


def of_a_file(run, away):
    (run / "adapter").mkdir()
    name = "adapter_model.safetensors"
    (run / "adapter" / name).symlink_to(away / "adapter" / name)


def by_a_second_run(run, away):
    """Each link by itself stays within the folders."""
    other = run.parent / "other"
    other.mkdir()
    (other / "tensorboard").symlink_to(away)
    (run / "model").symlink_to(other)


def to_nothing(run, away):
    """Where something will be, once it is written."""
    (run / "checkpoints").symlink_to(away / "new")


WAYS = [absolute, relative, deep, of_a_file, by_a_second_run, to_nothing]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", ["continue", "report", "export"])
def test_no_command_is_started_about_a_run_that_leads_out(
    make_run, board, away, way, action
):
    run = make_run("one", ended={"status": "preempted", "why": "x"})
    way(run, away)
    path = f"/run/{board.key('one')}/do/{action}"
    answer = board.ask("POST", path, OWN, b"to=peft")
    assert answer.code == 409 and "is a link to" in answer.text
    assert "--runs" in answer.text and board.queue.jobs() == []


@pytest.mark.parametrize("way", WAYS)
def test_no_model_is_loaded_from_a_run_that_leads_out(make_run, board, away, way):
    run = make_run("one")
    way(run, away)
    if not any((run / name).exists() for name in ("adapter", "model")):
        (run / "adapter").mkdir()
    body = urlencode({"run": board.key("one"), "text": "a"}).encode()
    said = json.loads(board.ask("POST", "/try/say", OWN, body).text)
    assert "is a link to" in said["error"]


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_is_named_as_well_may_be_led_to(make_run, tmp_path, away, way):
    run = make_run("one", ended={"status": "preempted", "why": "x"})
    way(run, away)
    board = Asked(tmp_path / "runs", away)
    board.queue.tops = tuple(board.catalog.folders.tops)
    answer = board.ask("POST", f"/run/{board.key('runs/one')}/do/continue", OWN)
    assert answer.code == 303 and len(board.queue.jobs()) == 1


def test_links_in_a_circle_have_an_end(make_run, tmp_path):
    run = make_run("one")
    (run / "again").symlink_to(run)
    (run / "up").symlink_to("..")
    confine.check(run, [tmp_path / "runs"])


@pytest.mark.parametrize("place", ["../../../etc", "/etc", "points/../../../x"])
def test_a_point_elsewhere_is_none_of_its_sweep(board, tmp_path, place):
    sweep = tmp_path / "runs" / "sweep"
    sweep.mkdir()
    rows = [{"name": "a", "directory": place, "status": "waiting"}]
    sweep.joinpath("sweep.json").write_text(json.dumps({"points": rows}))
    for action in ("report", "continue"):
        answer = board.ask("POST", f"/run/{board.key('sweep')}/do/{action}", OWN)
        assert answer.code == 409 and "not within the sweep" in answer.text


def test_what_is_put_into_a_run_while_its_job_waits_is_seen(make_run, tmp_path, away):
    run = make_run("one")
    queue = Queue(tmp_path / "runs")
    number = queue.add(["report", "--run", str(run)], str(run))
    absolute(run, away)
    queue._take(number)
    with pytest.raises(InputError, match="is a link to"):
        processes.work(queue._path(number, "json"))
    assert queue.job(number).code == 2


def test_an_export_is_written_below_the_folders_or_not_at_all(make_run, tmp_path, away):
    run = make_run("one")
    (run / "adapter").mkdir()
    alone = Asked(run)
    answer = alone.ask("POST", f"/run/{alone.key('one')}/do/export", OWN, b"to=peft")
    assert answer.code == 409 and "one-peft" in answer.text
    (tmp_path / "runs" / "one-vllm").symlink_to(away)
    board = Asked(tmp_path / "runs")
    answer = board.ask("POST", f"/run/{board.key('one')}/do/export", OWN, b"to=vllm")
    assert answer.code == 409 and board.queue.jobs() == []


def test_a_run_of_very_many_files_is_left_alone(make_run, monkeypatch, tmp_path):
    monkeypatch.setattr(confine, "MOST", 1)
    with pytest.raises(InputError, match="too many"):
        confine.check(make_run("one"), [tmp_path])
