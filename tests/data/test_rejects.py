"""Rows that cannot be used are counted by reason, and listed with their places."""

import json
from types import SimpleNamespace
from typing import Any

from jaxpeft.data.rejects import Rejects, Skipped
from jaxpeft.errors import InputError
from jaxpeft.train import results


def add(rejects, rows, reason):
    for row in rows:
        rejects.add(InputError(f"d.jsonl:{row} (row {row}): {reason}"))


def filled():
    rejects = Rejects("d.jsonl", skip=True)
    add(rejects, [2], "not valid JSON (Expecting value, column 2); correct that line")
    add(rejects, range(3, 9), "column 'output' is missing; the record has a, b")
    add(rejects, [9], "not valid JSON (Expecting ':', column 7); correct that line")
    rejects.add(InputError("d.jsonl:10 (row 10): one", "d.jsonl:10 (row 10): two"))
    rejects.settle(100)
    return rejects


def test_they_are_counted_by_reason_and_listed_with_their_places():
    rejects = filled()
    assert rejects.reasons == {
        "not valid JSON": 2,
        "column 'output' is missing": 6,
        "one": 1,
    }
    assert rejects.skipped()[7:] == (
        Skipped(
            "d.jsonl:9 (row 9)",
            "not valid JSON (Expecting ':', column 7); correct that line",
        ),
        Skipped("d.jsonl:10 (row 10)", "one; two"),
    )
    (remark,) = rejects.remark(91)
    assert "d.jsonl: 9 rows (9.0% of all) are left out that cannot" in remark
    assert "; the first: d.jsonl:2 (row 2): not valid JSON (Exp" in remark
    assert "6 times column 'output' is missing, 2 times not valid JSON, 1 ti" in remark
    few = Rejects("d.jsonl", skip=True)
    add(few, [1, 2], "bad")
    few.settle(200)
    assert "d.jsonl: 2 rows are left out" in few.remark(198)[0]


def test_what_one_process_knows_another_takes_in():
    """Through JSON, as a store's description has it, and in two halves."""
    whole, halves = filled(), Rejects("d.jsonl", skip=True)
    halves.take(json.loads(json.dumps(whole.told())))
    assert halves.told() == whole.told()
    more = Rejects("d.jsonl", skip=True)
    add(more, [11], "column 'output' is missing; the record has c")
    more.settle(50)
    halves.take(more.told())
    assert (halves.count, halves.rows) == (10, 150)
    assert halves.reasons["column 'output' is missing"] == 7
    assert halves.listed[-1].place == "d.jsonl:11 (row 11)"


def test_very_many_are_counted_without_being_listed(monkeypatch):
    monkeypatch.setattr("jaxpeft.data.rejects._LISTED", 3)
    rejects = filled()
    assert len(rejects.listed) == 3
    assert rejects.skipped()[3:] == (Skipped("d.jsonl", "6 more rows, not listed"),)


def test_the_run_lists_each_row_once(tmp_path):
    """Those of an evaluation that is split from the training data are the same."""
    source = SimpleNamespace(path="d.jsonl", skipped=filled().skipped())
    data = SimpleNamespace(summary=lambda: SimpleNamespace(sources=[source]))
    cfg = SimpleNamespace(data=SimpleNamespace(streaming=False))
    run: Any = SimpleNamespace(batches=data, evaluation=data, output=tmp_path, cfg=cfg)
    path = tmp_path / "skipped.jsonl"

    def written(anew):
        results.write_skipped(run, anew=anew)
        return [json.loads(line) for line in path.read_text().splitlines()]

    lines = written(anew=True)
    assert len(lines) == 9
    assert lines[8] == {
        "source": "d.jsonl",
        "place": "d.jsonl:10 (row 10)",
        "reason": "one; two",
    }
    # Of a stream a later start sees other rows.
    cfg.data.streaming = True
    source.skipped = (*source.skipped[:1], Skipped("d.jsonl:99 (row 99)", "bad"))
    assert written(anew=False) == [
        *lines,
        {"source": "d.jsonl", "place": "d.jsonl:99 (row 99)", "reason": "bad"},
    ]
    source.skipped = ()
    results.write_skipped(run, anew=True)
    assert not path.exists()
