"""``fwd2bot search``: what it prints, in every form, and where."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import FakeModels, Run


def test_rows_best_first(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("search", "red")
    assert outcome.code == 0
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert rows[0] == ["1", rows[0][1], "pictures/red.png"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.99


def test_top(fwd2bot: Run, indexed: Path) -> None:
    assert len(fwd2bot("search", "red", "--top", "2").out.splitlines()) == 2


def test_by_picture(fwd2bot: Run, indexed: Path) -> None:
    assert fwd2bot("search", "--image", "pictures/blue.png", "-n", "1").out.endswith("pictures/blue.png\n")


def test_paths_are_relative_to_the_current_folder(fwd2bot: Run, indexed: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(indexed / "pictures")  # the index is found upward
    assert fwd2bot("search", "green", "-n", "1").out.endswith("\tgreen.png\n")


def test_json_is_one_document(fwd2bot: Run, indexed: Path) -> None:
    document = json.loads(fwd2bot("search", "green", "--json", "-n", "1").out)
    (hit,) = document["hits"]
    assert document["query"] == "green"
    assert document["image"] is None
    assert set(hit) == {"rank", "path", "score", "id", "width", "height", "metadata"}
    assert (hit["rank"], hit["path"]) == (1, str(indexed / "pictures" / "green.png"))
    assert (hit["width"], hit["height"]) == (32, 24)


def test_paths_only(fwd2bot: Run, indexed: Path) -> None:
    paths = [str(indexed / "pictures" / name) for name in ("red.png",)]
    assert fwd2bot("search", "red", "-n", "1", "--paths-only").out == "".join(p + "\n" for p in paths)
    for null in (["--paths-only", "-0"], ["-0"], ["--null"]):
        assert fwd2bot("search", "red", "-n", "1", *null).out == "".join(p + "\0" for p in paths)


def test_html_page(fwd2bot: Run, indexed: Path, tmp_path: Path) -> None:
    outcome = fwd2bot("search", "red <b>", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "page.html" in outcome.err
    assert len(outcome.out.splitlines()) == 3  # the rows are still on stdout
    assert page.count("data:image/jpeg;base64,") == 3
    assert "red &lt;b&gt;" in page


def test_quiet_keeps_the_data(fwd2bot: Run, indexed: Path, tmp_path: Path) -> None:
    for arguments in (["--quiet", "search", "red"], ["search", "red", "--quiet"]):
        outcome = fwd2bot(*arguments, "--html", tmp_path / "page.html")
        assert outcome.err == ""
        assert len(outcome.out.splitlines()) == 3


def test_contradictions_are_refused(fwd2bot: Run, indexed: Path, models: FakeModels) -> None:
    for arguments in ([], ["red", "--image", "pictures/red.png"], ["red", "--json", "-0"], ["  "]):
        outcome = fwd2bot("search", *arguments)
        assert outcome.code == 2
        assert outcome.sentence
        assert outcome.out == ""
    assert fwd2bot("search", "red", "--top", "0").code == 2
    assert "missing" in fwd2bot("search", "red", "--html", "missing/page.html").sentence
    assert models.loads == 0
