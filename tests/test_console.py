"""What may take long shows how far it is: a line that changes, or one now and then."""

import io
import os
import re
import sys
import time

import pytest

from jaxpeft import console


@pytest.fixture
def now(monkeypatch):
    """now["s"]: the seconds of a clock that the test moves."""
    moment = {"s": 1000.0}
    monkeypatch.setattr(console.time, "monotonic", lambda: moment["s"])
    return moment


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(now, parts, seconds, **options):
    with console.Work("counting sheep", parts, **options) as shown:
        for _ in range(parts):
            now["s"] += seconds
            shown.advance()


def test_in_a_log_it_is_a_line_after_5_seconds_and_each_30_more(now, capsys):
    work(now, 100, 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "counting sheep: 5 of 100, 0:01:35 left",
        "counting sheep: 35 of 100, 0:01:05 left",
        "counting sheep: 65 of 100, 0:00:35 left",
        "counting sheep: 95 of 100, 0:00:05 left",
    ]


def test_what_is_done_soon_is_not_spoken_of(now, capsys, monkeypatch):
    work(now, 4, 1.2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(now, 4, 1.2)
    assert sys.stderr.getvalue() == ""


def test_on_a_terminal_it_is_one_line_that_changes_and_goes(now, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(now, 20, 0.5)
    text = sys.stderr.getvalue()
    bars = re.findall(r"\r(counting.*?)\x1b\[K", text)
    assert bars[0] == "counting sheep: 10 of 20, 0:00:05 left [##########..........]"
    assert len(bars) == 10 and "\n" not in text and text.endswith("\r\x1b[K")


def test_a_display_of_its_own_takes_the_lines(now, capsys):
    lines = []
    work(now, 10, 3.0, put=lines.append)
    assert lines == ["counting sheep: 2 of 10, 0:00:24 left"]
    assert capsys.readouterr() == ("", "")


def test_of_several_processes_the_first_alone_shows_it(now, capsys, monkeypatch):
    monkeypatch.setattr(console, "_process", 1)
    work(now, 10, 3.0)
    assert capsys.readouterr().err == ""


def test_what_cannot_be_counted_says_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(console, "LONG", 0.01)
    monkeypatch.setattr(console, "EVERY", 0.01)
    lines = []
    with console.waiting("compiling: once", lines.append):
        while len(lines) < 2:
            time.sleep(0.001)
    assert set(lines) == {"compiling: once (0:00:00 so far)"}


def test_a_remark_begins_a_line_where_one_was_cut_short(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # a terminal shows both
    console.write("One ")
    console.write("day")
    console.error("interrupted")
    console.say("Then")
    console.warn("a remark")
    assert capfd.readouterr().err.splitlines() == [
        "One day",
        "error: interrupted",
        "Then",
        "warning: a remark",
    ]


def test_a_remark_is_made_also_where_standard_output_is_closed(capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch:
        stdout = os.fdopen(writer, "w")
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(console.Closed):
            console.write("lost")
        console.error("a remark")
        console.flush()
        stdout.close()
    assert capsys.readouterr() == ("", "error: a remark\n")


def test_a_clock():
    assert console.clock(3 * 3600 + 5 * 60 + 7.9) == "3:05:07"


def test_a_remark_is_made_once_in_a_command_and_by_the_first_process(capsys):
    for _ in range(2):
        console.remark("so it is")
        console.remark("and so")
    assert capsys.readouterr().err == "warning: so it is\nwarning: and so\n"
    console.forget_remarks()
    console.remark("so it is")
    assert capsys.readouterr().err == "warning: so it is\n"


def test_the_other_processes_make_no_remarks(capsys, monkeypatch):
    monkeypatch.setattr(console, "_process", 1)
    console.remark("so it is")
    console.warn("but here")
    assert capsys.readouterr().err == "process 1: warning: but here\n"
