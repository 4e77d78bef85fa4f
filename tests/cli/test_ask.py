"""``fwd2bot ask``: answers come from what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run, draw_colours
from PIL import Image


def test_about_an_indexed_picture(fwd2bot: Run, indexed: Path, models: FakeModels) -> None:
    outcome = fwd2bot("ask", "which colour?", "--image", "pictures/blue.png")
    assert (outcome.code, outcome.out) == (0, "blue\n")
    assert models.model.compressed == 0


def test_without_the_picture_files(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures").code == 0
    compressed = models.model.compressed
    for picture in (place / "pictures").iterdir():
        picture.unlink()
    (place / "pictures").rmdir()

    assert fwd2bot("ask", "which colour?", "--image", "pictures/green.png").out == "green\n"
    assert fwd2bot("ask", "which colour?", "--query", "red").out == "red\n"
    assert models.model.compressed == compressed


def test_about_the_best_hit(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("ask", "which colour?", "--query", "green")
    assert outcome.out == "green\n"
    assert "pictures/green.png" in outcome.err


def test_about_several(fwd2bot: Run, indexed: Path) -> None:
    rows = [line.split("\t") for line in fwd2bot("ask", "?", "--query", "red", "--top", "3").out.splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[0][2:] == ["pictures/red.png", "red"]
    assert {row[3] for row in rows} == {"red", "green", "blue"}


def test_the_question_is_the_query_where_none_is_given(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("ask", "what is blue?")
    assert outcome.out == "blue\n"
    assert "a search for the question" in outcome.err


def test_json(fwd2bot: Run, indexed: Path) -> None:
    document = json.loads(fwd2bot("ask", "which?", "--query", "red", "--top", "2", "--json").out)
    assert (document["question"], document["query"]) == ("which?", "red")
    assert [a["rank"] for a in document["answers"]] == [1, 2]
    assert document["answers"][0]["answer"] == "red"
    assert document["answers"][0]["path"] == str(indexed / "pictures" / "red.png")
    assert document["answers"][0]["indexed"] is True


def test_a_picture_outside_the_index_is_compressed_for_once(
    fwd2bot: Run, indexed: Path, tmp_path: Path, models: FakeModels
) -> None:
    picture = tmp_path / "other.png"
    Image.new("RGB", (20, 20), (0, 200, 0)).save(picture)
    outcome = fwd2bot("ask", "which colour?", "--image", picture)
    assert outcome.out == "green\n"
    assert "not in the index" in outcome.err
    assert models.model.compressed == 1
    document = json.loads(fwd2bot("ask", "which colour?", "--image", picture, "--json").out)
    assert document["answers"] == [{"answer": "green", "path": str(picture), "indexed": False}]


def test_a_copy_of_an_indexed_picture_is_known_by_its_bytes(
    fwd2bot: Run, indexed: Path, tmp_path: Path, models: FakeModels
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((indexed / "pictures" / "red.png").read_bytes())
    assert fwd2bot("ask", "which colour?", "--image", copy).out == "red\n"
    assert models.model.compressed == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["?", "--image", "a.png", "--query", "b"], 2, "either"),
        (["  "], 2, "empty"),
        (["?", "--image", "missing.png"], 2, "missing.png"),
        (["?", "--image", "broken.png"], 1, "broken.png"),
    ],
)
def test_refusals(
    fwd2bot: Run,
    indexed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    outcome = fwd2bot("ask", *arguments, "--index", indexed / ".fwd2bot")
    assert outcome.code == code
    assert words in outcome.sentence
    assert outcome.out == ""
