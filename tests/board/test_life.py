"""The state of a run is told from its lock, its heartbeat and what it left."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxpeft.board import actions, catalog, life
from jaxpeft.errors import InputError, Preempted
from jaxpeft.rundir import lock
from jaxpeft.rundir.lock import RunLock

from .conftest import grow_old, here, line

AWAY = {"pid": 7, "host": "another-host"}


def test_a_run_whose_lock_is_held_here_runs(make_run, board):
    run = make_run("one")
    with RunLock(run):
        begun_before(run, 10)
        entry = board.entry("one")
        assert (entry.state, entry.why) == (life.RUNNING, "")
        assert entry.held.pid == os.getpid() and entry.memory > 2**20
    assert board.entry("one").state == life.FAILED  # it left no result


def test_looking_never_holds_the_lock(make_run, board):
    """A run that begins while the board looks is never refused."""
    run = make_run("one", lock=here())
    board.entry("one")
    with RunLock(run):
        pass


@pytest.mark.parametrize("pid", [2**22 + 1, None], ids=["gone", "another's"])
def test_a_lock_file_that_nobody_holds_is_of_a_run_that_was_killed(
    make_run, board, pid
):
    """Also where its number has been given to another process: this one."""
    make_run("one", lock=here(pid))
    entry = board.entry("one")
    assert entry.state == life.FAILED and "killed" in entry.why


def test_elsewhere_the_heartbeat_tells(make_run, board):
    run = make_run("one", lock=AWAY)
    assert board.entry("one").state == life.RUNNING
    grow_old(run / ".lock", 59)
    entry = board.entry("one")
    assert entry.state == life.FAILED and "heard" in entry.why


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): as much later."""
    passed = [0.0]
    for name in ("time", "monotonic"):
        real = getattr(time, name)
        fake = lambda real=real: real() + passed[0]  # noqa: E731
        monkeypatch.setattr(catalog.time, name, fake)

    def later(seconds):
        passed[0] += seconds

    return later


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_a_disk_with_another_clock_is_judged_by_what_moves(
    make_run, board, clock, ahead
):
    """The disk's time is an hour away from this machine's."""
    run = make_run("one", lock=AWAY)

    def beat(seconds):
        grow_old(run / ".lock", -ahead - seconds)

    beat(0)
    first = board.entry("one")
    assert (first.state == life.FAILED) == (ahead < 0)  # it can only be guessed yet
    if ahead < 0:
        assert not first.held.is_sure and "watches" in first.why
        assert "do/continue" not in board.get(f"/run/{board.key('one')}").text
    for step in range(1, 8):
        clock(10)
        beat(10 * step)
        assert board.entry("one").state == life.RUNNING
    clock(30)
    assert board.entry("one").state == life.RUNNING
    clock(15)
    dead = board.entry("one")
    assert dead.state == life.FAILED and dead.held.is_sure
    assert dead.why == "nothing was heard of it for 40 s"
    assert "do/continue" in board.get(f"/run/{board.key('one')}").text


def test_a_run_that_is_dead_since_before_the_board_looked_never_lives_long(
    make_run, board, clock
):
    """Also where its last sign is from this machine's future."""
    run = make_run("one", lock=AWAY)
    grow_old(run / ".lock", -5000)
    assert board.entry("one").state == life.RUNNING
    clock(41)
    assert board.entry("one").state == life.FAILED
    clock(10_000)  # nobody looked: nobody can say when this sign came
    grow_old(run / ".lock", 60)
    assert board.entry("one").state == life.FAILED


def test_how_long_ago_a_sign_came_from_another_host_is_said(make_run, board, clock):
    run = make_run("one", lock={**AWAY, "host": "<away>"})
    board.entry("one")
    clock(10)
    grow_old(run / ".lock", -500)
    board.entry("one")
    clock(7)
    seen = "on &lt;away&gt;, seen by the board <span data-at="
    for text in (board.get("/").text, board.get(f"/run/{board.key('one')}").text):
        assert seen in text and ">7 s</span> ago" in text
    assert "seen by the board" not in board.get("/static/board.js").text


