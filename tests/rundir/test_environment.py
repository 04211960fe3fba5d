"""What a run notes of the machine, the program and the command that made it."""

import importlib.metadata
import json
import shlex
import subprocess
from pathlib import Path

import jax

from jaxpeft.rundir import environment

GIVEN = {"seed": 3, "deterministic": False}
GIVEN["fingerprint"] = {"data": "d" * 8, "base": "b" * 8, "config": "{}"}


def test_it_says_what_there_is():
    found = environment.collect(**GIVEN)
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["jax"] == importlib.metadata.version("jax")
    assert sum(found["devices"].values()) == jax.device_count()
    assert (found["seed"], found["data"], found["base"]) == (3, "d" * 8, "b" * 8)
    assert found["settings"]["jax_threefry_partitionable"] in (True, False)


def test_secrets_are_left_out_of_the_command():
    argv = ["/somewhere/train.py", "--config", "a.yaml", "training.max_steps=3"]
    argv += ["hub.token=abc", "--api-key", "xyz", "data=https://me:pw@host/x"]
    assert environment.command(argv) == (
        "train.py --config a.yaml training.max_steps=3 hub.token=*** --api-key *** "
        "data=https://***@host/x"
    )


def test_a_command_of_the_package_can_be_repeated():
    package = Path(environment.__file__).parents[1]
    argv = [str(package / "sweep" / "__main__.py"), "--grid", "seed=1,2"]
    assert environment.command(argv) == "python -m jaxpeft.sweep --grid seed=1,2"
    assert environment.command([str(package / "__main__.py")]) == "python -m jaxpeft"
    argv = [argv[0], "--out", "runs/sweep #2", "--grid", "data.train={path: a b}"]
    assert shlex.split(environment.command(argv))[3:] == argv[1:]


def test_a_continued_run_says_where_and_with_what(tmp_path):
    path = tmp_path / environment.ENVIRONMENT
    first = environment.collect(**GIVEN)
    environment.record(path, first, 0)
    other = {**first, "host": "another", "started": "later"}
    environment.record(path, other, 40)
    environment.record(path, first, 60)
    found = json.loads(path.read_text())
    assert {k: found[k] for k in first} == first and found["first_step"] == 1
    assert found["resumed"] == [
        {"first_step": 41, "started": "later", "host": "another"},
        {"first_step": 61},
    ]
    environment.record(path, other, 0)  # begun anew
    found = json.loads(path.read_text())
    assert found["host"] == "another" and found["resumed"] == []


def test_a_damaged_file_does_not_stop_a_run(tmp_path):
    path = tmp_path / environment.ENVIRONMENT
    path.write_text('{"half')
    environment.record(path, environment.collect(**GIVEN), 7)
    assert json.loads(path.read_text())["first_step"] == 8


def test_the_revision_is_gits(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e@x"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    package = tmp_path / "jaxpeft"
    package.mkdir()
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    monkeypatch.chdir(package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.revision() is None  # no repository
    git("init", "-q")
    (tmp_path / "own.txt").write_text("1")
    (package / "environment.py").write_text("")
    git("add", "own.txt")
    git("commit", "-qm", "first")
    # The package lies in somebody's repository, and is no part of it.
    commit = git("rev-parse", "HEAD")
    there = {"of": "current directory", "commit": commit, "dirty": False}
    assert environment.revision() == there
    git("add", "jaxpeft")
    git("commit", "-qm", "second")
    commit = git("rev-parse", "HEAD")
    assert environment.revision() == {"of": "jaxpeft", "commit": commit, "dirty": False}
    (package / "environment.py").write_text("changed")
    assert environment.revision() == {"of": "jaxpeft", "commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")  # no git at all
    assert environment.revision() is None
