"""Each way to the board that is not its owner's, tried."""

import re
import socket

import pytest

from jaxpeft.board import HERE, guard, main, server
from jaxpeft.board.server import listening
from jaxpeft.errors import InputError

from .conftest import HOST, TOKEN

OWN = {"x-board-token": TOKEN}


def cookie(board) -> str:
    """The cookie that the address which the command prints gives."""
    return board.ask("GET", f"/?token={TOKEN}").headers["set-cookie"]


def test_the_printed_address_opens_the_board_and_keeps_no_token_in_it(board):
    answer = board.ask("GET", f"/?token={TOKEN}&sort=loss")
    assert answer.code == 303 and answer.headers["location"] == "/?sort=loss"
    assert "HttpOnly" in cookie(board) and "SameSite=strict" in cookie(board)
    own = cookie(board).split(";")[0]
    assert board.ask("GET", "/", {"cookie": own}).code == 200


@pytest.mark.parametrize(
    "path", ["/", "/events", "/run/x", "/static/board.js", "/run/x/file?name=y", "/x"]
)
@pytest.mark.parametrize(
    "headers",
    [{}, {"x-board-token": ""}, {"x-board-token": "wrong"}, {"x-board-token": "\xe9"}]
    + [{"cookie": "jaxpeft-board-8470=wrong"}, {"cookie": "=;;="}],
)
def test_nothing_is_shown_without_the_token(board, path, headers):
    answer = board.ask("GET", path, headers)
    assert answer.code == 403 and TOKEN not in answer.text


def test_a_wrong_token_in_the_address_is_refused(board):
    answer = board.ask("GET", "/?token=wrong")
    assert answer.code == 403 and "set-cookie" not in answer.headers


def test_an_address_leads_to_no_other_host(board):
    answer = board.ask("GET", f"//evil.example/x?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/x"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "", "[x", "a@b"],
)
def test_another_name_for_this_address_is_refused(board, host):
    """As a page of that name would ask, once it means 127.0.0.1 (DNS rebinding)."""
    answer = board.ask("GET", "/", {**OWN, "host": host})
    assert answer.code == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8470", "localhost:9000", "[::1]:8470", socket.gethostname()]
)
def test_this_machine_s_names_are_known_at_any_port(board, host):
    assert board.ask("GET", "/", {**OWN, "host": host}).code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "file://", ""]
)
def test_a_page_of_another_site_changes_nothing(board, origin):
    headers = {**OWN, "origin": origin}
    assert board.ask("POST", "/x", headers).code == 403
    assert board.ask("POST", "/x", {**OWN, "origin": f"http://{HOST}"}).code == 404


def test_a_request_without_an_origin_needs_the_token_in_a_header(board):
    own = cookie(board).split(";")[0]
    assert board.ask("POST", "/x", {"cookie": own}).code == 403
    assert board.ask("POST", "/x", OWN).code == 404


@pytest.mark.parametrize("length", [str(guard.MOST + 1), "-1", "x", "9" * 5000])
def test_a_request_that_says_it_is_large_is_refused(board, length):
    headers = {**OWN, "content-length": length}
    assert board.ask("POST", "/x", headers).code == 413


def test_answers_forbid_what_no_page_needs(board):
    for answer in (board.get("/"), board.get("/x"), board.ask("GET", "/")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "*" not in answer.headers.get("access-control-allow-origin", "")


def test_no_page_has_a_script_or_a_style_in_it(make_run, board):
    make_run("one")
    for path in ("/", f"/run/{board.key('one')}", "/x"):
        text = board.get(path).text
        assert not re.search(r"<[^>]*\s(style|on\w+)=|<style", text)
        for script in text.split("<script")[1:]:
            assert script.startswith((' src="/static/', ' type="application/json"'))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_refused(board, method):
    assert board.ask(method, "/", {**OWN, "origin": f"http://{HOST}"}).code == 405


def test_it_listens_on_this_machine_alone_unless_told():
    with listening(HERE, 0) as found:
        assert found.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_said():
    with listening(HERE, 0) as found:
        port = found.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*another --port"):
            listening(HERE, port)


@pytest.mark.parametrize("site", ["same-site", "cross-site", "x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/", "/run/x/examples/part", "/new", "/compare"])
def test_a_browser_s_word_that_another_page_asks_is_taken(board, site, method, path):
    """As of one at another port of this host, with whose requests the cookie comes."""
    own = {"cookie": cookie(board).split(";")[0], "origin": f"http://{HOST}"}
    for mode in ("navigate", "no-cors", "cors"):
        asked = {**own, "sec-fetch-site": site, "sec-fetch-mode": mode}
        assert board.ask(method, path, asked).code == 403
    for site in ("same-origin", "none"):
        asked = {**own, "sec-fetch-site": site}
        assert board.ask(method, "/x", asked).code == 404


def test_the_printed_address_opens_the_board_from_another_page_as_well(board):
    """A terminal in a browser, whose redirection would come without the cookie."""
    path = f"/?token={TOKEN}&words=%22%3E%3Cscript%3E"
    answer = board.ask("GET", path, {"sec-fetch-site": "cross-site"})
    assert answer.code == 200 and "HttpOnly" in answer.headers["set-cookie"]
    assert 'content="0; url=/?words=%22%3E%3Cscript%3E"' in answer.text
    assert TOKEN not in answer.text and "<script" not in answer.text


def test_a_folder_that_is_not_there_is_made_where_its_place_is(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "serve", lambda *_: None)
    assert main(["--runs", str(tmp_path / "runs"), str(tmp_path)]) == 0
    assert (tmp_path / "runs").is_dir()
    (tmp_path / "file").touch()
    wrong = [str(tmp_path / name) for name in ("there/runs", "file", "file/runs")]
    with pytest.raises(InputError) as caught:
        main(["--runs", str(tmp_path / "new"), *wrong])
    assert [str(caught.value).count(f"{name!r} is no folder") for name in wrong] == [
        1
    ] * 3
    assert not (tmp_path / "new").exists()
