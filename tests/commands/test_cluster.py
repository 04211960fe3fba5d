"""Training in several processes on this machine: losses, failures, resuming."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .conftest import Done, write_config

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "launch_local.sh")
A_MINUTE = 60.0


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of the processes: one CPU device each."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAXPEFT_HUGE_PAGES": "0",
    }


class Processes:
    """The launch script with its processes, and what they write."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path):
        self.log = log
        with log.open("w") as file:
            self._child = subprocess.Popen(
                command, env=env, stdout=file, stderr=subprocess.STDOUT
            )

    def members(self) -> dict[int, int]:
        """{process id of the run: its pid}, of those that are alive."""
        listed = subprocess.run(
            ["ps", "-ww", "--ppid", str(self._child.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        found = [line.split(maxsplit=1) for line in listed if "--process-id" in line]
        return {int(args.rsplit(maxsplit=1)[1]): int(pid) for pid, args in found}

    def until(self, text: str) -> None:
        """Waits for a line with this text."""
        self._until(lambda: text in self.log.read_text())

    def until_there(self, path: Path) -> None:
        """Waits for a file or folder."""
        self._until(path.exists)

    def _until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 240
        while not done():
            assert self._child.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the script, which passes it on."""
        self._child.send_signal(number)

    def stop(self) -> None:
        """Ends what a failed test has left running."""
        if self._child.poll() is None:
            self.signal(signal.SIGTERM)
            self._child.wait(timeout=60)

    def end(self) -> Done:
        """Waits for all of them."""
        code = self._child.wait(timeout=300)
        return Done(code, self.log.read_text(), "")


@pytest.fixture
def together(environment, settings, tmp_path) -> Iterator[Callable[..., Processes]]:
    """together(count, name, **settings): trains into tmp_path / name."""

    def start(count: int, name: str, *arguments: str, **changes) -> Processes:
        config = write_config(tmp_path / f"{name}.yaml", settings(**changes))
        command = ["bash", SCRIPT, str(count), "--config", str(config)]
        command += [f"output_dir={tmp_path / name}", *arguments]
        run = Processes(command, environment, tmp_path / f"{name}.{count}.log")
        started.append(run)
        return run

    started: list[Processes] = []
    yield start
    for run in started:
        run.stop()


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


# One of two processes, which train together as each file says that they are sent.
OF_TWO = """
import sys
from jaxpeft import console, train
from jaxpeft.devices import cluster, termination
from jaxpeft.devices.launch import Rank

rank = Rank(sys.argv[1], 2, int(sys.argv[2]))
with termination.listening():
    cluster.join(rank, initialization_timeout=200, heartbeat_timeout=100)
    for line in sys.stdin:
        assert train.main(["--config", line.rstrip("\\n")]) == 0
        console.flush()
        sys.stdout.write("ENDED\\n")
        sys.stdout.flush()
    cluster.leave(0, failed=False)
"""


@pytest.fixture(scope="module")
def of_two(environment) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that have met, for all runs here that end well."""
    command = [sys.executable, "-c", OF_TWO, f"127.0.0.1:{free_port()}"]
    children = [
        subprocess.Popen(
            [*command, str(index)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    yield children
    for child in children:
        child.stdin.close()
    try:
        assert [child.wait(timeout=60) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.stdout.close()


@pytest.fixture
def by_two(of_two, settings, tmp_path) -> Callable[..., str]:
    """by_two(name, **settings): trains into tmp_path / name; what both wrote."""

    def run(name: str, **changes) -> str:
        own = {"mesh": {"fsdp": 2, "data": 1}, "output_dir": str(tmp_path / name)}
        config = write_config(tmp_path / f"{name}.yaml", settings(**{**own, **changes}))
        for child in of_two:
            child.stdin.write(f"{config}\n")
            child.stdin.flush()
        wrote = []
        for child in of_two:
            lines = []
            for line in child.stdout:
                if line == "ENDED\n":
                    break
                lines.append(line)
            else:
                raise AssertionError("".join([*wrote, *lines]))
            wrote += lines
        return "".join(wrote)

    return run


AS_ONE = {"optimizer.name": "adamw", "optimizer.learning_rate": 1e-3}


def is_as_one(one, several, wrote):
    """Asserts that runs took the same steps, and that one process wrote."""
    ours, theirs = losses(one), losses(several)
    assert len(ours) == 8 and list(ours) == list(theirs)
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-5)
    alone, shared = (
        load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (one, several)
    )
    assert alone.keys() == shared.keys()
    for name, tensor in alone.items():
        assert np.abs(tensor - shared[name]).max() <= 1e-4, name
    assert wrote.count("step 8/8") == 1 and wrote.count("state after") == 1


def test_two_processes_train_as_one_does(by_two, trained, tmp_path):
    assert trained("one", **AS_ONE).code == 0
    wrote = by_two("several", **AS_ONE)
    is_as_one(tmp_path / "one", tmp_path / "several", wrote)
    # Each has a part of every sequence, and frozen weights on its host.
    mesh = {"data": 1, "context": 2}
    wrote = by_two("parts", mesh=mesh, **AS_ONE, **{"model.offload": "both"})
    is_as_one(tmp_path / "one", tmp_path / "parts", wrote)


def test_four_processes_train_as_one_does(together, trained, tmp_path):
    assert trained("one", **AS_ONE).code == 0
    mesh = {"data": 1, "fsdp": 2, "tensor": 2}
    done = together(4, "several", mesh=mesh, **AS_ONE).end()
    assert done.code == 0, done.out
    is_as_one(tmp_path / "one", tmp_path / "several", done.out)


def test_several_processes_share_what_was_computed_before(by_two, pairs, tmp_path):
    """Each row has its own: a fresh adapter is where its reference is."""
    objective = {"name": "dpo", "precompute_reference": True}
    changes = {"objective": objective, "data.cache_dir": str(tmp_path / "kept")}
    changes |= {**pairs["dpo"], "training.max_steps": 1}
    for name, words in (("first", " computed\n"), ("second", " read back\n")):
        wrote = by_two(name, **changes)
        assert wrote.count(words) == 2, wrote  # of both sides, by process 0
        assert losses(tmp_path / name)[1] == pytest.approx(np.log(2), abs=1e-5)


def test_what_two_saved_one_continues_bit_for_bit(by_two, trained, tmp_path):
    changes = {"training.max_steps": 5, "adapter": {"method": "full"}}
    changes |= {"optimizer.learning_rate": 1e-3}
    wrote = by_two("run", **changes)
    first = [s for s in wrote.splitlines() if s.startswith("state after")]
    again = trained("run", **changes, mesh={"data": -1})
    assert again.code == 0 and first == [again.digest]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_death_of_one_ends_all_and_the_run_continues(together, tmp_path):
    changes = {"training.max_steps": 400, "training.save_steps": 3}
    run = together(2, "run", **changes)
    run.until_there(tmp_path / "run" / "checkpoints" / "6")
    members = run.members()
    os.kill(members[1], signal.SIGKILL)
    start = time.monotonic()
    done = run.end()
    took = time.monotonic() - start
    logging.info("the others ended after %.1f s with code %d", took, done.code)
    assert took < A_MINUTE and done.code not in (0, 75), done.out
    sealed = [
        int(p.name)
        for p in (tmp_path / "run/checkpoints").iterdir()
        if p.name.isdigit()
    ]
    last = f"training.max_steps={max(sealed) + 2}"
    done = together(2, "run", last, "--resume=anyway", **changes).end()
    assert done.code == 0, done.out
    assert f"continuing after step {max(sealed)}" in done.out
    assert list(losses(tmp_path / "run")) == list(range(1, max(sealed) + 3))


def test_sigterm_saves_in_all_and_one_process_goes_on(together, trained, tmp_path):
    straight = {"training.max_steps": 400}
    run = together(2, "run", **straight)
    run.until("step   2/400")
    run.signal(signal.SIGTERM)
    done = run.end()
    assert done.code == 75 and "SIGTERM received: saved after step" in done.out
    saved = int(done.out.split("saved after step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(saved)).is_dir()
    last = saved + 2
    again = trained("run", f"training.max_steps={last}", "--resume=anyway", **straight)
    assert again.code == 0 and f"continuing after step {saved}" in again.out
    assert list(losses(tmp_path / "run")) == list(range(1, last + 1))


def test_sigterm_before_the_first_step_and_in_an_evaluation(
    together, trained, asset_model, tmp_path
):
    many = {"path": str(asset_model.parent / "weather" / "train.json")}
    many["max_samples"] = 600
    changes = {"data.eval": many, "data.eval_batch_size": 2, "training.max_steps": 4}
    changes |= {"training.eval_steps": 2}
    for line, saved in (("steps: 4 of ", []), ("step 2/4", ["2"])):
        run = together(2, "run", **changes)
        run.until(line)
        run.signal(signal.SIGTERM)
        start = time.monotonic()
        done = run.end()
        took = time.monotonic() - start
        logging.info("ended after %.1f s", took)
        assert done.code == 75 and took < A_MINUTE / 2, done.out
        assert "evaluation after step 2" not in done.out
        assert ("SIGTERM received: saved after step 2" in done.out) == bool(saved)
        folder = tmp_path / "run" / "checkpoints"
        assert [p.name for p in folder.glob("[0-9]*")] == saved
    again = trained(
        "run", **{**changes, "data.eval": None, "training.eval_steps": None}
    )
    assert again.code == 0 and "continuing after step 2" in again.out
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_other_settings_in_one_process_are_named(environment, settings, tmp_path):
    def start(index: int, seed: int) -> subprocess.Popen:
        config = write_config(tmp_path / f"{index}.yaml", settings(seed=seed))
        command = [sys.executable, "-m", "jaxpeft.train", "--config", str(config)]
        command += [f"output_dir={tmp_path / 'run'}", "--num-processes", "2"]
        command += ["--process-id", str(index), "--coordinator", address]
        return subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )

    address = f"127.0.0.1:{free_port()}"
    children = [start(index, seed) for index, seed in enumerate((1, 2))]
    ends = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [2, 2], ends
    for end in ends:
        assert "seed: process 1 has 2, process 0 has 1" in end
    assert not (tmp_path / "run").exists()


def test_a_fault_of_one_ends_the_others(environment, settings, tmp_path):
    changes = {"data.train": {"path": "here.json"}}
    config = write_config(tmp_path / "run.yaml", settings(**changes))
    records = Path(settings()["data"]["train"]["path"]).read_text()
    folders = [tmp_path / name for name in ("with", "without")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "here.json").write_text(records)
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "jaxpeft.train", "--config", str(config)]
    command += [f"output_dir={tmp_path / 'run'}", "--num-processes", "2"]
    command += ["--coordinator", address]
    start = time.monotonic()
    children = [
        subprocess.Popen(
            [*command, "--process-id", str(index)],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, folder in enumerate(folders)
    ]
    ends = [child.communicate(timeout=2 * A_MINUTE)[1] for child in children]
    assert time.monotonic() - start < A_MINUTE
    assert children[1].returncode == 2 and "process 1: error:" in ends[1]
    assert "here.json" in ends[1] and children[0].returncode != 0


def test_a_coordinator_that_never_answers(environment, settings, tmp_path):
    config = write_config(tmp_path / "run.yaml", settings())
    command = [sys.executable, "-m", "jaxpeft.train", "--config", str(config)]
    command += [f"output_dir={tmp_path / 'run'}", "cluster.initialization_timeout=4"]
    for index in (0, 1):
        place = ["--num-processes", "2", "--process-id", str(index)]
        address = f"127.0.0.1:{free_port()}"
        done = subprocess.run(
            [*command, *place, "--coordinator", address],
            env=environment,
            capture_output=True,
            text=True,
            timeout=A_MINUTE,
        )
        assert done.returncode == 2, done.stderr
        assert "cluster.initialization_timeout" in done.stderr
        assert address in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
