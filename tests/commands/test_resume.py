"""Runs that are killed, stopped or damaged end as if nothing had happened."""

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys

import pytest

from jaxpeft import cli, train
from jaxpeft.rundir.lock import RunLock
from jaxpeft.train import evaluating

from .conftest import Done, write_config

# A run with everything on that could make a difference.
CHANGES = {
    "adapter": {
        "r": 4,
        "lora_dropout": 0.2,
        "target_modules": ["q_proj", "up_proj"],
    },
    "data.packing": True,
    "training.max_steps": 20,
    "training.gradient_accumulation_steps": 2,
    "training.eval_steps": 5,
    "training.save_steps": 5,
}

# Sends itself a signal right after step 13, when step 10 is sealed.
CHILD = """
import os, signal, sys
from jaxpeft import cli, train
from jaxpeft.train import hooks

save = hooks.Save.__call__

def saved(self, moment):
    save(self, moment)
    if moment.step == 13:
        self._checkpoints.wait()
        os.kill(os.getpid(), int(sys.argv[1]))

hooks.Save.__call__ = saved
sys.exit(cli.run(train.main, sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def changes(files):
    return {**CHANGES, "data.eval": {"path": files["eval"]}}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, settings, changes):
    """(a folder, what was said): of the run "straight", which nothing happens to."""
    folder = tmp_path_factory.mktemp("resume")
    path = write_config(folder / "straight.yaml", settings(**changes))
    arguments = ["--config", str(path), f"output_dir={folder / 'straight'}"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = cli.run(train.main, arguments)
    assert code == 0
    return folder, Done(code, said.getvalue(), "")


@pytest.fixture
def straight(ended, tmp_path):
    """The run that nothing happens to, its copy in tmp_path / "straight"."""
    folder, done = ended
    shutil.copytree(folder / "straight", tmp_path / "straight")
    shutil.copy(folder / "straight.yaml", tmp_path)
    return done


def signalled_in(folder, signal, name):
    """A run's command in a child that signals itself."""
    arguments = ["--config", str(folder / f"{name}.yaml")]
    arguments += [f"output_dir={folder / name}"]
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(int(signal)), *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def signalled(tmp_path):
    """signalled(signal, run): a run's command in a child that signals itself."""
    return functools.partial(signalled_in, tmp_path)


@pytest.fixture
def same_end(metrics, tmp_path):
    """Asserts that two runs have the same final state and wrote the same losses."""

    def check(done, name, straight):
        assert done.code == 0, done.err
        assert done.digest == straight.digest
        whole, parts = (metrics(tmp_path / run) for run in ("straight", name))
        clock = {"tokens_per_second", "data_wait"}
        for before, after in zip(whole, parts, strict=True):
            assert [{k: s[k] for k in s.keys() - clock} for s in before] == [
                {k: s[k] for k in s.keys() - clock} for s in after
            ]
        assert not list((tmp_path / name).glob("*.partial"))
        weights = "adapter/adapter_model.safetensors"
        assert (tmp_path / name / weights).read_bytes() == (
            tmp_path / "straight" / weights
        ).read_bytes()

    return check


@pytest.fixture(scope="module")
def killed(ended):
    """The folder of a run that was killed after step 13."""
    folder, _ = ended
    shutil.copy(folder / "straight.yaml", folder / "killed.yaml")
    child = signalled_in(folder, signal.SIGKILL, "killed")
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert "step 13/20" in child.stdout
    steps = (folder / "killed" / "checkpoints").iterdir()
    assert sorted(int(step.name) for step in steps) == [5, 10]
    return folder / "killed"


@pytest.fixture
def stopped(killed, tmp_path):
    """A run that was killed after step 13, ready to be repeated; its name."""
    shutil.copytree(killed, tmp_path / "killed")
    return "killed"


def cut_off(run, step):
    """Takes from a finished run what a kill after its checkpoint of a step had left.

    All but lines of metrics, which a kill would leave as well, up to another step.
    """
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(run / "adapter")
    assert (run / "checkpoints" / str(step)).is_dir()


def test_a_killed_run_continues_bitwise(stopped, trained, changes, straight, same_end):
    done = trained(stopped, **changes)
    assert "continuing after step 10" in done.out
    same_end(done, stopped, straight)


@pytest.mark.slow
def test_a_killed_run_over_a_stream_continues_bitwise(
    trained, changes, signalled, same_end, tmp_path
):
    """In the second epoch, with records waiting in the buffer that were read before."""
    streamed = changes | {"data.packing": False, "data.streaming": True}
    streamed |= {"data.shuffle_buffer": 7, "data.on_error": "skip"}
    straight = trained("straight", **streamed)
    assert straight.code == 0, straight.err
    assert "training data: streamed; the first records are 48 exa" in straight.out
    shutil.copy(tmp_path / "straight.yaml", tmp_path / "killed.yaml")
    assert signalled(signal.SIGKILL, "killed").returncode == -signal.SIGKILL
    done = trained("killed", **streamed)
    assert "continuing after step 10" in done.out
    same_end(done, "killed", straight)


