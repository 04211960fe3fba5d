"""Commands that the board starts: their queue and processes, and who may be stopped."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxpeft.board import actions, jobs, processes, server
from jaxpeft.board.jobs import Queue
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.rundir.lock import LOCK, RunLock

from .conftest import HOST, TOKEN, here

OWN = {"x-board-token": TOKEN, "origin": f"http://{HOST}"}


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    """A queue of two places that starts nothing, and keeps what it would."""
    made = Queue(tmp_path, places=2)
    made.begun = []  # type: ignore[attr-defined]
    monkeypatch.setattr(made, "_start", lambda *job: made.begun.append(job[0]))
    return made


def states(queue: Queue) -> dict[int, str]:
    return {job.number: job.state for job in queue.jobs()}


def test_jobs_begin_in_their_order_as_far_as_there_are_places(queue):
    numbers = [queue.add(["plan", "--config", str(n)]) for n in range(4)]
    assert numbers == [1, 2, 3, 4]
    queue.tend()
    assert queue.begun == [1, 2]
    assert states(queue) == {1: "running", 2: "running", 3: "waiting", 4: "waiting"}
    queue._end(1, 0)
    queue._end(2, 3)
    queue.tend()
    assert queue.begun == [1, 2, 3, 4]
    assert states(queue) == {1: "done", 2: "failed", 3: "running", 4: "running"}


def test_another_board_finds_the_same_jobs_and_starts_none_twice(queue):
    queue.add(["plan"])
    queue.add(["train", "x"], "somewhere")
    queue.places = 1
    queue.tend()
    other = Queue(queue.top, places=2)
    other._start = lambda *job: queue.begun.append(job[0])
    assert states(other) == {1: "running", 2: "waiting"}
    other.tend()
    queue.places = 2
    queue.tend()
    assert queue.begun == [1, 2]
    assert other.jobs()[0].argv == ("train", "x") and other.jobs()[0].run == "somewhere"


def test_while_one_board_starts_jobs_another_does_not(queue, monkeypatch):
    """Both would find the same place free."""
    for _ in range(3):
        queue.add(["plan"])
    other, begun = Queue(queue.top, places=2), []
    other._start = lambda *job: begun.append(job[0])

    def start(number, work):
        queue.begun.append(number)
        other.tend()

    monkeypatch.setattr(queue, "_start", start)
    queue.tend()
    other.tend()
    assert queue.begun == [1, 2] and begun == []
    queue._end(1, 0)
    other.tend()
    assert begun == [3]


def test_a_job_runs_where_it_was_asked_for(queue, tmp_path, monkeypatch):
    queue.work = tmp_path / "mine"
    queue.add(["plan"])
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(jobs.socket, "gethostname", lambda: "another-host")
        queue.add(["plan"])
    other, begun = Queue(queue.top, places=2, work=tmp_path / "others"), []
    other._start = lambda *job: begun.append(job)
    other.tend()
    assert begun == [(1, tmp_path / "mine")]
    assert states(other) == {1: "running", 2: "waiting"}


def test_a_job_waits_for_its_host_and_goes_again_in_its_folder(board, tmp_path):
    number = board.queue.add(["plan"], work=str(tmp_path))
    path = board.queue.folder / f"{number:06}.json"
    path.write_text(path.read_text().replace(socket.gethostname(), "<other>"))
    assert "for a board on host &lt;other&gt;" in board.get(f"/jobs/{number}").text
    board.queue._take(number)
    board.queue._end(number, 0)
    board.ask("POST", f"/jobs/{number}/again", OWN)
    again = board.queue.job(number + 1)
    assert (again.work, again.host) == (str(tmp_path), socket.gethostname())
    assert "for a board" not in board.get(f"/jobs/{number + 1}").text


def test_a_job_whose_folder_is_gone_has_failed_and_says_why(tmp_path):
    queue = Queue(tmp_path, work=tmp_path / "gone")
    number = queue.add(["plan"])
    queue.tend()
    assert states(queue) == {number: "failed"}
    assert "cannot be started" in queue.log(number, 1000)


def test_a_number_that_is_free_again_is_another_job(queue):
    queue.add(["plan", "a"])
    queue.tend()
    queue._end(1, 0)
    assert states(queue) == {1: "done"}
    shutil.rmtree(queue.folder)
    assert queue.add(["plan", "b"]) == 1
    assert queue.job(1).argv == ("plan", "b") and states(queue) == {1: "waiting"}


def test_a_job_that_begins_cannot_be_stopped_yet(queue):
    queue.add(["plan"])
    queue.tend()
    with pytest.raises(InputError, match="begins just now"):
        queue.stop(1)


def test_a_waiting_job_can_be_taken_out(queue):
    queue.places = 0
    number = queue.add(["plan"])
    queue.stop(number)
    queue.places = 1
    queue.tend()
    assert queue.begun == [] and states(queue) == {number: "stopped"}
    with pytest.raises(InputError, match="ended already"):
        queue.stop(number)


@pytest.mark.parametrize(
    "argv", [[], ["chat"], ["../x"], ["os"], ["train; rm"], ["train", "a\0b"]]
)
def test_only_commands_of_the_table_are_queued(queue, argv):
    with pytest.raises(InputError):
        queue.add(argv)
    assert queue.jobs() == []


@pytest.mark.parametrize("how", ["others may write", "a link", "a file"])
def test_nothing_is_started_from_a_folder_that_others_can_write(tmp_path, how):
    away, found = tmp_path / "away", Queue(tmp_path)
    away.mkdir()
    found.folder.parent.mkdir(parents=True)
    planted = away if how == "a link" else found.folder
    if how == "a file":
        planted.write_text("x")
    else:
        planted.mkdir(exist_ok=True)
        planted.chmod(0o777 if how == "others may write" else 0o700)
        plant(planted)
    if how == "a link":
        found.folder.symlink_to(away)
    found._start = pytest.fail  # type: ignore[assignment]
    found.tend()
    assert found.jobs() == [] and found.job(1) is None
    with pytest.raises(InputError):
        found.add(["plan"])


def plant(folder):
    """A job that nobody has asked for."""
    content = json.dumps({"argv": ["train", "--config", "evil.yaml"], "made": 1.0})
    (folder / "000001.json").write_text(content)


@pytest.mark.parametrize("place", ["", ".board", ".jaxpeft", "one", "one/.board"])
def test_what_comes_with_the_runs_is_never_a_job(board, tmp_path, make_run, place):
    """An archive of runs holds whatever its maker wants."""
    make_run("one")
    folder = tmp_path / "runs" / place
    folder.mkdir(exist_ok=True)
    plant(folder)
    board.queue._start = pytest.fail
    board.queue.tend()
    assert board.queue.jobs() == [] and "evil" not in board.get("/jobs").text
    assert board.get("/jobs/1").code == 404


def test_no_job_is_known_where_the_user_s_folder_is_among_the_runs(
    tmp_path, monkeypatch
):
    """As with --runs and the home directory, into which archives are unpacked, too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    found = Queue(tmp_path)
    found.folder.mkdir(mode=0o700, parents=True)
    plant(found.folder)
    found._start = pytest.fail  # type: ignore[assignment]
    found.tend()
    assert found.jobs() == []
    with pytest.raises(InputError, match="set XDG_STATE_HOME"):
        found.add(["plan"])
    assert Queue(tmp_path / "home" / "runs").add(["plan"]) == 1


