"""Who may ask the board: bearers of its token, under its own name, in small requests.

A page of another site can make a browser send requests here, and a name that it owns
can be made to mean this address. So the name that was asked for (Host) must be this
machine's, a request that changes something must come from a page of the board (Origin),
and each needs the token, which no other page can read.

A cookie is also sent with what another service's page at this host name asks for, at
whatever port. What a browser says of such a request (Sec-Fetch-Site) refuses it; and
what a page asks for behind its back, and takes work, needs a header that no page of
another origin can set.
"""

import hmac
import html
import ipaddress
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST = 2**20  # bytes of a request's body
DIGITS = 12  # of a length that is worth reading
SAFE = ("GET", "HEAD")
TOKEN = "token"
HEADER = "x-board-token"
PAGE = "x-board-page"  # what the board's own script sets
OWN_SITES = ("same-origin", "none")  # none: typed, or a bookmark
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """A request has more bytes than any here needs."""


class Guard:
    """Lets through what may be asked, with headers on every answer.

    Args:
        app: what answers.
        token: what every request must bring, in a cookie, in the header
            `x-board-token`, or once in the address.
        host: where the board listens.
        port: likewise.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, port: int):
        self._app, self._token = app, token
        self._cookie = f"jaxpeft-board-{port}"
        named = {host, "localhost", socket.gethostname(), socket.getfqdn()}
        self._hosts = {name.lower() for name in named}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(scope)
        if answer is not None:
            await answer(scope, receive, with_headers)
        else:
            await self._app(scope, _bounded(receive), with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer to what is not let through; None: it is."""
        headers = Headers(scope=scope)
        if not self.knows(headers.get("host", "")):
            return _refused(
                "This address is not the board's. Open the one that it printed."
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > DIGITS or int(length) > MOST:
            return _too_large()
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] in SAFE and TOKEN in asked:
            if not self._is_token(asked.pop(TOKEN)[0]):
                return _refused("The token in this address is not this board's.")
            rest = urlencode(asked, doseq=True)
            place = _path(scope) + (f"?{rest}" if rest else "")
            # A redirection of another site's link would still be that site's request,
            # and would come without the cookie; what this page leads to is its own.
            own = _is_of_own_site(headers)
            answer = RedirectResponse(place, 303) if own else _leading(place)
            # No page of another site makes a browser send it.
            answer.set_cookie(
                self._cookie, self._token, httponly=True, samesite="strict"
            )
            return answer
        if not self._is_token(headers.get(HEADER) or self._from_cookie(headers)):
            return _refused(
                "Open the address that the board printed when it began: it holds a "
                "token, without which nothing is shown."
            )
        changes = scope["method"] not in SAFE
        if not _is_of_own_site(headers) or (changes and not _is_own(headers)):
            return _refused(
                "This request comes from a page that is not the board's. Open the "
                "board's address itself."
            )
        return None

    def knows(self, host: str) -> bool:
        """Whether a name that was asked for is one of this machine's, at any port.

        An address is no name, so that nobody else can make it lead here.

        Args:
            host: the header Host.
        """
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self._hosts

    def _from_cookie(self, headers: Mapping[str, str]) -> str:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        return cookies[self._cookie].value if self._cookie in cookies else ""

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())


def _path(scope: Scope) -> str:
    """The path that was asked for, which leads to no other host: // would name one."""
    raw = scope.get("raw_path") or scope["path"].encode()
    return "/" + raw.decode("latin-1").split("?")[0].lstrip("/\\")


def _leading(place: str) -> Response:
    """A page that leads on to another of the board."""
    at = html.escape(place)
    return HTMLResponse(
        f'<!DOCTYPE html><title>jaxpeft board</title><meta http-equiv="refresh" '
        f'content="0; url={at}"><a href="{at}">the board</a>'
    )


def _is_of_own_site(headers: Mapping[str, str]) -> bool:
    """Whether no page of another origin has made a browser ask.

    Programs say nothing of it, nor do browsers over plain HTTP from elsewhere.
    """
    return headers.get("sec-fetch-site", "none") in OWN_SITES


def is_from_page(request: Request) -> bool:
    """Whether a page of the board, or a program with the token, asks for a part.

    Args:
        request: which has been let through.
    """
    return HEADER in request.headers or PAGE in request.headers


def _is_own(headers: Mapping[str, str]) -> bool:
    """Whether a request that changes something comes from the board's own page.

    Programs send no Origin: theirs must bring the token in the header.
    """
    origin = headers.get("origin")
    if origin is None:
        return HEADER in headers
    return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _bounded(receive: Receive) -> Receive:
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST:
            raise TooLarge
        return message

    return bounded


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", 403)


async def too_large(request: Request, error: Exception) -> Response:
    """The answer to a request whose size shows only as it comes.

    Args:
        request: the request.
        error: a `TooLarge`.
    """
    return _too_large()


def _too_large() -> Response:
    return PlainTextResponse(f"A request has at most {MOST:,} bytes.\n", 413)
