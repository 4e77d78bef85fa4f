"""``fwd2bot ask``: answers come from what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run, draw_colours
from PIL import Image

from fwd2bot_cli.models import ModelChoice


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


def test_with_another_second_pass(fwd2bot: Run, indexed: Path, models: FakeModels) -> None:
    outcome = fwd2bot("ask", "what?", "--query", "red", "--model", "runs/mine/model")
    assert outcome.code == 0
    assert models.choice == ModelChoice(name="runs/mine/model")
    outcome = fwd2bot("ask", "what?", "--query", "red", "--model", "other", models=FakeModels(fingerprint="fake-2"))
    assert outcome.code != 0
    assert "the first pass of other has other weights or settings" in " ".join(outcome.err.split())


def test_about_the_best_hit(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("ask", "which colour?", "--query", "green")
    assert outcome.out == "green\n"
    assert "pictures/green.png" in outcome.err


def test_about_several(fwd2bot: Run, indexed: Path) -> None:
    rows = [line.split("\t") for line in fwd2bot("ask", "?", "--query", "red", "--top", "3").out.splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert rows[0][3:] == ["pictures/red.png", "red"]
    assert 0.8 < float(rows[0][2]) <= 1
    assert {row[4] for row in rows} == {"red", "green", "blue"}


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
    [answer] = document["answers"]
    assert answer.pop("confidence") > 0.9
    assert answer == {"answer": "green", "path": str(picture), "indexed": False}


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
        (["?", "--image", "a.png", "--top", "2"], 2, "either"),
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


def test_choices(fwd2bot: Run, indexed: Path, tmp_path: Path) -> None:
    ask = ("ask", "is it red?", "--query", "red", "--choices", "yes, no")
    assert fwd2bot(*ask).out == "yes\n"
    rows = [line.split("\t") for line in fwd2bot(*ask, "--top", "3").out.splitlines()]
    assert [row[4] for row in rows] == ["yes", "no", "no"]
    assert all(float(row[2]) > 0.9 for row in rows)
    document = json.loads(fwd2bot(*ask, "--json").out)
    assert document["answers"][0]["confidence"] == pytest.approx(1 / (1 + 2.718281828**-5), abs=1e-3)
    assert fwd2bot("ask", "which?", "--query", "red", "--choices", r"green,a\, b").out == "green\n"
    Image.new("RGB", (20, 20), (0, 200, 0)).save(tmp_path / "other.png")
    assert fwd2bot("ask", "is it red?", "--image", tmp_path / "other.png", "--choices", "yes,no").out == "no\n"


def test_lines_come_one_by_one(fwd2bot: Run, indexed: Path) -> None:
    lines = fwd2bot("ask", "?", "--query", "red", "--top", "3", "--jsonl").out.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["rank"] for a in answers] == [1, 2, 3]
    assert all(len(a["id"]) == 32 and 0 < a["confidence"] <= 1 for a in answers)


def test_several_together(fwd2bot: Run, indexed: Path) -> None:
    ask = ("ask", "is one red?", "--query", "red", "--top", "3", "--together")
    outcome = fwd2bot(*ask)
    assert sorted(outcome.out.split()) == ["blue", "green", "red"]
    assert "It rests on pictures/red.png." in outcome.err
    document = json.loads(fwd2bot(*ask, "--json").out)
    assert document["confidence"] == pytest.approx(0.6065, abs=1e-3)
    assert [p["weight"] for p in document["pictures"]] == [1.0, 0.0, 0.0]
    assert document["rests_on"] == [document["pictures"][0]["id"]]
    assert [json.loads(line) for line in fwd2bot(*ask, "--jsonl").out.splitlines()] == [document]


def test_only_pictures_that_fulfil_a_condition(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("ask", "?", "--query", "red", "--where", "uri LIKE '%green%'")
    assert outcome.out == "green\n"


@pytest.mark.parametrize("form", [(), ("--jsonl",), ("--together",)])
def test_a_condition_that_no_picture_fulfils(fwd2bot: Run, indexed: Path, form: tuple[str, ...]) -> None:
    outcome = fwd2bot("ask", "?", "--query", "red", "--where", "width > 1000000", *form)
    assert (outcome.code, outcome.out) == (0, "")
    assert "Nothing was found to ask about." in outcome.err
    outcome = fwd2bot("ask", "?", "--query", "red", "--where", "width > 1000000", *form[1:], "--json")
    assert json.loads(outcome.out)["answers"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["?", "--query", "red", "--choices", "yes"],
        ["?", "--query", "red", "--choices", "yes,yes"],
        ["?", "--query", "red", "--choices", "yes,"],
        ["?", "--query", "red", "--choices", "yes,no", "--together"],
        ["?", "--query", "red", "--json", "--jsonl"],
        ["?", "--image", "pictures/red.png", "--together"],
        ["?" * 20_000, "--query", "red"],
    ],
)
def test_more_contradictions(fwd2bot: Run, indexed: Path, arguments: list[str], models: FakeModels) -> None:
    assert fwd2bot("ask", *arguments).code == 2
    assert models.loads == 0