def test_jobs_lie_in_a_folder_of_the_user_alone(queue, state_home, tmp_path):
    queue.add(["plan"])
    assert queue.folder.parent == state_home / "jaxpeft" / "board"
    assert stat.S_IMODE(queue.folder.stat().st_mode) == 0o700
    assert Queue(tmp_path / "other").folder != queue.folder
    (tmp_path / "by-another-name").symlink_to(tmp_path)
    assert states(Queue(tmp_path / "by-another-name")) == {1: "waiting"}


def test_the_queue_is_bounded(queue, monkeypatch):
    monkeypatch.setattr(jobs, "MOST", 3)
    for _ in range(3):
        queue.add(["plan"])
    with pytest.raises(InputError, match="3 jobs wait"):
        queue.add(["plan"])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"argv": ["rm"]}', '{"argv": 3}'])
def test_a_damaged_job_is_passed_over(queue, content):
    queue.add(["plan"])
    (queue.folder / "000007.json").write_text(content)
    (queue.folder / "000001.ended").write_text(content or "x")
    (queue.folder / "x.json").write_text("{}")
    queue.tend()
    assert {job.number for job in queue.jobs()} == {1}


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "NaN"])
def test_a_number_without_sense_stops_no_queue(queue, number):
    for _ in range(3):
        queue.add(["plan"])
    path = queue.folder / "000001.json"
    path.write_text(f'{{"argv": ["plan"], "made": {number}}}')
    (queue.folder / "000002.started").write_text(f'{{"pid": {number}, "host": "x"}}')
    queue.tend()
    assert queue.begun == [1] and {job.pid for job in queue.jobs()} == {None}


