"""What a server has to stand: bodies without end, clients that leave, an index that goes and comes, a full queue."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from fakes import FakeModel
from served_index import add_pictures, serving, until

from fwd2bot_index.config import Manifest
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import ModelError, ObjectStoreError
from fwd2bot_index.places import FolderPlace, Mark
from fwd2bot_index.store import writing
from fwd2bot_index.types import Hit, Replies
from fwd2bot_serve.batching import Scope
from fwd2bot_serve.failures import CancelledError
from fwd2bot_serve.pictures import Side, Thumbnails, decoding
from fwd2bot_serve.settings import Settings

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)
ASKED = {"question": "which colour?", "query": "red", "top": 9}


class HeldModel(FakeModel):
    """Answers only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.asked: list[int] = []

    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        self.asked.append(len(tokens))
        assert self.let.wait(20)
        return super().answer(tokens, prompt, max_new_tokens=max_new_tokens)


class SilentPlace(FolderPlace):
    """A folder that stands for a bucket which answers no longer."""

    is_silent = False

    def mark(self, name: str) -> Mark:
        if self.is_silent:
            raise ObjectStoreError("The bucket does not answer.")
        return super().mark(name)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": RED, "green": GREEN})
    return tmp_path / "index"


def connected(address: str) -> socket.socket:
    to = urlsplit(address)
    return socket.create_connection((to.hostname, to.port), timeout=20)


def posted(path: str, body: dict[str, object]) -> bytes:
    text = json.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    )
    return f"{head}Accept: application/x-ndjson\r\n\r\n{text}".encode()


def files(address: str) -> int:
    return int(httpx.get(f"{address}/status").json()["files"])


