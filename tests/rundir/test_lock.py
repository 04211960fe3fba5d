"""Two processes never write one run directory."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxpeft.errors import InputError
from jaxpeft.rundir.lock import ENDED, LOCK, RunLock

HOLD = """
import sys
from pathlib import Path
from jaxpeft.rundir.lock import RunLock
with RunLock(Path(sys.argv[1])):
    sys.stdout.write("held")
    sys.stdout.flush()
    sys.stdin.read()
"""


def hold(directory):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.read(4) == b"held"
    return child


@pytest.mark.slow
def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path):
    with hold(tmp_path) as child:
        with pytest.raises(InputError) as failure, RunLock(tmp_path):
            pass
        message = str(failure.value)
        assert f"process {child.pid} on host {socket.gethostname()}" in message
        assert str(tmp_path) in message and "another output_dir" in message
        child.send_signal(signal.SIGKILL)
        child.wait()
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_the_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path), pytest.raises(InputError), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


def test_what_is_refused_leaves_the_run_as_it_was(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    for text in (None, "before"):
        if text:
            (tmp_path / ENDED).write_text(text)
        with pytest.raises(InputError), RunLock(tmp_path):
            raise InputError("another configuration")
        assert (tmp_path / ENDED).exists() == bool(text)
    with RunLock(tmp_path):  # nothing was left to do
        pass
    assert (tmp_path / ENDED).read_text() == "before"
    with pytest.raises(InputError), RunLock(tmp_path) as lock:
        lock.begin()
        assert not (tmp_path / ENDED).exists()
        raise InputError("no space is left")
    assert json.loads((tmp_path / ENDED).read_text())["why"] == "no space is left"


def test_the_directory_is_made(tmp_path):
    with RunLock(tmp_path / "runs" / "one"):
        assert (tmp_path / "runs" / "one").is_dir()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_leftover_file_does_not_block(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with RunLock(tmp_path):
        # As another process sees it before its holder has written its name.
        (tmp_path / LOCK).write_text(content)
        with pytest.raises(InputError, match="another process"), RunLock(tmp_path):
            pass


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_never_written_through(tmp_path, there):
    """Whoever made the directory may have put one there, to any file."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    run.mkdir()
    if there:
        mine.write_text("mine")
    (run / LOCK).symlink_to(mine)
    with pytest.raises(InputError, match=r"\.lock: is a link.*remove it"), RunLock(run):
        pass
    assert mine.exists() == there and (run / LOCK).is_symlink()
    assert not there or mine.read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/run.*cannot be written"):
        RunLock(tmp_path / "file" / "run").__enter__()