DPO = {"name": "dpo", "sft_weight": 0.1}
COMPARE = {
    "dpo": DPO,
    "dpo, computed before": {**DPO, "precompute_reference": True},
    "kto": {"name": "kto"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARE)
def test_a_killed_run_that_compares_answers_continues_bitwise(
    name, trained, changes, pairs, signalled, same_end, tmp_path
):
    objective = COMPARE[name]
    before, folder = "precompute_reference" in objective, tmp_path / "kept"
    compared = {**changes, "data.packing": False, "objective": objective}
    compared |= {**pairs[objective["name"]], "data.cache_dir": str(folder)}
    straight = trained("straight", **compared)
    assert straight.code == 0, straight.err
    if before:  # a child also reads what this process has computed
        shutil.copy(tmp_path / "straight.yaml", tmp_path / "killed.yaml")
        assert signalled(signal.SIGKILL, "killed").returncode == -signal.SIGKILL
    else:
        shutil.copytree(tmp_path / "straight", tmp_path / "killed")
        cut_off(tmp_path / "killed", 10)
    done = trained("killed", **compared)
    assert "continuing after step 10" in done.out
    assert ("log-probabilities of the reference" in done.out) == before
    assert done.out.count("read back") == 2 * before
    same_end(done, "killed", straight)


def test_a_damaged_newest_checkpoint_costs_only_its_steps(
    stopped, trained, changes, straight, same_end, tmp_path
):
    step = tmp_path / stopped / "checkpoints" / "10"
    largest = max(
        (f for f in step.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = trained(stopped, **changes)
    assert f"warning: checkpoint {step} is damaged" in done.err
    assert "continuing after step 5" in done.out
    same_end(done, stopped, straight)


def test_a_request_to_stop_saves_and_the_command_continues(
    trained, changes, signalled, straight, same_end, tmp_path
):
    shutil.copy(tmp_path / "straight.yaml", tmp_path / "run.yaml")
    child = signalled(signal.SIGTERM, "run")
    assert child.returncode == 75, child.stderr
    assert "SIGTERM received: saved after step 14" in child.stderr
    assert not (tmp_path / "run" / "adapter").exists()
    done = trained("run", **changes)
    assert "continuing after step 14" in done.out
    same_end(done, "run", straight)


def test_an_evaluation_that_was_stopped_is_repeated(
    trained, changes, signalled, straight, same_end, monkeypatch, tmp_path
):
    told = evaluating.Evaluate._told

    def asked(self, done):
        if self._program.done == 10 and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        told(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating.Evaluate, "_told", asked)
        stopped = trained("run", **changes)
    assert stopped.code == 75, stopped.err
    assert "SIGTERM received: saved after step 10" in stopped.err
    assert "evaluation after step 10" not in stopped.out
    # Repeated, it is written; a run that has saved nothing since reads it from there.
    child = signalled(signal.SIGKILL, "run")
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert "evaluation after step 10" in child.stdout
    done = trained("run", **changes)
    assert "evaluation after step 10" not in done.out
    assert "evaluation after step 20" in done.out
    same_end(done, "run", straight)


def test_a_finished_run_is_repeated_without_a_step(
    trained, straight, same_end, changes
):
    same_end(trained("straight", **changes), "straight", straight)


def test_never_starts_over_only_in_an_empty_directory(trained, metrics, tmp_path):
    (tmp_path / "run").mkdir()
    assert trained("run", "--resume", "never").code == 0
    before = metrics(tmp_path / "run")
    done = trained("run", "--resume", "never")
    assert done.code == 2
    assert f"output_dir: '{tmp_path / 'run'}' is not empty" in done.err
    assert metrics(tmp_path / "run") == before


def test_another_configuration_data_or_base_is_refused(
    trained, files, tiny, metrics, tmp_path
):
    assert trained("run").code == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    base = shutil.copytree(tiny, tmp_path / "base")
    config = base / "config.json"
    config.write_text(config.read_text() + "\n")
    for words, changes in {
        "config (optimizer.learning_rate: 0.01 then, 0.02 now) changed since": {
            "optimizer.learning_rate": 2e-2
        },
        "data changed since": {"data.train": {"path": files["eval"]}},
        "base changed since": {"model": {"path": str(base), "dtype": "float32"}},
        "config (seed: 42 then, 1 now) and data changed": {"seed": 1},
    }.items():
        done = trained("run", **changes)
        assert done.code == 2 and words in done.err
        assert "new output_dir" in done.err and "--resume anyway" in done.err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    # Neither its place nor how often it reports makes it another run.
    same = {"training.logging_steps": 4, "training.save_total_limit": 7}
    assert trained("run", **same).code == 0
    done = trained("run", "--resume", "anyway", **{"training.max_steps": 10})
    assert done.code == 0 and "continuing after step 8" in done.out
    assert [s["step"] for s in metrics(tmp_path / "run")[0]] == list(range(1, 11))


def test_a_trained_adapter_is_not_overwritten_from_step_0(trained, tmp_path):
    assert trained("run").code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = trained("run")
    assert done.code == 2
    assert "holds a trained adapter and no checkpoint" in done.err
    # Nor the report of a sweep.
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    done = trained("sweep")
    assert done.code == 2 and "holds a sweep" in done.err
    assert not (tmp_path / "sweep" / "config.yaml").exists()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_directory_is_written_by_one_process(trained, tmp_path):
    with RunLock(tmp_path / "run"):
        done = trained("run")
    assert done.code == 2
    assert f"output_dir '{tmp_path / 'run'}' is in use by process {os.getpid()}" in (
        done.err
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
