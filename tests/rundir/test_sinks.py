"""What arrives at each sink, read back as its own programs read it."""

import json
import os
import struct

import pytest

from jaxpeft.errors import InputError
from jaxpeft.rundir import sinks
from jaxpeft.rundir.files import read_json
from jaxpeft.rundir.metrics import MetricsFile

CONFIG = {"seed": 1, "optimizer": {"learning_rate": 1e-4}}


def train(step):
    return {"step": step, "loss": 3 - step / 10, "learning_rate": 1e-4}


def evaluate(step):
    return {"step": step, "eval_loss": 2 - step / 10, "eval_accuracy": 0.5}


def take(output, name, lines, first=None):
    """One process of a run: it writes lines, and its sinks get them."""
    also = sinks.open_all([name], output, CONFIG, first)
    file = MetricsFile(output / "metrics.jsonl", first, also)
    for line in lines:
        file.write(line)
    file.close()


def twice(output, name):
    """A run that is killed after its third step and continues after the second."""
    take(output, name, [evaluate(0), train(1), train(2), evaluate(2), train(3)])
    take(output, name, [train(3), train(4), evaluate(4)], first=2)


def test_a_run_that_goes_on_leaves_the_time_of_its_last_line(output):
    """Until it adds one: who looks on sees how long ago the last one came."""
    path = output / "metrics.jsonl"
    path.write_text("".join(json.dumps(train(step)) + "\n" for step in (1, 2, 3)))
    os.utime(path, (1000, 1000))
    file = MetricsFile(path, 2)
    assert path.stat().st_mtime == 1000 and path.read_text().count("\n") == 2
    file.write(train(3))
    file.close()
    assert path.stat().st_mtime > 1000


STEPS = {"train/loss": [1, 2, 3, 4], "eval/loss": [0, 2, 4]}
VALUES = {"train/loss": [2.9, 2.8, 2.7, 2.6], "eval/loss": [2.0, 1.8, 1.6]}


@pytest.fixture
def output(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    return run


def test_tensorboard_reads_every_step_once(output):
    from tensorboard.backend.event_processing import event_accumulator

    twice(output, "tensorboard")
    events = event_accumulator.EventAccumulator(str(output / "tensorboard")).Reload()
    for name, steps in STEPS.items():
        scalars = events.Scalars(name)
        assert [one.step for one in scalars] == steps
        assert [one.value for one in scalars] == pytest.approx(VALUES[name])
    assert events.Scalars("train/learning_rate")[0].value == pytest.approx(1e-4)
    (text,) = events.Tensors("configuration/text_summary")
    assert b'"learning_rate": 0.0001' in text.tensor_proto.string_val[0]


def test_trackio_holds_every_step_once(output, tmp_path, monkeypatch):
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    twice(output, "trackio")
    (name,) = sqlite_storage.SQLiteStorage.get_runs("jaxpeft")
    assert name.startswith("run-")
    logs = sqlite_storage.SQLiteStorage.get_logs("jaxpeft", name)
    for key, steps in STEPS.items():
        found = {one["step"]: one[key] for one in logs if key in one}
        assert sorted(found) == steps
        assert sum(key in one for one in logs) == len(steps)
        assert [found[s] for s in steps] == pytest.approx(VALUES[key])


@pytest.mark.slow
def test_wandb_writes_every_step_once_offline(output, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    twice(output, "wandb")
    # Its service writes on after a run has finished, until the process that it serves
    # waits for it at its end.
    wandb.teardown()
    rows, ids = [], set()
    for path in sorted((output / "wandb").glob("offline-run-*/*.wandb")):
        ids.add(path.stem)
        rows += list(history(path))
    assert ids == {f"run-{read_json(output / 'sinks.json')['id']}"}
    for key, steps in STEPS.items():
        found = [(row["train/global_step"], row[key]) for row in rows if key in row]
        assert [step for step, _ in sorted(found)] == steps
        assert [x for _, x in sorted(found)] == pytest.approx(VALUES[key])


def history(path):
    """The rows of wandb's own file of a run."""
    from wandb.proto import wandb_internal_pb2

    for data in logged(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in items
            }


def logged(content, block=2**15):
    """The records of LevelDB's log format, after the seven bytes that are wandb's.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    at, record = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(sinks, "_installed", lambda name: name != "wandb")
    sinks.require(["tensorboard", "all"])
    with pytest.raises(InputError, match=r"pip install 'jaxpeft\[wandb\]'"):
        sinks.require(["tensorboard", "wandb"])


def test_all_stands_for_what_is_installed(output, monkeypatch):
    monkeypatch.setattr(sinks, "_installed", lambda name: name == "tensorboard")
    (sink,) = sinks.open_all(["all"], output, CONFIG, None)
    sink.close()
    assert (output / "tensorboard").is_dir()


@pytest.mark.parametrize("when", ["open", "write", "close"])
def test_a_failure_is_told_once_and_ends_nothing(when, output, monkeypatch, capsys):
    class Broken:
        def __init__(self, *_):
            self.act("open")

        def act(self, what):
            if what == when:
                raise ConnectionError("no network\nsecond line")

        def write(self, step, values):
            self.act("write")

        def close(self):
            self.act("close")

    monkeypatch.setitem(sinks.SINKS, "wandb", Broken)
    take(output, "wandb", [train(1), train(2)])
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err == (
        "warning: training.report_to: wandb failed and gets no more lines of this "
        "run: ConnectionError: no network\n"
    )


def test_a_step_sent_before_is_never_sent_again(output, monkeypatch):
    """Also where a second death came before the steps that the first had sent."""
    sent = []

    class Kept(sinks.Wandb):
        def __init__(self, output, config, state, first):
            self._sent, self._run = state["sent"], self

        def log(self, values, step):
            sent.append((step, "eval/loss" in values))

        def finish(self):
            pass

    monkeypatch.setitem(sinks.SINKS, "wandb", Kept)
    take(output, "wandb", [train(1), train(2), train(3), train(4)])
    take(output, "wandb", [evaluate(2), train(3)], first=2)
    take(output, "wandb", [evaluate(2), train(3), train(4), train(5)], first=2)
    assert sent == [
        (1, False),
        (2, False),
        (3, False),
        (4, False),
        (2, True),
        (5, False),
    ]


def test_null_is_left_out():
    line = {"step": 3, "loss": None, "grad_norm": 1.0, "eval_loss": 2.0}
    assert sinks.renamed(line) == {"train/grad_norm": 1.0, "eval/loss": 2.0}
