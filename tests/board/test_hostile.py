"""Directories that are damaged, hostile or about to vanish: shown, never a fault."""

import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from jaxpeft.board import catalog, life, pages

from .conftest import CONFIG, line

SCRIPT = "<script>alert(1)</script>"


def all_pages(board, name):
    """Every page about a run, all of which are there."""
    key = board.key(name)
    found = []
    for path in ("", "/findings", "/settings", "/events"):
        answer = board.get(f"/run/{key}{path}")
        assert answer.code == 200, (path, answer.text)
        found.append(answer.text)
    return [board.get("/").text, *found]


def test_texts_of_a_run_are_never_html(make_run, board):
    run = make_run(
        "<img src=x onerror=alert(1)>",
        ended={"status": "failed", "why": SCRIPT},
        config=CONFIG.replace("lora", f"'{SCRIPT}'"),
    )
    samples = [{"prompt": SCRIPT, "before": SCRIPT, "after": f"</pre>{SCRIPT}"}]
    run.joinpath("samples.json").write_text(json.dumps(samples))
    run.joinpath("environment.json").write_text(json.dumps({SCRIPT: SCRIPT}))
    with run.joinpath("metrics.jsonl").open("a") as file:
        file.write(line(21, **{SCRIPT: 1.0}))
        file.write(json.dumps({"step": 21, "eval_loss": 1, f"eval_{SCRIPT}": 1}) + "\n")
    (run / "adapter").mkdir()
    (run / "adapter" / f"{SCRIPT.replace('/', '')}").write_text("x")
    for text in all_pages(board, run.name):
        found = text.replace("\\u003c", "<") if "event:" not in text else text
        if "event: charts" in text:  # JSON that a script draws as text
            found = "".join(x for x in text.split("\n\n") if "event: charts" not in x)
        assert "<script>alert" not in found and "<img" not in found


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"[" * 50_000, b"{}", b"null", b"a: [1", b"!!python/x 1\n"]
    + [b'{"points": 3, "steps": "x", "tokens_per_second": "y", "stopped_early": []}'],
)
def test_a_damaged_file_is_no_fault(make_run, board, file, content):
    run = make_run("one", summary={"steps": 20})
    run.joinpath(file).write_bytes(content)
    all_pages(board, "one")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"points": 3}', b'{"points": [1, {}, {"status": []}]}']
    + [b'{"points": [{"directory": "../../x", "name": 1, "values": 2}]}'],
)
def test_a_damaged_sweep_is_no_fault(make_run, board, tmp_path, content):
    make_run("sweep/points/00")
    (tmp_path / "runs" / "sweep" / "sweep.json").write_bytes(content)
    all_pages(board, "sweep")
    all_pages(board, "sweep/points/00")


def test_odd_json_is_no_fault(make_run, board):
    run = make_run("one", ended={"status": ["x"], "why": {"a": 1}})
    for name in ("samples.json", "environment.json"):
        for content in ("3", "[1, null, {}]", '{"prompt": 3}', '[{"prompt": [1]}]'):
            run.joinpath(name).write_text(content)
            all_pages(board, "one")


HUGE = "1" + "0" * 400
FIGURES = '{"steps": %s, "tokens_per_second": %s, "peak_memory_bytes": %s}'


@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}", "1e999", "NaN", '"x"', "[]"])
def test_a_number_that_is_none_or_too_large_is_not_shown(make_run, board, number):
    run = make_run("one", steps=2)
    make_run("two")
    run.joinpath("summary.json").write_text(FIGURES % (number, number, number))
    environment = f'{{"seconds": {number}, "peak_memory_bytes": {number}}}'
    run.joinpath("environment.json").write_text(environment)
    all_pages(board, "one")
    found = f'{{"best_eval_loss": {number}, "best_step": {number}}}'
    run.joinpath("summary.json").unlink()  # as a file that is replaced is seen
    run.joinpath("summary.json").write_text(found)
    pages = all_pages(board, "one")
    assert pages[0].count("<tr id=") == 2 and "cannot be shown" not in pages[0]
    assert board.get(f"/compare?run={board.key('one')}").code == 200


def test_half_a_character_is_shown_as_a_mark(make_run, board):
    """JSON and YAML can hold one, no encoding of a page can."""
    half = "\\ud800"
    run = make_run("one", config=CONFIG.replace("jaxpeft:tiny-llama", f'"a/{half}"'))
    run.joinpath(".ended").write_text(f'{{"status": "failed", "why": "{half}!"}}')
    run.joinpath("samples.json").write_text(f'[{{"prompt": "{half}"}}]')
    run.joinpath("environment.json").write_text(f'{{"{half}": "{half}"}}')
    pages = all_pages(board, "one")
    assert 'title="?!"' in pages[0]


def test_a_file_whose_name_no_address_can_hold_is_not_offered(make_run, board):
    run = make_run("one")
    (run / "adapter").mkdir()
    (run / "adapter" / "good").write_text("x")
    with open(os.fsencode(run / "adapter") + b"/caf\xe9", "w") as file:
        file.write("x")
    text = all_pages(board, "one")[-1]
    assert "adapter/good" in text and "caf" not in text


