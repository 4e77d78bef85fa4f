"""``fwd2bot search``: what it prints, in every form, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run, draw_colours
from PIL import Image


@pytest.fixture
def drawn(place: Path, fwd2bot: Run) -> Path:
    """A folder of its own, to be changed."""
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures").code == 0
    return place


def test_rows_best_first(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("search", "red")
    assert outcome.code == 0
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert rows[0] == ["1", rows[0][1], rows[0][2], "pictures/red.png"]
    assert float(rows[0][2]) > 0 > float(rows[-1][2])
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
    assert document["terms"] == [{"text": "green", "weight": 1.0}]
    assert document["where"] is None
    assert set(hit) == {"rank", "path", "score", "z", "id", "width", "height", "match", "copies", "metadata"}
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
    for arguments in ([], ["red", "--json", "-0"], ["  "], ["red^0"], ["red", "--where", "yeer = 3"]):
        outcome = fwd2bot("search", *arguments)
        assert outcome.code == 2
        assert outcome.sentence
        assert outcome.out == ""
    assert fwd2bot("search", "red", "--top", "0").code == 2
    assert "missing" in fwd2bot("search", "red", "--html", "missing/page.html").sentence
    assert models.loads == 0


def test_several_terms(fwd2bot: Run, indexed: Path) -> None:
    best = ["-n", "1", "--paths-only"]
    assert fwd2bot("search", "red", "green^3", *best).out.endswith("green.png\n")
    assert fwd2bot("search", "red^3", "--image", "pictures/green.png", *best).out.endswith("red.png\n")
    assert fwd2bot("search", "red", "--image", "pictures/green.png^3", *best).out.endswith("green.png\n")
    assert fwd2bot("search", "red", "green", "--minus", "green^2", *best).out.endswith("red.png\n")
    assert fwd2bot("search", "red", "green", "--minus-image", "pictures/green.png^2", *best).out.endswith("red.png\n")
    document = json.loads(fwd2bot("search", "red^2", "--minus-image", "pictures/green.png", "--json").out)
    assert document["terms"] == [{"text": "red", "weight": 2.0}, {"image": "pictures/green.png", "weight": -1.0}]


def test_a_file_by_its_whole_name_has_no_weight(fwd2bot: Run, drawn: Path) -> None:
    (drawn / "pictures" / "green.png").rename(drawn / "pictures" / "green^2")
    outcome = fwd2bot("search", "--image", "pictures/green^2", "--json")
    assert json.loads(outcome.out)["terms"] == [{"image": "pictures/green^2", "weight": 1.0}]
    assert fwd2bot("search", "--image", "pictures/gone.png^2").code == 2


def test_like_a_picture_of_the_index(fwd2bot: Run, drawn: Path, models: FakeModels) -> None:
    (drawn / "pictures" / "red.png").unlink()
    loads = models.loads
    hits = json.loads(fwd2bot("search", "--like", "pictures/red.png", "--json").out)["hits"]
    assert [Path(hit["path"]).name for hit in hits] == ["blue.png", "green.png"]
    outcome = fwd2bot("search", "--like", hits[0]["id"][:8], "-n", "1")
    assert "blue.png" not in outcome.out
    assert models.loads == loads
    assert "is no picture of the index" in fwd2bot("search", "--like", "pictures/gone.png").sentence


def test_pages_conditions_and_cuts(fwd2bot: Run, indexed: Path) -> None:
    whole = fwd2bot("search", "red").out.splitlines()
    assert [fwd2bot("search", "red", "-n", "1", "--page", str(p)).out.strip() for p in (1, 2, 3)] == whole
    assert fwd2bot("search", "red", "--where", "width > 100").out == ""
    assert len(fwd2bot("search", "red", "--min-z", "1").out.splitlines()) == 1
    assert len(fwd2bot("search", "red", "--percentile", "99").out.splitlines()) == 1
    assert len(fwd2bot("search", "red", "--diverse", "0.5").out.splitlines()) == 3
    outcome = fwd2bot("search", "red", "--where", "wdith = 32")
    assert outcome.code == 2
    assert "there is no column wdith (character 1); Did you mean 'width'." in outcome.sentence


def test_copies_are_put_together(fwd2bot: Run, drawn: Path) -> None:
    (drawn / "pictures" / "again.png").write_bytes((drawn / "pictures" / "red.png").read_bytes())
    assert fwd2bot("index", "pictures").code == 0
    assert len(fwd2bot("search", "red").out.splitlines()) == 4
    outcome = fwd2bot("search", "red", "--collapse")
    assert len(outcome.out.splitlines()) == 3
    assert "(and 1 like it)" in outcome.out.splitlines()[0]


def test_what_is_near_for_a_model_is_put_together_only_where_that_was_measured(
    fwd2bot: Run, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (31, 32), (250, 0, 0)).save(drawn / "pictures" / "near.png")
    assert fwd2bot("index", "pictures").code == 0
    assert "(and 1 like it)" in fwd2bot("search", "red", "--collapse").out
    monkeypatch.setattr("fwd2bot_index.duplicates.DEFAULT_MODEL", "another")
    assert "like it" not in fwd2bot("search", "red", "--collapse").out


def test_rerank(fwd2bot: Run, indexed: Path) -> None:
    rows = [line.split("\t") for line in fwd2bot("search", "red", "--rerank", "--budget", "60").out.splitlines()]
    assert [row[3] for row in rows] == ["0.99", "0.01", "0.01"]
    assert rows[0][4] == "pictures/red.png"
    assert json.loads(fwd2bot("search", "red", "--rerank", "--json").out)["hits"][0]["match"] > 0.9
    for arguments in (
        ["red", "blue", "--rerank"],
        ["--image", "pictures/red.png", "--rerank"],
        ["red", "--rerank", "--diverse", "0.5"],
        ["red", "--budget", "3"],
        ["red", "--rerank", "--budget", "0"],
    ):
        assert fwd2bot("search", *arguments).code == 2


def test_a_picture_but_changed(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("search", "--like", "pictures/red.png", "--but", "blue", "--json")
    document = json.loads(outcome.out)
    assert document["terms"] == [{"like": "pictures/red.png", "weight": 1.0}, {"text": "blue", "weight": 0.85}]
    assert Path(document["hits"][0]["path"]).name == "blue.png"
    outcome = fwd2bot("search", "--like", "pictures/red.png", "--but", "green instead of red", "--json")
    terms = json.loads(outcome.out)["terms"]
    assert [(t.get("text"), t["weight"]) for t in terms[1:]] == [("green", 0.6), ("red", -0.6)]
    assert fwd2bot("search", "red", "--but", "blue").code == 2
    assert fwd2bot("search", "--like", "pictures/red.png", "--but", " ").code == 2