def test_a_fault_of_the_queue_is_said_and_does_not_end_it(board, monkeypatch):
    def tend():
        raise ValueError("<it> is broken")

    def slept(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(board.queue, "tend", tend)
    monkeypatch.setattr(server.time, "sleep", slept)
    with pytest.raises(KeyboardInterrupt):
        server._tend(board.queue)
    assert "nothing is started (&lt;it&gt; is broken)" in board.get("/jobs").text
    monkeypatch.setattr(board.queue, "tend", list)
    with pytest.raises(KeyboardInterrupt):
        server._tend(board.queue)
    assert "is broken" not in board.get("/jobs").text


def test_the_oldest_jobs_that_have_ended_are_forgotten(queue, monkeypatch):
    monkeypatch.setattr(jobs, "KEPT", 2)
    for _ in range(5):
        queue.add(["plan"])
        queue._take(len(queue._numbers()))
    for number in (1, 3, 4, 5):
        queue._end(number, 0)
    assert queue.add(["plan"]) == 6
    names = {path.name for path in queue.folder.iterdir()}
    assert not any(name.startswith(("000001", "000003")) for name in names)
    assert queue.job(2).state == "running"  # and is not taken from under its process
    assert {"000004.json", "000005.json", "000006.json"} <= names


def test_a_job_whose_process_is_gone_has_failed(queue):
    number = queue.add(["plan"])
    queue.tend()
    path = queue.folder / f"{number:06}.started"
    path.write_text(json.dumps(here(2**22 + 1)))
    assert states(queue) == {number: "failed"}


@pytest.mark.slow
def test_a_job_runs_in_a_session_of_its_own_and_its_end_is_written_down(tmp_path):
    queue = Queue(tmp_path)
    number = queue.add(["plan", "--config", "missing.yaml"])
    queue.tend()
    while (job := queue.job(number)).state == "running":
        if job.pid is not None:
            assert os.getsid(job.pid) == job.pid != os.getsid(0)
        time.sleep(0.05)
    queue._children[0].wait()
    assert (job.state, job.code) == ("failed", 2)
    assert "missing.yaml" in queue.log(number, 1000)


@pytest.mark.slow
def test_a_job_that_is_stopped_asks_its_command_to_end(tmp_path, monkeypatch):
    """Also where the command has begun to read what never comes."""
    os.mkfifo(tmp_path / "never.yaml")
    queue = Queue(tmp_path)
    number = queue.add(["plan", "--config", str(tmp_path / "never.yaml")])
    queue.tend()
    deadline = time.monotonic() + 60
    while queue.job(number).pid is None or "planning" not in _children(queue, number):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    queue.stop(number)
    while queue.job(number).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    queue._children[0].wait()
    assert queue.job(number).state == "stopped"


def _children(queue: Queue, number: int) -> str:
    """The word planning, once the command of a job runs for a second."""
    pid = queue.job(number).pid
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path) as file:
        found = file.read().split()
    if found:
        time.sleep(1)
    return "planning" if found else ""


def test_a_module_in_the_folder_of_the_start_is_never_run(tmp_path):
    """Which lies there like any file: of a download, or of somebody else."""
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    command = processes.python("json.tool")
    done = subprocess.run(command, input=b"[]", cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"[]\n")


@pytest.mark.parametrize(
    ("places", "flags"),
    [([""], []), (["elsewhere", ""], ["-P"]), (["", ""], ["-P"])],
    ids=["in this folder alone", "elsewhere", "by another way as well"],
)
def test_a_package_that_lies_in_the_folder_of_the_start_is_found(
    monkeypatch, places, flags
):
    monkeypatch.setattr(sys, "path", places)
    monkeypatch.chdir(Path(processes.__file__).parents[2])
    assert processes.python("x") == [sys.executable, *flags, "-m", "x"]


def test_no_token_reaches_a_job(queue, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("JAXPEFT_BOARD_TOKEN", "secret")
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, **more: seen.append(more) or _Ended()
    )
    plain = Queue(tmp_path / "other")
    plain.top.mkdir()
    plain.add(["plan"])
    plain.tend()
    assert "secret" not in seen[0]["env"].values() and seen[0]["start_new_session"]


class _Ended:
    def poll(self):
        return 0


def test_stop_asks_the_process_that_holds_the_lock(make_run, board, monkeypatch):
    run, asked = make_run("one"), []
    monkeypatch.setattr(
        signal, "pidfd_send_signal", lambda handle, number: asked.append(number)
    )
    with RunLock(run):
        answer = board.ask("POST", f"/run/{board.key('one')}/do/stop", OWN)
        assert answer.code == 303 and asked == [signal.SIGTERM]