class TestBodies:
    def test_without_end(self, address: str) -> None:
        with connected(address) as connection:
            connection.sendall(
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            sent = 0
            try:
                while sent < 2**26:
                    connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                    sent += 0x10000
            except OSError:
                pass  # closed by the server
            assert sent < 2**24
        assert httpx.get(f"{address}/health").status_code == 200

    def test_that_stands_still(self, index: Path) -> None:
        with serving(index, Settings(time_limit=1)) as address, connected(address) as connection:
            connection.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")

    def test_announced_too_large(self, address: str) -> None:
        with connected(address) as connection:
            connection.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")


class TestClientsThatLeave:
    def test_in_mid_answer(self, index: Path) -> None:
        add_pictures(index, index.parent / "pictures", {f"p{i}": (200, i, 0) for i in range(60)})
        model = HeldModel()
        with serving(index, load=lambda manifest: model) as address:
            with connected(address) as connection:
                connection.sendall(posted("/ask", {**ASKED, "top": 62}))
                until(lambda: model.asked == [32])
            until(lambda: "fwd2bot_requests_total{method=\"POST\",path=\"/ask\",status=\"499\"}"
                  in httpx.get(f"{address}/metrics").text)  # fmt: skip
            model.let.set()
            until(lambda: "fwd2bot_busy_requests 0.0" in httpx.get(f"{address}/metrics").text)
            assert model.asked == [32]  # the other 30 were never asked
            assert httpx.post(f"{address}/ask", json=ASKED).status_code == 200

    def test_whose_pictures_wait_to_be_decoded(self) -> None:
        scope = Scope()
        scope.cancel()
        with scope(), pytest.raises(CancelledError):
            with decoding():
                raise AssertionError("decoded for nobody")

    def test_half_a_request(self, address: str) -> None:
        with connected(address) as connection:
            connection.sendall(b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        assert httpx.get(f"{address}/health").status_code == 200


class TestTheIndex:
    def test_grows(self, index: Path) -> None:
        with serving(index) as address:
            assert files(address) == 2
            add_pictures(index, index.parent / "pictures", {"blue": BLUE})
            first = httpx.get(f"{address}/search", params={"query": "blue"}).json()["hits"][0]
            assert first["path"].endswith("blue.png")
            assert files(address) == 3

    def test_is_being_written(self, index: Path) -> None:
        with serving(index) as address:
            with writing(index):
                assert httpx.get(f"{address}/status").json()["writing"]
                answer = httpx.post(f"{address}/annotate", json={"question": "red?", "column": "red"})
                assert (answer.status_code, answer.json()["error"]) == (409, "busy")
                assert httpx.get(f"{address}/search", params={"query": "red"}).status_code == 200
            assert not httpx.get(f"{address}/status").json()["writing"]

    def test_goes_and_comes_back(self, index: Path, tmp_path: Path) -> None:
        with serving(index) as address:
            shutil.rmtree(index)
            for path in ("/search?query=red", "/pictures", "/status", "/columns", f"/images/{'0' * 32}"):
                answer = httpx.get(address + path)
                assert answer.status_code == 503, path
                assert answer.json()["error"] == "no-index"
                assert str(index) in answer.json()["detail"]
                assert answer.headers["retry-after"]
            health = httpx.get(f"{address}/health")
            assert (health.status_code, health.json()["status"]) == (503, "no-index")
            add_pictures(index, tmp_path / "others", {"blue": BLUE})
            assert httpx.get(f"{address}/health").status_code == 200
            [hit] = httpx.get(f"{address}/search", params={"query": "red"}).json()["hits"]
            assert hit["path"].endswith("blue.png")

    def test_its_store_does_not_answer(self, index: Path) -> None:
        place = SilentPlace(index)
        with serving(place) as address:
            place.is_silent = True
            for path in ("/search?query=red", "/pictures", "/status", f"/images/{'0' * 32}"):
                answer = httpx.get(address + path)
                assert answer.json() == {"detail": "The bucket does not answer.", "error": "store"}, path
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            # what was wrong with the request stays wrong
            assert httpx.get(f"{address}/search", params={"query": ""}).json()["error"] == "input"
            health = httpx.get(f"{address}/health")
            assert (health.status_code, health.json()["status"]) == (503, "store")
            place.is_silent = False
            assert httpx.get(f"{address}/health").status_code == 200

    def test_holds_near_copies(self, index: Path) -> None:
        """What is near was measured for the bundled model only."""
        add_pictures(index, index.parent / "pictures", {"reddish": (249, 10, 10)})
        with serving(index) as address:
            answer = httpx.get(f"{address}/search", params={"query": "red", "collapse": True})
            assert len(answer.json()["hits"]) == 3

    def test_is_empty(self, index: Path) -> None:
        from fwd2bot_index.store import IndexStore

        store = IndexStore.open(index)
        store.remove([row.uri for row in store.rows_by_id("")])
        with serving(index) as address:
            answer = httpx.get(f"{address}/search", params={"query": "red"})
            assert (answer.status_code, answer.json()["error"]) == (409, "empty")
            assert httpx.get(f"{address}/pictures").json() == {"pictures": []}

    def test_loses_data(self, index: Path) -> None:
        with serving(index) as address:
            shutil.rmtree(index / "tokens.lance")
            answer = httpx.post(f"{address}/ask", json=ASKED)
            assert (answer.status_code, answer.json()["error"]) == (503, "index")
            assert httpx.get(f"{address}/search", params={"query": "red"}).status_code == 200

    def test_only_what_was_indexed_is_shown(self, index: Path, tmp_path: Path) -> None:
        """Another file that has taken the place of a picture is none of the corpus."""
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret")
        path = tmp_path / "pictures" / "red.png"
        id_ = add_pictures(index, tmp_path / "pictures", {"red": RED})["red"]
        with serving(index) as address:
            for put in (path.unlink, lambda: path.symlink_to(secret)):
                put()
                for of in ("images", "thumbnails"):
                    answer = httpx.get(f"{address}/{of}/{id_}")
                    assert answer.status_code == 404
                    assert "since it was indexed" in answer.json()["detail"]
            assert httpx.post(f"{address}/ask", json={**ASKED, "query": None, "ids": [id_]}).status_code == 200


class TestTheModel:
    def test_is_being_loaded(self, index: Path) -> None:
        let = threading.Event()

        def load(manifest: Manifest) -> FakeModel:
            assert let.wait(20)
            return FakeModel()

        with serving(index, load=load, wait=False) as address:
            until(lambda: _reachable(address))
            health = httpx.get(f"{address}/health")
            assert (health.status_code, health.json()["status"]) == (503, "loading")
            answer = httpx.post(f"{address}/ask", json=ASKED)
            assert (answer.status_code, answer.json()["error"]) == (503, "loading")
            assert answer.headers["retry-after"]
            assert httpx.get(f"{address}/pictures").status_code == 200
            let.set()
            until(lambda: httpx.get(f"{address}/health").status_code == 200)
            assert httpx.post(f"{address}/ask", json=ASKED).status_code == 200

    def test_cannot_be_loaded(self, index: Path) -> None:
        def load(manifest: Manifest) -> FakeModel:
            raise ModelError("There is no model fake.")

        with serving(index, load=load, wait=False) as address:
            until(lambda: _reachable(address))
            until(lambda: httpx.get(f"{address}/health").json()["detail"] == "There is no model fake.")
            assert httpx.get(f"{address}/search", params={"query": "red"}).json()["error"] == "model"

    def test_is_tried_again(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fwd2bot_serve.served._RETRY", 0.1)
        failures = [ModelError("The hub does not answer."), ModelError("The hub does not answer.")]

        def load(manifest: Manifest) -> FakeModel:
            if failures:
                raise failures.pop()
            return FakeModel()

        with serving(index, load=load) as address:
            assert httpx.post(f"{address}/ask", json=ASKED).status_code == 200

    def test_takes_too_long(self, index: Path) -> None:
        model = HeldModel()
        with serving(index, Settings(time_limit=1), load=lambda manifest: model) as address:
            answer = httpx.post(f"{address}/ask", json=ASKED)
            assert (answer.status_code, answer.json()["error"]) == (504, "time-limit")
            model.let.set()
            assert httpx.post(f"{address}/ask", json=ASKED).status_code == 200

    def test_has_too_much_to_do(self, index: Path) -> None:
        model = HeldModel()
        settings = Settings(max_requests=3, threads=4)
        with serving(index, settings, load=lambda manifest: model) as address, ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(httpx.post, f"{address}/ask", json=ASKED, timeout=20) for _ in range(3)]
            until(lambda: "fwd2bot_busy_requests 3.0" in httpx.get(f"{address}/metrics").text)
            answer = httpx.post(f"{address}/ask", json=ASKED)
            assert (answer.status_code, answer.json()["error"]) == (503, "overloaded")
            assert answer.headers["retry-after"]
            model.let.set()
            assert [a.result().status_code for a in asked] == [200] * 3

    def test_stops_with_answers_under_way(self, index: Path) -> None:
        model = HeldModel()
        with serving(index, load=lambda manifest: model) as address, connected(address) as connection:
            connection.sendall(posted("/ask", ASKED))
            until(lambda: bool(model.asked))
            started = time.monotonic()
            threading.Timer(3, model.let.set).start()
        assert time.monotonic() - started < 10


class TestAnnotate:
    BODY = {"question": "is it red?", "column": "is_red", "choices": ["yes", "no"]}  # noqa: RUF012

    def test_becomes_a_column(self, index: Path) -> None:
        with serving(index) as address:
            lines = [json.loads(line) for line in httpx.post(f"{address}/annotate", json=self.BODY).text.splitlines()]
            assert lines[0] == {"done": 2, "total": 2}
            assert (lines[-1]["answered"], lines[-1]["counts"]) == (2, {"yes": 1, "no": 1})
            [hit] = httpx.get(f"{address}/search", params={"query": "red", "where": "is_red"}).json()["hits"]
            assert hit["metadata"]["is_red"]
            kinds = {c["name"]: c["kind"] for c in httpx.get(f"{address}/columns").json()["columns"]}
            assert kinds["is_red"] == "boolean"

    @pytest.mark.parametrize("column", ["uri", "a b", "id; drop", "x" * 201])
    def test_names_that_are_none(self, index: Path, column: str) -> None:
        with serving(index) as address:
            answer = httpx.post(f"{address}/annotate", json={**self.BODY, "column": column})
            assert (answer.status_code, answer.json()["error"]) == (422, "input")

    def test_who_hangs_up_stops_it_and_keeps_what_is_done(self, index: Path) -> None:
        add_pictures(index, index.parent / "pictures", {f"p{i}": (200, i, 0) for i in range(150)})
        model = HeldModel()
        with serving(index, load=lambda manifest: model) as address:
            with connected(address) as connection:
                connection.sendall(posted("/annotate", {"question": "colour?", "column": "colour"}))
                until(lambda: bool(model.asked))
            until(lambda: 'path="/annotate",status="499"' in httpx.get(f"{address}/metrics").text)
            model.let.set()
            until(lambda: not httpx.get(f"{address}/status").json()["writing"])
            answered = httpx.get(f"{address}/pictures", params={"where": "colour IS NOT NULL", "top": 500}).json()
            assert len(answered["pictures"]) == model.asked[0]


def test_small_copies_are_looked_up_while_others_are_given_out(index: Path) -> None:
    corpus = Corpus.open(index, model=FakeModel())
    thumbnails = Thumbnails()
    id_ = corpus.search("red", top=1)[0].id
    first = thumbnails.of(corpus, id_, Side.TINY)

    class Slow(Corpus):
        def files(self, id_: str) -> list[Hit]:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(thumbnails.of, corpus, id_, Side.TINY).result(timeout=5) == first
            return super().files(id_)

    assert thumbnails.of(Slow.open(index, model=FakeModel()), id_, Side.TINY) == first


def _reachable(address: str) -> bool:
    try:
        return bool(httpx.get(f"{address}/health").status_code)
    except httpx.HTTPError:
        return False