@pytest.mark.parametrize("where", [catalog.Entry, pages])
def test_a_fault_with_one_run_stands_in_its_row_alone(
    make_run, board, monkeypatch, where
):
    make_run("one")
    make_run("two")
    name = "read" if where is catalog.Entry else "_known"
    real = getattr(where, name)

    def broken(entry, *rest):
        if entry.place.name == "one":
            raise ValueError("it is broken")
        return real(entry, *rest)

    monkeypatch.setattr(where, name, broken)
    for _ in range(2):
        text = board.get("/").text
        assert text.count("<tr id=") == 2 and text.count("it is broken") == 2
    assert "two" in board.get("/events").text
    monkeypatch.setattr(where, name, real)
    assert "it is broken" not in board.get("/").text


def test_half_a_line_is_waited_for(make_run, board):
    run = make_run("one")
    with run.joinpath("metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    assert board.entry("one").figures.step == 20
    all_pages(board, "one")


def test_a_run_that_vanishes_is_gone_from_the_table(make_run, board):
    run, key = make_run("one"), None
    make_run("two")
    key = board.key("one")
    shutil.rmtree(run)
    assert board.get("/").text.count("<tr id=") == 1
    assert board.get(f"/run/{key}").code == 404


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read_is_said(make_run, board):
    run = make_run("one")
    run.joinpath("metrics.jsonl").chmod(0)
    assert "cannot be read" in " ".join(all_pages(board, "one"))


def test_what_cannot_be_opened_is_said(make_run, board):
    """As a file without the right to read it, which root always has."""
    run = make_run("one")
    run.joinpath("metrics.jsonl").unlink()
    run.joinpath("metrics.jsonl").mkdir()
    run.joinpath("config.yaml").unlink()
    run.joinpath("config.yaml").symlink_to("/etc/hostname")
    pages = all_pages(board, "one")
    assert "cannot be read" in pages[0] and "metrics.jsonl" in pages[0]
    host = Path("/etc/hostname").read_text().strip()
    assert not any(f">{host}<" in text for text in pages)


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(make_run, board, tmp_path):
    folder = os.fsencode(tmp_path / "runs") + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/config.yaml", "w") as file:
        file.write(CONFIG)
    entry = next(iter(board.catalog.refresh().values()))
    assert "caf\ufffd" in board.get("/").text
    assert board.get(f"/run/{entry.place.key}").code == 200


def test_a_damaged_checkpoint_changes_nothing(make_run, board):
    run = make_run("one", summary={"steps": 20})
    (run / "checkpoints" / "20").mkdir(parents=True)
    (run / "checkpoints" / "20" / "manifest.json").write_text("{")
    all_pages(board, "one")
    assert board.entry("one").state == life.FINISHED


def test_a_file_that_is_had_is_never_shown(make_run, board):
    run = make_run("one")
    run.joinpath("report.html").write_text(SCRIPT)
    key = board.key("one")
    answer = board.get(f"/run/{key}/file?name=report.html")
    assert answer.body.decode() == SCRIPT
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_of_the_adapter_keeps_the_name_that_peft_looks_for(
    make_run, board, name
):
    run = make_run("one")
    (run / "adapter").mkdir()
    (run / "adapter" / name).write_bytes(b"x")
    answer = board.get(f"/run/{board.key('one')}/file?name=adapter/{name}")
    assert answer.headers["content-disposition"] == f"attachment; filename={name}"


@pytest.mark.parametrize(
    "name",
    ["../two/config.yaml", "/etc/passwd", ".lock", "checkpoints/x", "", "secret"]
    + ["adapter/link", "adapter/../config.yaml"],
)
def test_only_files_that_are_offered_can_be_had(make_run, board, tmp_path, name):
    run = make_run("one", lock={"pid": 1, "host": "x"})
    make_run("two")
    (run / "secret").write_text("secret")
    (run / "adapter").mkdir()
    (run / "adapter" / "link").symlink_to("/etc/passwd")
    assert board.get(f"/run/{board.key('one')}/file?name={name}").code == 404


@pytest.mark.slow
def test_examples_come_from_a_process_and_are_text(make_run, board, tmp_path):
    data = tmp_path / "data.jsonl"
    record = {"instruction": SCRIPT, "output": f"Say {SCRIPT}"}
    data.write_text(json.dumps(record) + "\n")
    make_run(
        "one",
        config="output_dir: x\nmodel: {path: 'jaxpeft:tiny-llama', dtype: float32}\n"
        f"data: {{train: {{path: '{data}', format: alpaca}}}}\n",
    )
    make_run("two", config="output_dir: [")
    one, two = board.key("one"), board.key("two")
    text = board.get(f"/run/{one}/examples/part").text
    assert 'class="stretch learned"' in text and "title=" in text
    words = "".join(re.findall(r">([^<]*)</span>", text))
    assert html.unescape(words).count(SCRIPT) == 2 and "<script" not in text
    assert "examples/part" in board.get(f"/run/{one}/examples").text
    assert 'class="fault"' in board.get(f"/run/{two}/examples/part").text