def test_continuing_waits_until_the_board_has_watched_another_host(
    make_run, board, clock
):
    run = make_run("one", lock=AWAY)
    grow_old(run / ".lock", 3600)
    with pytest.raises(InputError, match="another-host may be writing"):
        actions.go_on(board.entry("one"), board.queue, "")
    clock(40)
    assert actions.go_on(board.entry("one"), board.queue, "") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff"])
def test_a_lock_file_without_sense_is_judged_by_its_age(make_run, board, content):
    run = make_run("one")
    run.joinpath(".lock").write_bytes(content)
    assert board.entry("one").state == life.RUNNING
    grow_old(run / ".lock", 600)
    assert board.entry("one").state == life.FAILED


def begun_before(run, seconds):
    """Makes the process that holds a run's lock look as if it began so long ago."""
    path = run / ".lock"
    path.write_text(json.dumps(here() | {"since": time.time() - seconds}))


def test_a_run_that_logs_nothing_for_long_is_stalled(make_run, board):
    run = make_run("one")
    with RunLock(run):
        begun_before(run, 1000)
        grow_old(run / "metrics.jsonl", 200)
        assert board.entry("one").state == life.RUNNING
        grow_old(run / "metrics.jsonl", 400)
        entry = board.entry("one")
        assert (entry.state, entry.why) == (life.STALLED, "logged nothing for 7 min")


def test_a_run_that_goes_on_has_time_to_load(make_run, board):
    """Its metrics are those of before, until a line comes."""
    run = make_run("one")
    grow_old(run / "metrics.jsonl", 10_000)
    with RunLock(run):
        entry = board.entry("one")
        assert (entry.state, entry.why) == (life.RUNNING, "loads and compiles")
        begun_before(run, 1300)
        entry = board.entry("one")
        assert (entry.state, entry.why) == (life.STALLED, "logged nothing for 22 min")
        with run.joinpath("metrics.jsonl").open("a") as file:
            file.write(line(21))
        entry = board.entry("one")
        assert (entry.state, entry.why) == (life.RUNNING, "")


def test_a_run_that_hangs_before_its_first_line_is_stalled(make_run, board):
    run = make_run("one", steps=0)
    run.joinpath("metrics.jsonl").unlink()
    with RunLock(run):
        for seconds, state in ((1100, life.RUNNING), (1300, life.STALLED)):
            begun_before(run, seconds)
            assert board.entry("one").state == state


@pytest.mark.parametrize("since", ['"x"', "1" + "0" * 400, "null", "[]"])
def test_a_time_without_sense_is_none(make_run, board, since):
    run = make_run("one")
    with RunLock(run) as held:
        lock = json.dumps(here()).replace("}", f', "since": {since}}}')
        held.path.write_text(lock)
        assert board.entry("one").state == life.RUNNING


def test_a_sweep_that_says_nothing_of_its_points_has_not_finished(tmp_path, board):
    folder = tmp_path / "runs" / "sweep"
    folder.mkdir()
    for content in ("{}", '{"points": []}'):
        folder.joinpath("sweep.json").write_text(content)
        assert board.entry("sweep").state == life.FAILED


def test_slow_lines_are_no_stall(make_run, board):
    run = make_run("one", steps=0)
    with run.joinpath("metrics.jsonl").open("w") as file:
        for step in (100, 200):  # 50 tokens a step at 100 a second: 50 s a line
            file.write(line(step))
    with RunLock(run):
        begun_before(run, 1000)
        grow_old(run / "metrics.jsonl", 400)
        assert board.entry("one").state == life.RUNNING
        grow_old(run / "metrics.jsonl", 501)
        assert board.entry("one").state == life.STALLED


