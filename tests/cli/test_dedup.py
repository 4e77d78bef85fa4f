"""``fwd2bot dedup``: what it lists, in every form, and that nothing is ever lost by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_helpers import COLOURS, FakeModels, Outcome, Run, draw_colours
from PIL import Image

from fwd2bot_cli.main import main
from fwd2bot_cli.session import Session
from fwd2bot_index.store import IndexStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pictures``: three colours, blue twice, red as a larger JPEG too, and a broken file."""
    folder = tmp_path_factory.mktemp("dedup") / "made"
    folder.mkdir()
    pictures = folder / "pictures"
    draw_colours(pictures)
    shutil.copy(pictures / "blue.png", pictures / "blue again.png")
    Image.new("RGB", (64, 48), (249, 11, 10)).save(pictures / "red-large.jpg")
    (pictures / "broken.png").write_bytes(b"no picture")
    shutil.copy(pictures / "broken.png", pictures / "broken too.png")
    arguments = ["index", str(pictures), "--index", str(folder / ".fwd2bot"), "--quiet"]
    assert main(arguments, Session(models=FakeModels())) == 3
    return folder


@pytest.fixture
def pictures(made: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pictures, to be read only."""
    monkeypatch.chdir(made)
    return made / "pictures"


def test_groups_with_the_kept_one_first(fwd2bot: Run, pictures: Path, models: FakeModels) -> None:
    outcome = fwd2bot("dedup")
    assert outcome.code == 0
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    bytes_of = {path.name: str(path.stat().st_size) for path in pictures.iterdir()}
    similarity = lines[3][1]
    assert lines == [
        ["1", "kept", "32x24", bytes_of["blue.png"], "pictures/blue.png"],
        ["1", "exact", "32x24", bytes_of["blue again.png"], "pictures/blue again.png"],
        ["2", "kept", "64x48", bytes_of["red-large.jpg"], "pictures/red-large.jpg"],
        ["2", similarity, "32x24", bytes_of["red.png"], "pictures/red.png"],
    ]
    assert 0.995 <= float(similarity) <= 1
    assert "Groups: 2. Superfluous files: 2;" in outcome.err
    assert models.loads == 0


def test_json(fwd2bot: Run, pictures: Path) -> None:
    document = json.loads(fwd2bot("dedup", "--json", "--threshold", "0.9").out)
    blue, red = document.pop("groups")
    spare = (pictures / "blue again.png").stat().st_size + (pictures / "red.png").stat().st_size
    assert document == {
        "index": str(pictures.parent / ".fwd2bot"),
        "threshold": 0.9,
        "counts": {"files": 5, "groups": 2, "duplicates": 2, "exact": 1, "near": 1, "spare_bytes": spare},
    }
    assert blue["kept"] == {
        "path": str(pictures / "blue.png"),
        "id": blue["kept"]["id"],
        "width": 32,
        "height": 24,
        "bytes": (pictures / "blue.png").stat().st_size,
    }
    [copy] = blue["duplicates"]
    assert (copy["path"], copy["id"], copy["similarity"]) == (
        str(pictures / "blue again.png"),
        blue["kept"]["id"],
        pytest.approx(1),
    )
    [near] = red["duplicates"]
    assert near["id"] != red["kept"]["id"]
    assert 0.99 < near["similarity"] <= 1


def test_a_lower_threshold_takes_more(fwd2bot: Run, pictures: Path) -> None:
    assert json.loads(fwd2bot("dedup", "--json", "--threshold", "0.05").out)["counts"]["duplicates"] > 2


def test_exact_only(fwd2bot: Run, pictures: Path) -> None:
    assert len(fwd2bot("dedup", "--exact").out.splitlines()) == 2
    document = json.loads(fwd2bot("dedup", "--exact", "--json").out)
    assert (document["threshold"], document["counts"]["near"]) == (None, 0)


def test_paths_only(fwd2bot: Run, pictures: Path) -> None:
    names = [str(pictures / name) for name in ("blue again.png", "red.png")]
    assert fwd2bot("dedup", "--paths-only").out == "".join(name + "\n" for name in names)
    for null in (["--paths-only", "-0"], ["-0"], ["--null"]):
        outcome = fwd2bot("dedup", *null)
        assert outcome == Outcome(0, "".join(name + "\0" for name in names), "")


def test_paths_only_names_nothing_that_would_be_missed(fwd2bot: Run, place: Path) -> None:
    pictures = place / "pictures"
    draw_colours(pictures)
    for name in COLOURS:
        shutil.copy(pictures / f"{name}.png", pictures / f"{name} copy.png")
    (pictures / "green link.png").symlink_to("green.png")
    assert fwd2bot("index", "pictures").code == 0
    assert len(fwd2bot("dedup", "-0").out.split("\0")) == 1 + len(COLOURS)
    (pictures / "red.png").unlink()  # what would be kept
    (pictures / "blue copy.png").write_bytes(b"something new")
    outcome = fwd2bot("dedup", "-0")
    assert outcome.out == f"{pictures / 'green copy.png'}\0"
    assert "Left out: 3 of 4 copies" in outcome.err
    assert len(fwd2bot("dedup").out.splitlines()) == 7  # from the index all are there


def test_an_index_of_another_model_has_no_default_threshold(fwd2bot: Run, pictures: Path, tmp_path: Path) -> None:
    assert fwd2bot("index", pictures, "--index", tmp_path / "other", "--model", "some/model").code == 3
    outcome = fwd2bot("dedup", "--index", tmp_path / "other")
    assert len(outcome.out.splitlines()) == 2
    assert "some/model was not measured" in outcome.err
    outcome = fwd2bot("dedup", "--index", tmp_path / "other", "--threshold", "0.99")
    assert len(outcome.out.splitlines()) == 4
    assert "measured" not in outcome.err
    assert "measured" not in fwd2bot("dedup", "--index", tmp_path / "other", "--exact").err


def test_no_duplicates(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("dedup")
    assert (outcome.code, outcome.out) == (0, "")
    assert "No duplicates among 3 files." in outcome.err
    assert json.loads(fwd2bot("dedup", "--json").out)["groups"] == []
    assert fwd2bot("dedup", "-0").out == ""


def test_odd_names_are_shown_escaped_and_given_raw(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    name = "red\n\x1b[31m.png"
    shutil.copy(place / "pictures" / "red.png", place / "pictures" / name)
    fwd2bot("index", "pictures")
    assert fwd2bot("dedup").out.endswith("pictures/red\\n\\x1b[31m.png\n")
    assert fwd2bot("dedup", "-0").out == f"{place / 'pictures' / name}\0"


def test_what_makes_no_sense(fwd2bot: Run, pictures: Path) -> None:
    for arguments in (["--threshold", "0"], ["--threshold", "1.1"], ["--threshold", "nan"]):
        outcome = fwd2bot("dedup", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert "at most 1" in outcome.sentence
    for arguments in (["--exact", "--threshold", "0.9"], ["--json", "-0"], ["--json", "--paths-only"]):
        outcome = fwd2bot("dedup", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert "Give either" in outcome.sentence
    assert fwd2bot("dedup", "--threshold", "much").code == 2


def test_no_index_and_an_empty_one(fwd2bot: Run, own_indexed: Path) -> None:
    assert "fwd2bot index" in fwd2bot("dedup", "--index", "elsewhere").sentence
    store = IndexStore.open(own_indexed / ".fwd2bot")
    store.remove(store.known_files().uri.to_pylist())
    outcome = fwd2bot("dedup")
    assert outcome.code == 1
    assert "holds no pictures" in outcome.sentence
