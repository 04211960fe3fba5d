"""Runs side by side: what differs, what came out, and runs in any state."""

import csv
import json

import pytest

from jaxpeft import compare
from jaxpeft.compare import page, record, table
from jaxpeft.errors import InputError

CONFIG = """
output_dir: {name}
optimizer: {{name: adamw, learning_rate: {rate}}}
data: {{train: [{{path: a.json}}], max_length: 64}}
evaluation: {{metrics: [{{name: exact_match}}]}}
"""


def make(folder, name, rate=1e-3, losses=(2.0, 1.5), score=0.25, ended=True):
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(name=name, rate=rate))
    lines = [{"step": 0, "eval_loss": 3.0, "eval_exact_match": 0.0}]
    for step, loss in enumerate(losses, 1):
        speed = {"tokens": 100 * step, "tokens_per_second": 50.0}
        lines.append({"step": step, "loss": loss + 0.1, **speed})
        lines.append({"step": step, "eval_loss": loss, "eval_exact_match": score})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    if ended:
        summary = {"steps": len(losses), "stopped_early": False, "seconds": 90.0}
        summary |= {"peak_memory_bytes": 2**30, "parameters": 1000, "trainable": 10}
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def cells(records):
    return {row.label: row for row in table.rows(records)}


def test_what_differs_and_what_came_out(tmp_path):
    one = make(tmp_path, "one")
    other = make(tmp_path, "other", rate=3e-4, losses=(1.8, 1.2, 1.4), score=0.5)
    records = record.read_all([one, other, one])  # named twice, it is shown once
    found = cells(records)
    assert found["status"].cells == ["finished"] * 2
    settings = [row.label for row in table.rows(records) if row.is_setting]
    assert settings == ["optimizer.learning_rate"]
    assert found["optimizer.learning_rate"].cells == ["0.001", "0.0003"]
    last = found["evaluation loss"]
    assert last.cells == ["1.5000 nats per token", "1.4000 nats per token"]
    assert last.best == {1} == found["exact match"].best
    assert found["exact match"].cells == ["0.2500", "0.5000"]
    assert found["best evaluation loss"].cells[1] == "1.2000 nats per token"
    assert found["step of the best evaluation"].cells == ["2", "2"]
    assert found["speed"].cells == ["50 tokens/s"] * 2 and not found["speed"].best
    assert found["time"].cells == ["1 min 30 s"] * 2
    assert found["peak memory"].cells == ["1.0 GiB"] * 2


def test_the_text_is_side_by_side_where_it_fits(tmp_path, monkeypatch):
    records = record.read_all([make(tmp_path, "one"), make(tmp_path, "other", 1e-4)])
    monkeypatch.setenv("COLUMNS", "400")
    wide = table.lines(records)
    assert wide[0].split() == [str(one.directory) for one in records]
    assert ["optimizer.learning_rate", "0.001", "0.0001"] in map(str.split, wide)
    monkeypatch.setenv("COLUMNS", "40")
    narrow = table.lines(records)
    assert narrow[0] == str(records[0].directory)
    assert narrow.count("") == 1


def test_runs_in_any_state_are_shown(tmp_path):
    good = make(tmp_path, "good")
    going = make(tmp_path, "going", ended=False)
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # being written
    begun = make(tmp_path, "begun", ended=False)
    (begun / "metrics.jsonl").unlink()
    broken = {
        "metrics.jsonl": ["{}\n", "\x00\n", '{"step": 1, "loss": "low"}\n', b"\xff\n"],
        "config.yaml": ["a: [", "- 1", "{1: {2: {}}}", b"\xff"],
        "summary.json": ["[1]", "{", b"\xff"],
    }
    bad = []
    for name, contents in broken.items():
        for number, content in enumerate(contents):
            run = make(tmp_path, f"{name}{number}")
            data = content if isinstance(content, bytes) else content.encode()
            (run / name).write_bytes(data)
            bad.append(run)
    records = record.read_all([good, going, begun, *bad])
    status = {one.directory.name: one.status for one in records}
    assert status["good"] == "finished"
    assert status["going"] == "not finished: step 2"
    assert status["begun"] == "no step logged yet"
    for name in status.keys() - {"good", "going", "begun"}:
        assert status[name].startswith("damaged: "), (name, status[name])
        assert name.removesuffix(name[-1]) in status[name], status[name]
    found = cells(records)
    assert found["evaluation loss"].cells[:3] == ["1.5000 nats per token"] * 2 + ["-"]
    table.lines(records)
    page.write(tmp_path / "page.html", records)


def test_a_sweep_stands_for_its_points(tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "points").mkdir(parents=True)
    make(sweep / "points", "00", losses=(2.0,))
    make(sweep / "points", "01", losses=(1.0,))
    rows = [
        {"name": f"rate={n}", "directory": f"points/0{n}", "values": {"rate": n}}
        for n in range(3)
    ]
    ends = ((2.0, "done"), (1.0, "diverged"), (None, "waiting"))
    for row, (loss, status) in zip(rows, ends):
        row.update(eval_loss=loss, status=status)
    (sweep / "sweep.json").write_text(json.dumps({"axes": {}, "points": rows}))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "sweep.json").write_text("{")
    first, second, third, broken = record.read_all([sweep, damaged])
    assert (first.name, first.status) == (f"{sweep}: rate=0", "finished")
    assert (second.name, second.status) == (f"{sweep}: rate=1", "diverged")
    assert third.status == "waiting"
    assert broken.status.startswith("damaged: ") and "sweep.json" in broken.status


def test_the_command_writes_csv_and_a_page(tmp_path, capsys):
    runs = [make(tmp_path, "one"), make(tmp_path, "<b>other", rate=1e-4, score=0.5)]
    files = [str(tmp_path / name) for name in ("runs.csv", "runs.html")]
    code = compare.main([*map(str, runs), "--csv", files[0], "--html", files[1]])
    assert code == 0 and f"wrote {files[1]}" in capsys.readouterr().out
    with open(files[0], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.001", "0.0001"]
    assert [float(row["eval_exact_match"]) for row in rows] == [0.25, 0.5]
    assert float(rows[0]["peak_memory_bytes"]) == 2**30
    html = (tmp_path / "runs.html").read_text()
    assert "<b>0.5000</b>" in html and "&lt;b&gt;other" in html
    assert "exact_match of all runs" in html


def test_what_is_no_run_is_told_at_once(tmp_path):
    with pytest.raises(InputError) as raised:
        compare.main([str(tmp_path), str(tmp_path / "nowhere")])
    assert len(raised.value.problems) == 2
    assert "holds neither config.yaml nor metrics.jsonl nor" in str(raised.value)
    with pytest.raises(InputError, match="--csv: .* is no file in a directory"):
        compare.main([str(make(tmp_path, "one")), "--csv", str(tmp_path)])
