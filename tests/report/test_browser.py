"""Pages in a real browser: what a reader sees and can do, with no request made."""

import json

import pytest

from jaxpeft.data.shown import Piece
from jaxpeft.look import page as data_page
from jaxpeft.look.facts import Facts
from jaxpeft.look.first import Part, Record
from jaxpeft.look.histogram import Bar
from jaxpeft.report.run_page import write_run
from jaxpeft.report.sweep_page import write_sweep

from .conftest import HOSTILE

pytestmark = pytest.mark.slow


@pytest.fixture
def visit(browser):
    """visit(path): opens it; afterwards it has complained and asked for nothing."""
    opened = []
    browser.get("about:blank")  # ends what Chromium's own first page is asking for
    for kind in ("browser", "performance"):
        browser.get_log(kind)

    def go(path):
        opened.append(path.as_uri())
        browser.get(opened[-1])
        return browser

    yield go
    assert browser.get_log("browser") == []
    events = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    asked = [e["params"]["request"]["url"] for e in events if _is_request(e)]
    assert set(asked) == set(opened)


def _is_request(event):
    """Whether a page asked for something; data and Chromium's own pages are nothing."""
    if event["method"] != "Network.requestWillBeSent":
        return False
    request = event["params"]
    own = ("chrome:", "chrome-untrusted:", "chrome-extension:")
    return not (
        request["request"]["url"].startswith(("data:", *own))
        or request["documentURL"].startswith(own)
    )


def find(page, selector):
    return page.find_elements("css selector", selector)


def hover(page, selector, share):
    """Moves the pointer over an element, `share` of its width from the left."""
    from selenium.webdriver import ActionChains

    (target,) = find(page, selector)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    right = round((share - 0.5) * target.size["width"])
    ActionChains(page).move_to_element_with_offset(target, right, 0).perform()


def test_a_curve_says_its_values_under_the_pointer(make_run, visit):
    page = visit(write_run(make_run("one")))
    hover(page, ".chart:first-child svg", 0.999)
    text = find(page, ".chart:first-child .tooltip")[0].text
    assert text.splitlines()[0] == "step (updates): 40"
    assert "evaluation: 2.1" in text
    assert "unsmoothed 2.6" in text
    assert text.splitlines()[-1] == "loss (nats per token)"
    find(page, ".chart:first-child input[name=smooth]")[0].click()
    hover(page, ".chart:first-child svg", 0.999)
    text = find(page, ".chart:first-child .tooltip")[0].text
    assert "training: 2.6" in text and "unsmoothed" not in text


def test_the_legend_hides_a_curve_and_shows_it_again(make_run, visit):
    page = visit(write_run(make_run("one")))
    assert len(find(page, ".chart:first-child .curve:not(.faint)")) == 2
    button = find(page, ".chart:first-child .legend button")[1]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert len(find(page, ".chart:first-child .curve:not(.faint)")) == 1
    hover(page, ".chart:first-child svg", 0.5)
    assert "evaluation" not in find(page, ".chart:first-child .tooltip")[0].text
    button.click()
    assert len(find(page, ".chart:first-child .curve:not(.faint)")) == 2


def test_an_axis_can_be_logarithmic(make_run, visit):
    page = visit(write_run(make_run("one")))
    curve = ".chart:first-child .curve:not(.faint)"
    before = find(page, curve)[0].get_attribute("d")
    find(page, ".chart:first-child input[name=log]")[0].click()
    assert find(page, curve)[0].get_attribute("d") not in ("", before)


def test_every_axis_has_a_title_with_its_unit(make_run, visit):
    page = visit(write_run(make_run("one")))
    charts = find(page, ".chart")
    assert len(charts) == 5
    for chart in charts:
        titles = chart.find_elements("css selector", ".x-label, .y-label")
        assert [t.text for t in titles][0] == "step (updates)"
        assert titles[1].text


def test_texts_from_data_run_nothing(make_run, visit):
    run = make_run("one")
    page = visit(write_run(run))
    assert page.execute_script("return window.hit") is None
    sample = json.loads((run / "samples.json").read_text())[0]
    assert find(page, ".sample pre")[0].text == sample["prompt"]


def test_light_and_dark(make_run, visit):
    page = visit(write_run(make_run("one")))
    colors = []
    for _ in range(2):
        body = find(page, "body")[0]
        colors.append(body.value_of_css_property("background-color"))
        find(page, "#theme")[0].click()
    assert colors[0] != colors[1]


def test_a_narrow_window_scrolls_only_downward(make_run, sweep, visit, browser):
    browser.set_window_size(500, 900)
    for path in (write_run(make_run("one")), write_sweep(sweep)):
        page = visit(path)
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        found, room = page.execute_script(widths)
        assert found <= room
    browser.set_window_size(1200, 900)


def test_a_sweep_leads_to_the_pages_of_its_points(sweep, visit):
    write_run(sweep / "points" / "02")
    page = visit(write_sweep(sweep))
    hover(page, ".chart:first-child svg", 0.5)
    lines = find(page, ".chart:first-child .tooltip")[0].text.splitlines()
    assert lines[0] == "optimizer.learning_rate (per update): 1e-4"
    assert set(lines[1:3]) == {"seed=1: 1.01", "seed=2: 1.02"}
    (link,) = find(page, ".results a")
    assert link.get_attribute("href") == (sweep / "points/02/report.html").as_uri()


def test_the_data_s_page_shows_what_is_learned(visit, browser, tmp_path):
    text = Piece(HOSTILE, (5, 6), learned=True, special=False)
    pair = [Part(name, "2 tokens", [text], 0, []) for name in ("chosen", "rejected")]
    bars = [Bar(0, 9, 3), Bar(10, 19, 1)]
    about = Facts(
        "training", ["4"], [], [("cut", HOSTILE)], bars, ("source",), [("a",)]
    )
    target = tmp_path / "data.html"
    data_page.write(target, "m", [about], [[("a", [Record("pair 0", pair)])]])
    page = visit(target)
    assert page.execute_script("return window.hit") is None
    left, right = find(page, "pre.tokens")
    assert left.text == right.text == HOSTILE
    assert left.rect["y"] == right.rect["y"] and left.rect["x"] < right.rect["x"]
    (span,) = left.find_elements("css selector", ".learned span")
    assert span.get_attribute("title") == "token 5 6"
    heights = [bar.size["height"] for bar in find(page, ".bar-of")]
    assert heights[0] == pytest.approx(3 * heights[1], abs=1)
    browser.set_window_size(500, 900)
    widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
    found, room = page.execute_script(widths)
    browser.set_window_size(1200, 900)
    assert found <= room


def test_a_run_with_nothing_logged_says_so(make_run, visit):
    run = make_run("one", summary=False)
    (run / "metrics.jsonl").write_text("")
    page = visit(write_run(run))
    assert find(page, "#empty")[0].text == "Nothing has been logged yet."
