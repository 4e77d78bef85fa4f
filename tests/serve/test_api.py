"""Every endpoint, over a real connection, with a model whose answers are known."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pictures import encoded, noise, plain
from PIL import Image

from fwd2bot_serve.metrics import Metrics

LINES = {"accept": "application/x-ndjson"}


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = next(v for k, v in answer.json().items() if k in ("hits", "answers", "pictures"))
    return [Path(hit["path"]).stem for hit in found]


def refused(answer: httpx.Response, status: int, error: str) -> str:
    """The sentence."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"] == error
    assert set(body) == {"detail", "error"}
    sentence: str = body["detail"]
    assert sentence.endswith("."), sentence
    return sentence


class TestSearch:
    def test_words_and_columns(self, http: httpx.Client) -> None:
        answer = http.get("/search", params={"query": "something green", "top": 2})
        first = answer.json()["hits"][0]
        assert names(answer)[0] == "green"
        assert first["metadata"] == {"year": 2021, "place": "Ulm"}
        assert (first["width"], first["height"], first["rank"]) == (32, 24, 1)
        assert answer.json()["terms"] == [{"text": "something green", "weight": 1.0}]

    def test_weights_minus_like_and_where(self, http: httpx.Client, ids: dict[str, str]) -> None:
        assert names(http.get("/search", params={"query": ["red", "blue^3"]}))[0] == "blue"
        assert names(http.get("/search", params={"query": "red^-1"}))[-1] in ("red", "dark")
        assert names(http.get("/search", params={"minus": "green"}))[-1] == "green"
        like = names(http.get("/search", params={"like": ids["red"]}))
        assert like[0] == "dark"
        assert "red" not in like
        changed = http.get("/search", params={"like": ids["red"], "but": "without people"}).json()
        assert changed["terms"] == [{"like": ids["red"], "weight": 1.0}, {"text": "people", "weight": -0.6}]
        assert names(http.get("/search", params={"query": "red", "where": "year > 2020 AND place = 'Bonn'"})) == [
            "blue"
        ]

    def test_pages_fit_together(self, http: httpx.Client) -> None:
        whole = names(http.get("/search", params={"query": "red"}))
        pages = [names(http.get("/search", params={"query": "red", "top": 1, "page": p})) for p in (1, 2, 3, 4)]
        assert [name for page in pages for name in page] == whole
        assert names(http.get("/search", params={"query": "red", "top": 1, "page": 5})) == []

    def test_everything_at_once(self, http: httpx.Client) -> None:
        params = {"query": "red", "diverse": 0.5, "collapse": True, "percentile": 10, "min_z": -3}
        assert names(http.get("/search", params=params))[0] == "red"
        answer = http.get("/search", params={"query": "red", "rerank": True, "budget": 5})
        assert answer.json()["hits"][0]["match"] > 0.5

    def test_own_pictures_find_themselves(self, http: httpx.Client, pictures: Path) -> None:
        image = base64.b64encode((pictures / "blue.png").read_bytes()).decode()
        for form in (image, f"data:image/png;base64,{image}"):
            answer = http.post("/search", json={"terms": [{"image": form}]})
            assert names(answer)[0] == "blue"
            assert answer.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
            assert answer.json()["terms"] == [{"image": True, "weight": 1.0}]
        weighed = [{"image": image, "weight": -1}, {"text": "red", "weight": 0.5}]
        assert names(http.post("/search", json={"terms": weighed}))[-1] == "blue"

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({}, "Search for something"),
            ({"query": ""}, "empty"),
            ({"query": "red^0"}, "weight"),
            ({"query": "red", "where": "height >"}, "height >"),
            ({"query": "red", "where": "colour = 3"}, "colour"),
            ({"query": "red", "top": 0}, "top"),
            ({"query": "red", "min_z": "nan"}, "min_z"),
            ({"query": "red", "budget": 3}, "rerank"),
            ({"like": "../../etc/passwd"}, "no picture of the index"),
            ({"like": "\0"}, "no picture of the index"),
            ({"but": "at night"}, "like"),
        ],
    )
    def test_what_makes_no_sense_is_told(self, http: httpx.Client, params: dict[str, Any], words: str) -> None:
        assert words in refused(http.get("/search", params=params), 422, "input")

    def test_what_a_body_cannot_say(self, http: httpx.Client) -> None:
        two = {"terms": [{"text": "red", "like": "x"}]}
        assert "one text, one picture" in refused(http.post("/search", json=two), 422, "input")
        unknown = {"terms": [{"text": "red"}], "tpo": 3}
        assert "tpo" in refused(http.post("/search", json=unknown), 422, "input")
        broken = http.post("/search", content='{"terms":', headers={"content-type": "application/json"})
        assert "no JSON, from its character 10 on" in refused(broken, 422, "input")
        for text in ("{", "[]", '{"terms": [{"text": "\\ud800"}]}', "\xff"):
            answer = http.post("/search", content=text, headers={"content-type": "application/json"})
            refused(answer, 422, "input")
        form = http.post(
            "/search", content=json.dumps({"terms": [{"text": "a"}]}), headers={"content-type": "text/plain"}
        )
        refused(form, 422, "input")


