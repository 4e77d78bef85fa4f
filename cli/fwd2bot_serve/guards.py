"""What stands before every request: who is asked for, who asks, and how much is sent.

Notable choices:

- *Host*: a page of a stranger whose name was made to point to this machine (DNS rebinding) is refused, because the name
  is in the request. Addresses in numbers cannot be made to point elsewhere and are let through.
- *Origin*: no page but this server's own makes it do anything but read; other pages cannot read the answers, because
  nothing here allows them to (CORS).
- *Token*: compared in constant time; the page trades it for a cookie that scripts cannot read and other sites cannot
  send, and that is not the token.
- *Body*: taken in before anything else is done with the request, up to its limits in bytes and seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fwd2bot_serve.settings import LOOPBACK, Settings

_OPEN: Final = ("/", "/health", "/session")
"""Paths that need no token, besides the files of the page: nothing of the index is in them."""
PAGE: Final = "/page/"
_BODIES: Final = 8
"""Bodies of the greatest size that are in memory at a time."""
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
PAGE_POLICY: Final = f"{_POLICY}; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, sentence: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.error = error
        self.sentence = sentence
        self.headers = headers


def cookie_of(token: str) -> str:
    """What the page holds instead of the token."""
    return hmac.new(token.encode(), b"fwd2bot page", hashlib.sha256).hexdigest()


def cookie_name(token: str) -> str:
    """One for each token: browsers do not tell the ports of a machine apart, and so neither several servers on it."""
    return f"fwd2bot-{cookie_of(token)[:8]}"


def same(a: str, b: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(a.encode(), b.encode())


class Guard:
    """Refuses, or lets a request through with its body at hand."""

    def __init__(self, app: ASGIApp, *, settings: Settings, done: Callable[[str, str, int, float], None]) -> None:
        """``done`` is told method, path of the route, status and seconds of every request."""
        self._app = app
        self._settings = settings
        self._done = done
        self._names = {name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts)}
        self._in_memory = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, taken = time.perf_counter(), 499, 0  # 499: the client hung up

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", _POLICY)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            self._check_token(scope["path"], headers)
            body = await self._body(headers, receive)
            taken = len(body)
            self._in_memory += taken
            await self._app(scope, _replayed(body, receive), guarded_send)
        except _RefusedError as e:
            await _refuse(e, guarded_send)
        except _HungUpError:
            pass
        finally:
            self._in_memory -= taken
            path = getattr(scope.get("route"), "path", "other")
            self._done(scope["method"], path, status, time.perf_counter() - started)

    def _check_host(self, headers: Headers) -> None:
        name = _name(headers.get("host", ""))
        if name not in self._names and not _is_address(name):
            raise _RefusedError(421, "host", "This server does not go by that name: --allow-host NAME makes it do so.")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        elsewhere = origin is not None and scope["method"] not in _SAFE and _netloc(origin) != headers.get("host", "")
        # a picture on another's page asks by GET; browsers say where it is. A link to the page itself is welcome
        entrance = scope["path"] in _OPEN or scope["path"].startswith(PAGE)
        if elsewhere or (site in ("cross-site", "same-site") and not entrance):
            raise _RefusedError(403, "forbidden", "Pages of other sites may not use this server.")

    def _check_token(self, path: str, headers: Headers) -> None:
        token = self._settings.token
        if token is None or path in _OPEN or path.startswith(PAGE):
            return
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(shown.strip(), token):
            return
        if any(same(cookie, cookie_of(token)) for cookie in _cookies(headers, cookie_name(token))):
            return
        raise _RefusedError(
            401,
            "token",
            "This server wants a token: send it as `Authorization: Bearer TOKEN`.",
            [("www-authenticate", "Bearer")],
        )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._settings.time_limit):
                return await self._read(headers, receive)
        except TimeoutError:
            raise _RefusedError(
                408, "time-limit", f"The request took longer than {self._settings.time_limit:g} seconds to arrive."
            ) from None

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        most = self._settings.max_body
        too_large = _RefusedError(413, "too-large", f"A request may have {most:,} bytes at most.")
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _HungUpError
                body += message.get("body", b"")
                self._in_memory += len(message.get("body", b""))
                if len(body) > most:
                    raise too_large
                if self._in_memory > _BODIES * most:
                    raise _RefusedError(
                        503, "overloaded", "Too much is being sent at once: try again.", [("retry-after", "2")]
                    )
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self._in_memory -= len(body)


class _HungUpError(Exception):
    pass


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(error: _RefusedError, send: Send) -> None:
    body = json.dumps({"detail": error.sentence, "error": error.error}).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), *error.headers]
    if error.status in (408, 413):
        headers.append(("connection", "close"))  # what is still being sent is not read
    raw: list[Any] = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    """Of an Origin header: host and port."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookies(headers: Headers, wanted: str) -> list[str]:
    parts = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return [value for name, _, value in parts if name == wanted]
