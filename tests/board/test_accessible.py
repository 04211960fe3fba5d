"""What each page is to who does not see it, or has no mouse: names, roles and texts."""

from html.parser import HTMLParser

import pytest

from .conftest import CONFIG

VOID = {"input", "meta", "link", "br", "wbr"}
FIELDS = {"input", "select", "textarea"}
ROLES = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row"}


class Element:
    """An element, with what is in it."""

    def __init__(self, name, attributes, parent):
        self.name, self.parent = name, parent
        self.attributes = dict(attributes)
        self.text = ""

    def within(self, name):
        """Whether one of those around it has that name."""
        around = self.parent
        while around is not None and around.name != name:
            around = around.parent
        return around


class Elements(HTMLParser):
    """All elements of a page, in their order."""

    def __init__(self, text):
        super().__init__()
        self.all: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        assert not self._open, [one.name for one in self._open]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, attrs, self._open[-1] if self._open else None)
        self.all.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open[-1].name == tag, (tag, self._open[-1].name)
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def named(self, *names):
        """Those of some names."""
        return [one for one in self.all if one.name in names]


@pytest.fixture
def pages(make_run, board, tmp_path):
    """{what: the elements of each page}."""
    run = make_run(
        "failed", ended={"status": "failed", "why": "the disk was full"}, config=CONFIG
    )
    (run / "adapter").mkdir()
    run.joinpath("environment.json").write_text('{"command": "jaxpeft train"}')
    make_run("damaged").joinpath("summary.json").write_text("{")
    number = board.queue.add(["train", "--config", "x.yaml"], str(run))
    (board.queue.folder / f"{number:06}.log").write_text("step 1\n")
    key = board.key("failed")
    paths = ["/", f"/run/{key}", f"/try?run={key}&with=base", "/new", "/jobs"]
    paths += [f"/jobs/{number}", f"/compare?run={key}", f"/run/{key}/examples", "/x"]
    return {path.split("?")[0]: Elements(board.get(path).text) for path in paths}


def test_every_button_and_field_has_a_name(pages):
    for path, page in pages.items():
        labels = {one.attributes.get("for") for one in page.named("label")}
        for one in page.named("button", "a"):
            assert one.text.strip() or one.attributes.get("aria-label"), (
                path,
                one.name,
            )
        for one in page.named(*FIELDS):
            given = one.attributes
            if given.get("type") == "hidden":
                continue
            named = given.get("id") in labels or given.get("aria-label")
            assert named or one.within("label"), (path, given)


def test_ids_are_there_once_and_what_names_one_finds_it(pages):
    for path, page in pages.items():
        ids = [one.attributes["id"] for one in page.all if "id" in one.attributes]
        assert len(ids) == len(set(ids)), path
        for one in page.all:
            for name in ("aria-describedby", "for"):
                at = one.attributes.get(name)
                assert at is None or at in ids, (path, at)
            if one.name == "a" and one.attributes.get("href", "")[:1] == "#":
                assert one.attributes["href"][1:] in ids
        assert [one.name for one in page.named("h1", "main")] == ["main", "h1"]


def test_tables_stay_tables_where_their_rows_are_cards(pages):
    """A browser takes a table that is shown as a grid for no table."""
    for path in ("/", "/jobs"):
        page = pages[path]
        for one in page.named(*ROLES):
            assert one.attributes.get("role") == ROLES[one.name], (path, one.name)
        for one in page.named("th", "td"):
            heads = {"col": "columnheader", "row": "rowheader", None: "cell"}
            scope = one.attributes.get("scope")
            assert one.attributes.get("role") == heads[scope], (path, one.attributes)
    for page in pages.values():
        assert all("scope" in one.attributes for one in page.named("th"))


def test_what_is_wrong_with_a_run_is_text(pages):
    """Not only what a mouse brings up."""
    (state,) = [one for one in pages["/"].named("span") if "disk" in one.text]
    assert state.text == "the disk was full" and state.within("td")
    faults = [one for one in pages["/"].named("th") if "summary.json" in one.text]
    assert len(faults) == 1


def test_a_log_is_one(pages):
    logs = [one for page in pages.values() for one in page.named("pre")]
    logs = [one for one in logs if one.attributes.get("class") == "log"]
    assert len(logs) == 2 and all(one.text == "step 1\n" for one in logs)
    for one in logs:
        assert one.attributes["role"] == "log" and one.attributes["aria-label"]
        assert one.attributes["tabindex"] == "0"
