"""A walk through the board in a real browser, with real runs; what kill -9 leaves."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from jaxpeft.board import life
from jaxpeft.board.catalog import Catalog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = 180.0  # seconds that anything may take on a busy machine


class Board:
    """The command, in a process."""

    def __init__(self, runs: Path):
        start = time.monotonic()
        command = [sys.executable, "-m", "jaxpeft.board", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--runs", str(runs)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said.startswith("open "):
                self.url = said.split()[1]
                break
        self.address, _, self.token = self.url.partition("/?token=")
        self.get("/")
        self.seconds = time.monotonic() - start

    def get(self, path: str) -> str:
        headers = {"x-board-token": self.token}
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def runs(tmp_path):
    """An empty folder of runs, whose processes are ended with the test."""
    folder = tmp_path / "runs"
    folder.mkdir()
    yield folder
    for entry in Catalog([folder]).refresh().values():
        if entry.held is not None and entry.held.alive and entry.held.is_here:
            os.kill(entry.held.pid, signal.SIGKILL)


@pytest.fixture
def start(runs):
    """start(): a board over them."""
    with contextlib.ExitStack() as boards:

        def begin() -> Board:
            made = Board(runs)
            boards.callback(made.close)
            return made

        yield begin


def wait(what, seconds=LONG):
    """The first true answer of what()."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return found


class Page:
    """What a person does on a page."""

    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector) -> str:
        """The text of the first such element; "" while it is being replaced."""
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return self.all(selector)[0].text
        except (IndexError, StaleElementReferenceException):
            return ""

    def click(self, selector):
        wait(lambda: self.all(selector))
        self.browser.execute_script(
            "const [it] = document.querySelectorAll(arguments[0]);"
            "it.scrollIntoView({block: 'center'}); it.click()",
            selector,
        )

    def link(self, text):
        wait(
            lambda: self.browser.execute_script(
                "const found = [...document.querySelectorAll('a')]"
                ".find((one) => one.textContent === arguments[0]);"
                "found?.click(); return Boolean(found)",
                text,
            )
        )

    def type(self, selector, text):
        from selenium.webdriver import Keys

        # Over what was there: to clear it would be a change of its own.
        self.all(selector)[0].send_keys(Keys.CONTROL + "a" + Keys.NULL, text)

    def value(self, selector) -> str:
        """What a field holds, read in one step: the page may replace it meanwhile."""
        return self.browser.execute_script(
            "return document.querySelector(arguments[0])?.value ?? ''", selector
        )

    def set(self, key, value):
        """Fills in a key of the form, and waits until the YAML has followed."""
        line = rf"\b{key.rpartition('.')[2]}: {re.escape(value)}\n"
        self.type(f"[data-key='{key}']", f"{value}\t")
        wait(lambda: re.search(line, self.value("#yaml")))
        wait(lambda: "sound" in self.text("#verdict"))

    def state(self, *states):
        wait(lambda: self.text(".badge") in states)


