"""``fwd2bot demo``: twice in a row, with the truth beside the answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run

from fwd2bot_cli.main import main
from fwd2bot_cli.session import Session
from fwd2bot_cli.tour import NUM_SCENES
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH
from fwd2bot_index.scenes import COLORS


def test_twice_in_a_row(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    first = fwd2bot("demo")
    assert first.code == 0, first.err
    assert len(list((place / "fwd2bot-demo" / "scenes").glob("*.png"))) == NUM_SCENES
    assert first.out.count('search "a ') == 3 + 1  # three searches, and what to type next
    assert len(re.findall(r"^fwd2bot-demo/scenes/scene-\d\d\.png\t.*\?\t", first.out, re.MULTILINE)) == 3
    page = (place / "fwd2bot-demo" / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 * 5 + 3
    assert page.count("truth: ") == 3

    compressed = models.model.compressed
    second = fwd2bot("demo")
    assert second.code == 0
    assert models.model.compressed == compressed  # the scenes were left alone
    assert re.sub(r"in [\d.]+ s", "", second.out) == re.sub(r"in [\d.]+ s", "", first.out)

    # another model, as after an upgrade: the demo's own index is made anew
    third = fwd2bot("demo", models=FakeModels("fake-2"))
    assert third.code == 0
    assert list(place.iterdir()) == [place / "fwd2bot-demo"]


def test_what_is_searched_and_asked(fwd2bot: Run, place: Path) -> None:
    """The demo is the same for everybody: its searches grow harder, and its truths are those of its scenes."""
    out = fwd2bot("demo").out
    one, two, related = re.findall(r'^search "(.*)" --rerank \(true of [1-9]\d* of 60 scenes\)$', out, re.MULTILINE)
    assert one.count("a ") == 1
    assert " and " in two
    assert re.search("left of|right of|above|below", related)
    truths = [line.split("\t")[3] for line in out.splitlines() if "?\t" in line]
    assert truths[0].isdigit()
    assert truths[1] in COLORS
    assert truths[2] in ("yes", "no")


def test_other_peoples_folders_are_left_alone(fwd2bot: Run, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("dear")
    outcome = fwd2bot("demo", "--folder", "mine")
    assert outcome.code == 2
    assert "mine" in outcome.sentence
    assert [p.name for p in (place / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)
def test_the_first_impression(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes first is true of what was searched for, and what is asked is answered right."""
    assert main(["demo", "--quiet"], Session()) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in rows if row[0] == "1"] == ["true"] * 3
    answers = [row[2:] for row in rows if row[1:] and row[1].endswith("?")]
    assert len(answers) == 3
    assert all(given == true for given, true in answers)
