"""What takes work is done once for all who ask, and a few at a time."""

import asyncio
import json
import threading

import pytest
from starlette.exceptions import HTTPException

from jaxpeft.board import shared
from jaxpeft.board.kept import Kept
from jaxpeft.board.shared import Shared

from .conftest import TOKEN


class Work:
    """Answers, counted as they are made."""

    def __init__(self):
        self.made: list[str] = []
        self.now = self.most = 0

    def of(self, key):
        async def make():
            self.now += 1
            self.most = max(self.most, self.now)
            self.made.append(key)
            await asyncio.sleep(0.01)
            self.now -= 1
            if key == "bad":
                raise ValueError("it is bad")
            return key.upper()

        return make


def test_many_who_ask_the_same_cost_one():
    work, kept = Work(), Kept(places=1, waiting=2, most=2)

    async def course():
        all_of = (kept.get("a", 60, work.of("a")) for _ in range(50))
        return {*await asyncio.gather(*all_of), await kept.get("a", 60, work.of("a"))}

    assert asyncio.run(course()) == {"A"} and work.made == ["a"]


def test_so_many_are_at_work_so_many_wait_and_others_are_refused():
    work, kept = Work(), Kept(places=2, waiting=5, most=2)

    async def course():
        asked = [kept.get(str(n), 60, work.of(str(n))) for n in range(20)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        last = [await kept.get(key, 60, work.of(key)) for key in ("4", "0")]
        return found, last

    found, last = asyncio.run(course())
    refused = [one for one in found if isinstance(one, HTTPException)]
    assert len(refused) == 15 and {one.status_code for one in refused} == {503}
    assert work.most == 2 and last == ["4", "0"]
    assert work.made == ["0", "1", "2", "3", "4", "0"]  # the last two are kept


def test_what_fails_is_made_again_and_who_leaves_spoils_nothing():
    work, kept = Work(), Kept(places=1, waiting=2, most=2)

    async def course():
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                await kept.get("bad", 60, work.of("bad"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await kept.get("a", 60, work.of("a"))
        return await kept.get("a", 60, work.of("a"))

    assert asyncio.run(course()) == "A" and work.made == ["bad", "bad", "a"]


def test_old_answers_are_made_anew():
    work, kept = Work(), Kept(places=1, waiting=2, most=2)

    async def course():
        for seconds in (0, 0, 60, 60, 1e-9):
            await kept.get("a", seconds, work.of("a"))

    asyncio.run(course())
    assert len(work.made) == 4


def test_examples_begin_one_process_however_often_they_are_asked_for(
    make_run, board, monkeypatch
):
    begun = []

    async def counted(text, work):
        begun.append(text)
        await asyncio.sleep(0.01)
        return {"error": "as the test has it"}

    monkeypatch.setattr("jaxpeft.board.run_pages.examples.of", counted)
    make_run("one")
    path = f"/run/{board.key('one')}/examples/part"

    async def course():
        headers = {"x-board-token": TOKEN}
        asked = [board._ask("GET", path, headers, b"", 1) for _ in range(40)]
        return {answer.code for answer in await asyncio.gather(*asked)}

    assert asyncio.run(course()) == {200}
    board.get(path)
    assert len(begun) == 1


@pytest.mark.parametrize("part", ["examples/part", "findings", "settings"])
def test_parts_that_take_work_are_for_the_board_s_own_pages(make_run, board, part):
    """The cookie comes with what a page of another port asks for, too."""
    make_run("one")
    path = f"/run/{board.key('one')}/{part}"
    given = board.ask("GET", f"/?token={TOKEN}").headers["set-cookie"].split(";")[0]
    assert board.ask("GET", path, {"cookie": given}).code == 403
    if part != "examples/part":
        own = {"cookie": given, "x-board-page": "1"}
        assert board.ask("GET", path, own).code == 200


def test_pages_that_follow_the_same_look_once(monkeypatch):
    monkeypatch.setattr(shared, "SECONDS", 60.0)
    looks, found = [], Shared()

    def begin():
        return lambda: looks.append(1) or {"part": "text"}

    assert {found.look("a", begin)[0] for _ in range(9)} == {1} and len(looks) == 1
    monkeypatch.setattr(shared, "SECONDS", 0.0)
    assert found.look("a", begin)[0] == 1  # nothing has changed
    assert len(looks) == 2


def test_a_look_that_takes_long_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(shared, "SECONDS", 0.0)
    found, go, values = Shared(), threading.Event(), iter("ab")

    def begin():
        def look():
            value = next(values)
            if value == "b":
                go.wait(10)
            return value

        return look

    assert found.look("x", begin) == (1, "a")
    slow = threading.Thread(target=found.look, args=("x", begin))
    slow.start()
    while not next(iter(found._followed.values())).turn.locked():
        pass
    assert found.look("x", begin) == (1, "a")
    go.set()
    slow.join()
    assert next(iter(found._followed.values())).value == "b"


def test_what_nobody_follows_is_let_go(monkeypatch):
    found = Shared()
    monkeypatch.setattr(shared, "MOST", 3)
    for key in range(5):
        found.look(key, lambda: lambda: 1)
    assert list(found._followed) == [2, 3, 4]
    monkeypatch.setattr(shared, "IDLE", -1.0)
    found.look(4, lambda: lambda: 1)
    assert list(found._followed) == [4]


def test_while_one_page_walks_the_folders_others_are_answered(make_run, board):
    make_run("one")
    known = board.catalog.latest()
    board.catalog.read_at = 1.0  # long ago
    with board.catalog._turn:
        assert board.catalog.latest() == known
    make_run("two")
    assert len(board.catalog.latest()[0]) == 2


def test_a_comparison_holds_no_more_lines_than_fit(make_run, board, monkeypatch):
    from jaxpeft.board import comparison

    monkeypatch.setattr(comparison, "LINES", 24)
    monkeypatch.setattr(comparison, "LEAST", 4)
    for name in ("a", "b"):
        make_run(name, steps=50)
    entries = list(board.catalog.refresh().values())
    found = comparison.Compared(entries, entries, "step")
    found.read()
    assert {len(one.training) for one in found.records()} <= set(range(5, 13))


def test_findings_hold_no_more_lines_than_curves_show(make_run, monkeypatch):
    from jaxpeft.board import about, follower

    seen = []
    monkeypatch.setattr(follower, "MOST", 40)
    monkeypatch.setattr(
        "jaxpeft.diagnose.findings.diagnose",
        lambda lines, settings, ended: seen.append((len(lines), ended)) or [],
    )
    about.findings(make_run("one", steps=500), False)
    assert 20 <= seen[0][0] <= 40 and seen[0][1] is False


def test_a_run_under_way_is_not_told_that_its_schedule_ended_high(make_run, board):
    """Its rate may fall yet."""
    run = make_run("one", steps=0, lock={"pid": 7, "host": "another-host"})
    lines = [
        {"step": n, "loss": 3 - n / 50, "learning_rate": 1e-3, "grad_norm": 1.0}
        for n in range(1, 41)
    ]
    lines += [{"step": n, "eval_loss": max(2, 3 - n / 20)} for n in range(5, 41, 5)]
    run.joinpath("metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    path = f"/run/{board.key('one')}/findings"
    assert "rate at the end" not in board.get(path).text
    run.joinpath(".lock").unlink()
    assert "rate at the end" in board.get(path).text