def test_a_process_that_is_stopped_is_stalled(make_run, board):
    run = make_run("one")
    with RunLock(run):
        grow_old(run / ".lock", 100)
        assert board.entry("one").state == life.STALLED


@pytest.mark.parametrize(
    ("summary", "state"),
    [
        ({"steps": 20, "stopped_early": False}, life.FINISHED),
        ({"steps": 20, "stopped_early": True}, life.STOPPED_EARLY),
    ],
)
def test_a_run_with_a_result_has_ended(make_run, board, summary, state):
    make_run("one", summary=summary)
    assert board.entry("one").state == state


def test_a_run_without_a_line_waits(make_run, board):
    make_run("one", steps=0)
    assert board.entry("one").state == life.WAITING


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Preempted("SIGTERM received: saved after step 20"), life.PREEMPTED),
        (KeyboardInterrupt(), life.PREEMPTED),
        (InputError("data.train: is gone"), life.FAILED),
        (ZeroDivisionError("by zero"), life.FAILED),
    ],
    ids=lambda value: getattr(value, "__class__", type(value)).__name__,
)
def test_how_a_run_ended_stands_in_its_directory(make_run, board, error, state):
    run = make_run("one")
    with pytest.raises(type(error)), RunLock(run) as held:
        held.begin()
        raise error
    entry = board.entry("one")
    assert entry.state == state
    assert entry.why == (str(error) or "KeyboardInterrupt")
    with RunLock(run) as held:  # it goes on
        assert board.entry("one").state == life.RUNNING
        held.begin()
    assert not run.joinpath(".ended").exists()


def test_an_error_leaves_an_empty_directory_empty(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_lock_file_is_renewed_while_its_block_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with RunLock(tmp_path) as held:
        grow_old(held.path, 1000)
        deadline = time.monotonic() + 5
        while time.time() - held.path.stat().st_mtime > 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_points_of_a_sweep_are_judged_by_the_sweep(make_run, board, tmp_path):
    rows = []
    statuses = ("done", "stopped early", "diverged", "waiting", "running")
    for number, status in enumerate(statuses):
        make_run(f"sweep/points/{number:02}")
        place = f"points/{number:02}"
        rows.append({"name": place, "directory": place, "status": status})
    make_run("sweep/points/05")
    why = "others were better"
    dropped = {"name": "x", "directory": "points/05", "status": "dropped", "why": why}
    rows.append(dropped)
    sweep = tmp_path / "runs" / "sweep"
    sweep.joinpath("sweep.json").write_text(json.dumps({"points": rows}))

    def states():
        return [board.entry(f"sweep/points/{n:02}").state for n in range(5)]

    ended = [life.FINISHED, life.STOPPED_EARLY, life.FAILED, life.WAITING]
    with RunLock(sweep):
        assert states() == [*ended, life.RUNNING]
        entry = board.entry("sweep")
        assert entry.state == life.RUNNING and entry.points == (4, 6)
    assert states() == [*ended, life.FAILED]
    entry = board.entry("sweep/points/05")
    assert (entry.state, entry.why) == (life.STOPPED_EARLY, why)
    with pytest.raises(Preempted), RunLock(sweep):
        raise Preempted("saved")
    assert states() == [*ended, life.PREEMPTED]
    assert board.entry("sweep").state == life.PREEMPTED


HOLD = """
import sys, time
from pathlib import Path
from jaxpeft.rundir.lock import RunLock
with RunLock(Path(sys.argv[1])):
    sys.stdout.write("held")
    sys.stdout.flush()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_is_seen_at_once(make_run, board):
    run = make_run("one")
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.read(4) == b"held"
        entry = board.entry("one")
        assert entry.state == life.RUNNING and entry.held.pid == child.pid
        child.send_signal(signal.SIGKILL)
        child.wait()
    entry = board.entry("one")
    assert entry.state == life.FAILED and "killed" in entry.why
