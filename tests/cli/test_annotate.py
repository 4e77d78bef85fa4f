"""``fwd2bot annotate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run, draw_colours

from fwd2bot_cli.models import ModelChoice
from fwd2bot_index.store import writing


@pytest.fixture
def index(place: Path, fwd2bot: Run) -> Path:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures").code == 0
    for picture in (place / "pictures").iterdir():
        picture.unlink()  # the files are not needed
    return place / ".fwd2bot"


def test_a_column_that_can_be_filtered(index: Path, fwd2bot: Run) -> None:
    outcome = fwd2bot("annotate", "is it red?", "--choices", "yes,no", "--column", "is_red")
    assert outcome.code == 0
    assert outcome.out == "no\t2\nyes\t1\n"
    assert "3 files answered; 0 had their answer before." in outcome.err
    found = fwd2bot("search", "green", "--where", "is_red", "--paths-only").out
    assert found.endswith("red.png\n")
    assert found.count("\n") == 1
    [hit] = json.loads(fwd2bot("search", "green", "--where", "is_red", "--json").out)["hits"]
    assert hit["metadata"]["is_red"] is True
    assert hit["metadata"]["is_red_confidence"] > 0.9
    assert "question of is_red\tis it red?" in fwd2bot("info").out
    assert json.loads(fwd2bot("info", "--json").out)["annotations"]["is_red"]["choices"] == ["yes", "no"]
    assert fwd2bot("verify").code == 0


def test_with_another_second_pass(index: Path, fwd2bot: Run, models: FakeModels) -> None:
    assert fwd2bot("annotate", "which?", "--column", "which", "--model", "runs/mine/model").code == 0
    assert models.choice == ModelChoice(name="runs/mine/model")


def test_json(index: Path, fwd2bot: Run) -> None:
    document = json.loads(fwd2bot("annotate", "which?", "--column", "colour", "--json").out)
    assert (document["answered"], document["already"], document["interrupted"]) == (3, 0, False)
    assert document["counts"] == {"red": 1, "green": 1, "blue": 1}
    document = json.loads(fwd2bot("annotate", "which?", "--column", "colour", "--json").out)
    assert (document["answered"], document["already"]) == (0, 3)


def test_what_makes_no_sense_loads_no_model(index: Path, fwd2bot: Run, models: FakeModels) -> None:
    loads = models.loads
    for arguments in (
        [" ", "--column", "a"],
        ["a?", "--column", "uri"],
        ["a?", "--column", "a b"],
        ["a?", "--column", "a", "--choices", "yes"],
    ):
        assert fwd2bot("annotate", *arguments).code == 2
    assert fwd2bot("annotate", "a?").code == 2
    with writing(index):
        outcome = fwd2bot("annotate", "a?", "--column", "a")
    assert outcome.code == 1
    assert "Another process is writing" in outcome.sentence
    assert models.loads == loads


def test_ctrl_c(index: Path, fwd2bot: Run, models: FakeModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(models.model, "answer", interrupted)
        outcome = fwd2bot("annotate", "which?", "--column", "colour")
    assert outcome.code == 130
    assert "the same command goes on from here" in outcome.err
    assert "3 files answered" in fwd2bot("annotate", "which?", "--column", "colour").err
