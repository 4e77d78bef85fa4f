"""Who is let in: tokens, names, origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served_index import serving

from fwd2bot_index.errors import InputError
from fwd2bot_serve.guards import cookie_name
from fwd2bot_serve.settings import Settings

TOKEN = "open sesame"
ASKED = {"query": "red"}


@pytest.fixture(scope="module")
def locked(corpus: tuple[Path, dict[str, str]]) -> Iterator[str]:
    with serving(corpus[0], Settings(token=TOKEN, allowed_hosts=("Pictures.Example",))) as address:
        yield address


def test_no_network_without_a_token() -> None:
    with pytest.raises(InputError, match="--token"):
        Settings(host="0.0.0.0")
    with pytest.raises(InputError, match="ASCII"):
        Settings(token="schlüssel")
    for settings in (Settings(host="0.0.0.0", token="x"), Settings(host="0.0.0.0", public=True), Settings(host="::1")):
        assert settings.port == 8000


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"cookie": f"{cookie_name(TOKEN)}={TOKEN.replace(' ', '')}"},
        {"cookie": f"{cookie_name(TOKEN)}="},
    ],
)
def test_nothing_of_the_index_without_the_token(locked: str, ids: dict[str, str], headers: dict[str, str]) -> None:
    paths = ("/search?query=red", f"/images/{ids['red']}", f"/thumbnails/{ids['red']}", "/pictures", "/status",
             "/columns", "/metrics", "/openapi.json", "/nothing")  # fmt: skip
    for path in paths:
        answer = httpx.get(locked + path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.json()["error"] == "token"
    assert httpx.post(f"{locked}/ask", json={"question": "red?"}, headers=headers).status_code == 401


def test_with_the_token(locked: str) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{locked}/search", params=ASKED, headers=headers).status_code == 200
    assert httpx.get(f"{locked}/health").status_code == 200
    assert httpx.get(f"{locked}/").status_code == 200


def test_the_page_trades_it_for_a_cookie(locked: str) -> None:
    with httpx.Client(base_url=locked) as client:
        assert client.post("/session", json={"token": "wrong"}).status_code == 401
        assert client.get("/search", params=ASKED).status_code == 401
        answer = client.post("/session", json={"token": TOKEN})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/search", params=ASKED).status_code == 200


def test_servers_of_one_machine_keep_their_cookies_apart() -> None:
    assert cookie_name("one") != cookie_name("two")


def test_no_token_is_wanted(address: str) -> None:
    answer = httpx.post(f"{address}/session", json={"token": TOKEN})
    assert answer.status_code == 204
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "[", "127.0.0.1.evil"]
)
def test_a_name_that_was_made_to_point_here(address: str, host: str) -> None:
    answer = httpx.get(f"{address}/search", params=ASKED, headers={"host": host})
    assert answer.status_code in (421, 400)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7"])
def test_names_that_are_ours(address: str, host: str) -> None:
    assert httpx.get(f"{address}/search", params=ASKED, headers={"host": host}).status_code == 200


def test_a_name_that_was_allowed(locked: str) -> None:
    headers = {"host": "pictures.example:443", "authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{locked}/search", params=ASKED, headers=headers).status_code == 200


def test_pages_of_others(address: str) -> None:
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        answer = httpx.post(f"{address}/ask", json={"question": "red?"}, headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert httpx.post(f"{address}/ask", json={"question": "red?"}, headers={"origin": address}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pictures_on_pages_of_others(address: str, site: str) -> None:
    # <img src="http://127.0.0.1:8000/search?...">: a GET, without an Origin
    headers = {"sec-fetch-site": site}
    assert httpx.get(f"{address}/search", params=ASKED, headers=headers).status_code == 403
    assert httpx.get(f"{address}/", headers=headers).status_code == 200  # by a link
    for own in ("same-origin", "none"):
        assert httpx.get(f"{address}/search", params=ASKED, headers={"sec-fetch-site": own}).status_code == 200


def test_an_origin_that_is_none(address: str) -> None:
    answer = httpx.post(f"{address}/ask", json={"question": "red?"}, headers={"origin": "http://["})
    assert answer.status_code == 403