class TestHostilePictures:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (plain((1, 2, 3), size=(1100, 1000)), "limit is 1 million"),
            (plain((1, 2, 3))[:60], "cannot be"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
            (b"MZ" * 100, "not an image"),
            (b"", "empty"),
        ],
        ids=["bomb", "truncated", "svg", "program", "nothing"],
    )
    def test_refused_with_a_sentence(self, http: httpx.Client, data: bytes, words: str) -> None:
        body = {"terms": [{"image": base64.b64encode(data).decode()}]}
        assert words in refused(http.post("/search", json=body), 422, "image")

    def test_no_base64(self, http: httpx.Client) -> None:
        assert "base64" in refused(http.post("/search", json={"terms": [{"image": "§§"}]}), 422, "image")

    def test_a_large_one_is_not_read_to_its_end(self, http: httpx.Client) -> None:
        data = base64.b64encode(encoded(noise((1000, 600)), "BMP")).decode()
        refused(http.post("/search", json={"terms": [{"image": data}]}), 413, "too-large")
        assert http.get("/health").status_code == 200


class TestAsk:
    def test_about_what_a_search_finds(self, http: httpx.Client) -> None:
        answer = http.post("/ask", json={"question": "which colour?", "query": "green", "top": 2})
        assert names(answer)[0] == "green"
        assert answer.json()["answers"][0]["answer"] == "green"
        assert 0.8 < answer.json()["answers"][0]["confidence"] <= 1

    def test_about_these(self, http: httpx.Client, ids: dict[str, str]) -> None:
        wanted = [ids["blue"], ids["red"], ids["green"]]
        answer = http.post("/ask", json={"question": "which colour?", "ids": wanted})
        assert [a["answer"] for a in answer.json()["answers"]] == ["blue", "red", "green"]
        assert [a["id"] for a in answer.json()["answers"]] == wanted

    def test_choices(self, http: httpx.Client, ids: dict[str, str]) -> None:
        body = {"question": "is it red?", "ids": [ids["red"], ids["blue"]], "choices": ["yes", "no"]}
        assert [a["answer"] for a in http.post("/ask", json=body).json()["answers"]] == ["yes", "no"]

    def test_lines(self, http: httpx.Client, ids: dict[str, str]) -> None:
        body = {"question": "which colour?", "ids": list(ids.values())}
        answer = http.post("/ask", json=body, headers=LINES)
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["answer"] for line in lines] == ["red", "green", "blue", "red"]
        assert lines == http.post("/ask", json=body).json()["answers"]

    def test_together(self, http: httpx.Client, ids: dict[str, str]) -> None:
        body = {"question": "where is green?", "ids": [ids["red"], ids["green"]], "together": True}
        answer = http.post("/ask", json=body).json()
        assert answer["answer"] == "red green"
        assert answer["rests_on"] == [ids["green"]]
        assert [p["weight"] for p in answer["pictures"]] == [0, 1]
        [line] = http.post("/ask", json=body, headers=LINES).text.splitlines()
        assert json.loads(line) == answer

    @pytest.mark.parametrize(
        "more",
        [
            {"question": "  "},
            {"ids": ["0" * 32]},
            {"ids": ["../../etc/passwd"]},
            {"ids": []},
            {"choices": ["yes"]},
            {"choices": ["yes", "yes"]},
            {"choices": ["yes", "no"], "together": True},
            {"ids": ["0" * 32], "query": "red"},
            {"where": "nothing = 1"},
        ],
    )
    def test_what_makes_no_sense_is_told(self, http: httpx.Client, more: dict[str, Any]) -> None:
        for headers in ({}, LINES):  # a stream has not begun when this is seen
            refused(http.post("/ask", json={"question": "which colour?", **more}, headers=headers), 422, "input")