def test_a_walk_through_all_of_it(browser, start, runs):
    board, page = start(), Page(browser)
    browser.get(board.url)
    assert "token" not in browser.current_url
    assert "no runs yet" in page.text("#none")

    # A run from the quickstart, made in the form.
    page.link("new run")
    page.type("[data-key='adapter.r']", "many\t")
    wait(lambda: "must be a whole number" in page.text(".field.wrong"))
    assert "many" in page.value("#yaml")
    settings = {"adapter.r": "4", "data.max_length": "64", "training.max_steps": "40"}
    settings |= {"training.logging_steps": "1", "training.save_steps": "10"}
    settings |= {"training.batch_size": "4", "schedule.name": ""}
    for key, value in settings.items():
        if value:
            page.set(key, value)
    # What is written in the YAML is in the form, too.
    page.browser.execute_script(
        "const yaml = document.querySelector('#yaml');"
        "yaml.value = yaml.value.replace(/  eval: .*\\n/, '') + '  samples: 0\\n';"
        "yaml.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    wait(lambda: page.value("[data-key='training.samples']") == "0")
    assert page.value("[data-key='data.eval']") == ""
    page.click("button[value=train]")
    page.link("the run")

    # Its curve grows, by itself.
    wait(lambda: page.all(".chart"))

    def drawn():
        found = page.browser.execute_script(
            "return document.querySelector('.chart .curve:not(.faint)')"
            "?.getAttribute('d')"
        )
        return (found or "").count("L")

    before = wait(drawn)
    wait(lambda: drawn() > before)

    # Stopped, and continued to its end.
    page.click("form[action$=stop] button")
    page.state("preempted")
    assert "saved after step" in page.text("#head")
    page.click("form[action$=continue] button")
    page.state("done")
    assert "continuing after step" in page.text("#log")
    page.link("the run")
    page.state("finished")
    wait(lambda: "Settings other than" in page.text("main"))

    # A second one like it, at the rate that a range test finds.
    page.link("new run like it")
    assert page.value("[data-key=output_dir]").endswith("quickstart-2")
    page.click("button[value=lr_find]")
    page.state("done")
    page.link("new run at this rate")
    found = re.search(r"learning_rate: (\S+)", page.value("#yaml"))
    assert found and 0 < float(found[1]) != 0.01
    page.set("training.max_steps", "5")
    page.click("button[value=train]")
    page.state("done")

    # Side by side.
    page.link("runs")
    wait(lambda: len(page.all(".runs tbody tr")) == 2)
    for number in (1, 2):
        page.click(f".runs tbody tr:nth-child({number}) input")
    page.click("#compare button")
    wait(lambda: page.all("svg.parallel polyline"))
    wait(lambda: "optimizer.learning_rate" in page.text(".results"))
    wait(lambda: len(page.all(".chart .legend button")) >= 4)

    # Asked, beside its base.
    page.link("runs")
    page.link("quickstart")
    page.link("try it")
    page.browser.execute_script("document.querySelector('#with').value = 'base'")
    page.click("form.buttons button")
    page.type("#text", "Write a short weather report.")
    page.browser.execute_script(
        "document.querySelector('[name=max_new_tokens]').value = '8'"
    )
    page.click("#talk button.main")
    wait(lambda: len(page.all(".said .assistant:not(.waits)")) == 2)
    assert all(one.text for one in page.all(".said .assistant"))
    assert not page.all(".said .fault")
    assert browser.get_log("browser") == []


def test_words_filter_and_titles_sort_by_keyboard_alone(browser, start, make_run):
    for name in ("alpha", "beta", "gamma"):
        make_run(name, steps=len(name))
    page, board = Page(browser), start()
    browser.get(board.url)
    wait(lambda: page.text("#live") == "live")
    page.type("#words", "bet WAITING nothing")
    assert page.text("#count") == "0 of 3"
    page.type("#words", "bet LORA")
    assert page.text("#count") == "1 of 3"
    page.link("steps")
    assert page.all("[aria-sort=descending]")[0].text.startswith("steps")
    for column in page.all(".runs thead a"):
        assert column.accessible_name
    for width in (390, 1400):
        browser.set_window_size(width, 900)
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        found, room = browser.execute_script(widths)
        assert found <= room
    browser.set_window_size(1200, 900)


def test_what_has_the_focus_stays_and_its_news_are_not_lost(browser, start, make_run):
    run = make_run("one")
    page, board = Page(browser), start()
    browser.get(board.url)
    page.click("tbody th a")
    wait(lambda: page.text("#live") == "live" and page.all("#head button"))
    browser.execute_script("document.querySelector('#head button').focus()")
    run.joinpath("summary.json").write_text('{"steps": 20}')
    wait(lambda: "summary.json" in page.text("#files"))
    assert "failed" in page.text("#head .state").lower()
    browser.execute_script("document.activeElement.blur()")
    wait(lambda: "finished" in page.text("#head .state").lower(), 10)
    browser.get(board.address)
    browser.execute_script("document.querySelector('[data-at]').textContent = ''")
    assert re.fullmatch(r"\d+ s", wait(lambda: page.text("[data-at]"), 20))


def test_texts_of_runs_run_nothing_in_a_browser(browser, start, make_run):
    hostile = "<img src=x onerror='window.hit=1'><script>window.hit=1<!--"
    make_run(hostile.replace("/", ""), ended={"status": "failed", "why": hostile})
    page, board = Page(browser), start()
    browser.get(board.url)
    wait(lambda: page.text("#live") == "live")
    page.click(".runs tbody a")
    wait(lambda: page.all(".chart"))
    wait(lambda: hostile in page.text("#head"))
    assert browser.execute_script("return window.hit") is None
    assert browser.get_log("browser") == []


def test_runs_outlive_a_board_that_is_killed_and_a_killed_run_is_seen(start, runs):
    from jaxpeft.board.jobs import Queue

    queue = Queue(runs)
    short = ["training.logging_steps=1", "training.max_steps=2000"]
    short += ["data.max_length=64", "training.batch_size=2"]
    place = runs / "one"
    config = ["train", "--config", "jaxpeft:quickstart.yaml"]
    queue.add([*config, f"output_dir={place}", *short], str(place))
    board = start()
    assert board.seconds < 10  # 2 on a machine that has nothing else to do

    def entry():
        return next(iter(Catalog([runs]).refresh().values()), None)

    wait(lambda: (found := entry()) and found.figures.step > 2)
    pid = entry().held.pid
    board.process.send_signal(signal.SIGKILL)
    board.process.wait()
    seen = entry().figures.step
    wait(lambda: entry().figures.step > seen + 2)
    other = start()
    assert ">running<" in other.get("/") and entry().held.pid == pid
    assert queue.jobs()[0].state == "running"
    os.kill(pid, signal.SIGKILL)
    wait(lambda: ">failed<" in other.get("/"), 60)
    assert entry().state == life.FAILED
    wait(lambda: queue.jobs()[0].state == "failed", 60)


def test_the_rest_of_the_package_does_not_know_it():
    """Nor does the command load what it needs to say its help."""
    program = (
        "import sys, jaxpeft.cli, jaxpeft.train, jaxpeft.report, jaxpeft.board\n"
        "import jaxpeft.train.course, jaxpeft.compare.page\n"
        "loaded = [n for n in sys.modules if n.startswith('jaxpeft.board.')]\n"
        "assert not loaded and 'starlette' not in sys.modules, loaded\n"
        "assert 'uvicorn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_serving_loads_no_jax(start):
    """Until a page asks for what needs it: so the first one comes at once."""
    text = Path(f"/proc/{start().process.pid}/maps").read_text()
    assert "libpython" in text or "python" in text
    assert "jaxlib" not in text


def test_what_starts_a_run_is_in_reach_in_windows_of_any_height(browser, start):
    board = start()
    browser.get(board.url)
    browser.get(f"{board.address}/new")
    run = browser.execute_script
    place = (
        "const it = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return it.top >= 0 && it.bottom <= innerHeight && it.right <= innerWidth"
    )
    # A configuration that is longer than any window.
    run("yaml.value += '# more\\n'.repeat(200)")
    for height in (1000, 768, 560):
        browser.set_window_size(1280, height)
        run("scrollTo(0, 0)")
        if height > 600:
            assert run(place, "[value=train]"), height
        run("scrollTo(0, document.body.scrollHeight / 2)")
        assert run(place, "[value=train]"), height
        run("document.querySelector('.side details').open = true")
        # The column scrolls by itself: the page stays where it is.
        before = run("return scrollY")
        run("const [it] = document.querySelectorAll('.side'); it.scrollTop = 9999")
        assert run(place, "[value=sweep]") and run("return scrollY") == before, height
        run("document.querySelector('.side details').open = false")
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get(board.address)
        assert run("return innerWidth") == 390  # nothing makes the page wider
        edge = (
            "return document.querySelector(arguments[0]).getBoundingClientRect().right"
        )
        assert run(edge, ".filter button") <= run(edge, "main")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
