"""Processes that make examples: how they die, and how those that wait for them do."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxpeft.config.data import DataSection
from jaxpeft.data import load_train, sources, stored_source, workers
from jaxpeft.errors import InputError

ROOT = Path(__file__).parents[2]


def killed():
    """What a worker does by reading it: it dies, and holds the pool's lock."""
    return signal.raise_signal, (signal.SIGKILL,)


def killed_while_it_sends():
    """Likewise, in the middle of a result: the first bytes are sent."""
    frame = "sys._getframe(1)"
    code = f"""
import os, signal, struct, sys
frame = {frame}
while "result_queue" not in frame.f_locals:
    frame = frame.f_back
end = frame.f_locals["result_queue"]._writer.fileno()
os.write(end, struct.pack("!i", 1000) + b"begins")
os.kill(os.getpid(), signal.SIGKILL)
"""
    return exec, (code,)


class Deadly:
    """Stands for a part of a source; a worker that takes it dies of that."""

    count, done = 1, 0.5

    def __init__(self, how):
        self._how = how

    def __reduce__(self):
        return self._how()


@pytest.mark.slow
@pytest.mark.parametrize("how", [killed, killed_while_it_sends])
def test_a_worker_that_is_killed_ends_the_making(
    how, write, tokenizer, tmp_path, monkeypatch
):
    """As the system does where memory runs out."""
    monkeypatch.setattr(stored_source, "SMALL", 0)
    monkeypatch.setattr(workers, "FEW", 50)
    monkeypatch.setattr(workers, "_PATIENCE", 1.0)
    read = sources.parts

    def parts(*args):
        yield from read(*args)
        yield Deadly(how)
        yield from read(*args)

    record = json.dumps({"instruction": "Say.", "output": "yes"}) + "\n"
    train = {"path": write("d.jsonl", record * 60)}
    more = {"cache_dir": str(tmp_path / "kept"), "num_workers": 2, "max_length": 48}
    section = DataSection.model_validate({"train": train, **more})
    with monkeypatch.context() as patch:
        patch.setattr(sources, "parts", parts)
        with pytest.raises(
            InputError, match=r"d\.jsonl: a worker process was kil"
        ) as e:
            load_train(section, tokenizer, batch_size=4, seed=0)
    (problem,) = e.value.problems
    assert "memory runs out" in problem and "data.num_workers below 2" in problem
    assert multiprocessing.active_children() == []
    assert not [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]
    alone = section.model_copy(update={"num_workers": 1})
    assert len(load_train(alone, tokenizer, batch_size=4, seed=0).examples) == 60


def children(pid):
    """The processes that one has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_sigterm_ends_the_workers_too(tmp_path):
    path, kept = tmp_path / "d.jsonl", tmp_path / "kept"
    record = {"instruction": "Say.", "output": "yes, " * 30}
    path.write_text((json.dumps(record) + "\n") * 60_000)
    data = f"data.train={{path: {path}}}"
    command = [sys.executable, "-m", "jaxpeft.data", "--config"]
    command += ["jaxpeft:quickstart.yaml", data, "data.eval=null"]
    command += ["training.eval_steps=null", "training.samples=0"]
    command += ["data.num_workers=2", f"data.cache_dir={kept}", "--show", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not any(file.stat().st_size for file in kept.glob("*.making-*/tokens.bin")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    started = children(process.pid)
    assert len(started) >= 2
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 75
    assert "SIGTERM received" in told and "Traceback" not in told
    assert "leaked" not in told
    assert not list(kept.glob("*.making-*")) and not list(kept.glob("*/meta.json"))
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end, "workers are left"
        time.sleep(0.05)