@pytest.mark.parametrize(
    "lock",
    [
        {"pid": os.getppid()},  # lives, and does not have this file open
        {"pid": 2**22 + 1},  # is gone
        {"host": "another-host"},
        {"pid": 0},
        {"pid": -1},
    ],
    ids=["another's", "gone", "elsewhere", "its group", "everybody"],
)
def test_stop_asks_nobody_else(make_run, board, monkeypatch, lock):
    make_run("one", lock={**here(), **lock})
    for module, name in ((signal, "pidfd_send_signal"), (os, "kill")):
        real = getattr(module, name)
        monkeypatch.setattr(
            *(module, name),
            lambda pid, number, real=real: (
                real(pid, number) if number == 0 else pytest.fail(f"{pid} was asked")
            ),
        )
    answer = board.ask("POST", f"/run/{board.key('one')}/do/stop", OWN)
    assert answer.code == 409


def test_a_process_is_asked_only_if_it_has_the_lock_file_open(tmp_path):
    """A lock file that names a process which it does not belong to stops nothing."""
    lock = tmp_path / LOCK
    lock.write_text("{}")
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        with pytest.raises(InputError, match="another one by now"):
            processes.terminate(other.pid, lock)
        assert other.poll() is None
        other.kill()


def test_continue_queues_the_run_s_own_configuration_once(make_run, board):
    run = make_run("it's #1", ended={"status": "preempted", "why": "x"})
    key = board.key(run.name)
    assert 'do/continue"' in board.get(f"/run/{key}").text
    for _ in range(2):
        answer = board.ask("POST", f"/run/{key}/do/continue", OWN)
        assert answer.headers["location"] == "/jobs/1"
    (job,) = board.queue.jobs()
    assert job.argv[:3] == ("train", "--config", str(run / "config.yaml"))
    name, _, value = job.argv[3].partition("=")
    assert name == "output_dir" and strict_yaml.parse_scalar(value) == str(run)
    assert board.get("/jobs").text.count("<tr ") == 2
    assert board.get("/jobs/1").code == 200
    for number in ("9", "9" * 5000, "x", "-1", "1e3"):
        assert board.get(f"/jobs/{number}").code == 404
    assert board.get(f"/events?since={board.catalog.epoch}-{'9' * 5000}").code == 200


def test_report_and_export_are_queued(make_run, board):
    run = make_run("one", summary={"steps": 20})
    (run / "adapter").mkdir()
    key = board.key("one")
    board.ask("POST", f"/run/{key}/do/report", OWN)
    board.ask("POST", f"/run/{key}/do/export", OWN, b"to=vllm")
    assert board.ask("POST", f"/run/{key}/do/export", OWN, b"to=--help").code == 409
    assert [job.argv[0] for job in board.queue.jobs()] == ["export", "report"]
    assert board.queue.jobs()[0].argv[-1] == f"{run}-vllm"


@pytest.mark.parametrize("action", ["stop", "continue", "report", "export"])
def test_no_button_works_without_the_token_or_from_elsewhere(make_run, board, action):
    make_run("one")
    path = f"/run/{board.key('one')}/do/{action}"
    assert board.ask("POST", path, {"origin": f"http://{HOST}"}).code == 403
    assert board.ask("POST", path, {**OWN, "origin": "http://evil.example"}).code == 403
    assert board.ask("GET", path, OWN).code == 405
    assert board.queue.jobs() == []


def test_a_body_in_pieces_is_bounded_as_well(make_run, board):
    """A chunked request says no length."""
    make_run("one")
    path = f"/run/{board.key('one')}/do/export"
    body = b"to=" + b"x" * (2**20 + 1)
    assert board.ask("POST", path, OWN, body, pieces=50).code == 413


def test_a_job_of_another_folder_is_refused(tmp_path):
    path = tmp_path / "000001.json"
    path.write_text(json.dumps({"argv": ["rm", "-r", "x"]}))
    with pytest.raises(InputError, match="is no job"):
        processes.work(path)


def test_the_command_is_shown_as_one_would_type_it():
    argv = ["train", "--config", "a b.yaml", "x=$HOME"]
    typed = "python -m jaxpeft.train --config 'a b.yaml' 'x=$HOME'"
    assert actions.shell(argv) == typed


def test_the_list_of_jobs_says_which_run_each_is_for(board, make_run):
    run = make_run("deep/one")
    board.queue.add(["train", "--config", "config-1.yaml"], str(run))
    board.queue.add(["plan"], str(run.with_name("later")))
    text = board.get("/jobs").text
    assert f'<a href="/run/{board.key("deep/one")}">deep/one</a>' in text
    assert 'data-label="of">later</td>' in text


def test_a_code_is_shown_of_a_failure_alone(board):
    number = board.queue.add(["plan"])
    board.ask("POST", f"/jobs/{number}/stop", OWN)
    text = board.get(f"/jobs/{number}").text
    assert ">stopped</span>" in text and "code 75" not in text
    number = board.queue.add(["plan"])
    board.queue._take(number)
    board.queue._end(number, 3)
    assert ">failed</span> code 3" in board.get(f"/jobs/{number}").text