class TestPictures:
    def test_the_newest_first(self, http: httpx.Client) -> None:
        assert sorted(names(http.get("/pictures"))) == ["blue", "dark", "green", "red"]
        pages = [names(http.get("/pictures", params={"top": 3, "page": p})) for p in (1, 2, 3)]
        assert [*pages[0], *pages[1]] == names(http.get("/pictures"))
        assert pages[2] == []
        assert names(http.get("/pictures", params={"where": "year = 2022"})) == ["blue"]

    def test_one(self, http: httpx.Client, ids: dict[str, str], pictures: Path) -> None:
        one = http.get(f"/pictures/{ids['blue']}").json()
        assert one["paths"] == [str(pictures / "blue.png")]
        assert one["metadata"] == {"year": 2022, "place": "Bonn"}

    def test_kept(self, http: httpx.Client, ids: dict[str, str]) -> None:
        kept = http.get(f"/pictures/{ids['blue']}/kept").json()
        assert (kept["caption"], kept["rank"], kept["among"]) == ("blue", 1, 4)

    def test_its_file_and_small(self, http: httpx.Client, ids: dict[str, str], pictures: Path) -> None:
        whole = http.get(f"/images/{ids['red']}")
        assert whole.content == (pictures / "red.png").read_bytes()
        assert whole.headers["content-type"] == "image/png"
        assert "immutable" in whole.headers["cache-control"]
        for side in (160, 1280):
            small = http.get(f"/thumbnails/{ids['red']}", params={"side": side})
            assert small.headers["content-type"] == "image/jpeg"
            assert small.content[:3] == b"\xff\xd8\xff"
        assert http.get(f"/thumbnails/{ids['red']}", params={"side": 100_000}).status_code == 422

    @pytest.mark.parametrize("of", ["images", "thumbnails", "pictures"])
    @pytest.mark.parametrize(
        "name",
        ["..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "../../../etc/passwd", "0" * 31, "0" * 33, "A" * 32, "%00"],
    )
    def test_no_path_is_taken_for_an_id(self, address: str, of: str, name: str) -> None:
        import socket
        from urllib.parse import urlsplit

        to = urlsplit(address)  # by hand, because clients tidy paths
        with socket.create_connection((to.hostname, to.port)) as connection:
            request = f"GET /{of}/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"404", b"422")
        assert b"root:" not in answer

    def test_an_unknown_id(self, http: httpx.Client) -> None:
        for of in ("images", "thumbnails", "pictures"):
            refused(http.get(f"/{of}/{'0' * 32}"), 404, "not-found")


class TestServer:
    def test_columns(self, http: httpx.Client) -> None:
        columns = {c["name"]: c for c in http.get("/columns").json()["columns"]}
        assert list(columns) == ["year", "place", "width", "height"]
        assert (columns["year"]["kind"], columns["year"]["least"], columns["year"]["most"]) == ("number", 2020, 2023)
        assert columns["place"]["values"] == {"Ulm": 2, "Bonn": 1}

    def test_status(self, http: httpx.Client) -> None:
        status = http.get("/status").json()
        assert (status["files"], status["pictures"], status["skipped"]) == (4, 4, 0)
        assert (status["writing"], status["read_only"], status["model_state"]) == (False, True, "ready")

    def test_metrics(self, http: httpx.Client) -> None:
        http.get("/search", params={"query": "red"})
        text = http.get("/metrics").text
        assert 'fwd2bot_requests_total{method="GET",path="/search",status="200"}' in text
        assert 'fwd2bot_model_rows_count{kind="embed_text"}' in text
        assert "fwd2bot_waiting_rows 0.0" in text
        assert "process_resident_memory_bytes" in text

    def test_metrics_have_no_more_methods_than_there_are(self) -> None:
        metrics = Metrics()
        for method in ("GET", "BREW", "WHEN"):
            metrics.request(method, "other", 404, 0.1)
        text = metrics.text().decode()
        assert 'method="GET"' in text
        assert 'method="other",path="other",status="404"} 2.0' in text
        assert "BREW" not in text

    def test_openapi_has_examples(self, http: httpx.Client) -> None:
        api = http.get("/openapi.json").json()
        assert {"/search", "/ask", "/annotate", "/images/{id}", "/thumbnails/{id}", "/health", "/metrics"} <= set(
            api["paths"]
        )
        for name in ("SearchBody", "AskBody", "AnnotateBody"):
            assert api["components"]["schemas"][name]["examples"], name

    def test_read_only(self, http: httpx.Client) -> None:
        answer = http.post("/annotate", json={"question": "red?", "column": "red"})
        assert "--read-only" in refused(answer, 403, "forbidden")

    def test_what_is_not_there(self, http: httpx.Client) -> None:
        refused(http.get("/nothing"), 404, "not-found")
        refused(http.get("/page/../app.py"), 404, "not-found")
        refused(http.get("/page/..%2fapp.py"), 404, "not-found")
        refused(http.delete("/search"), 405, "request")
        assert http.delete("/search").headers["allow"] == "GET, POST"

    def test_the_page_runs_nothing_of_others(self, http: httpx.Client) -> None:
        page = http.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert http.get("/search", params={"query": "a"}).headers["x-content-type-options"] == "nosniff"


def test_the_size_of_a_picture_on_the_wire_is_no_limit_on_its_side() -> None:
    """A picture of one colour is small at any size, so the limit on bytes says nothing of memory."""
    assert len(encoded(Image.new("L", (1100, 1000)), "PNG")) < 2**20
