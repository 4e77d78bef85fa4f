"""The bad input that the project promises to meet: one sentence with the name of the thing, the right exit code, no
traceback, and the index as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run, draw_colours
from PIL import Image

from fwd2bot_cli.models import PretrainedModels
from fwd2bot_index import store
from fwd2bot_index.places import Place


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an index, save the lock, which says nothing of it."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network: the hub's address leads nowhere, and the cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_missing_folder(fwd2bot: Run, own_indexed: Path) -> None:
    before = contents(own_indexed / ".fwd2bot")
    outcome = fwd2bot("index", "missing-folder")
    assert outcome.code == 2
    assert "missing-folder" in outcome.sentence
    assert contents(own_indexed / ".fwd2bot") == before


def test_empty_folder(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    (place / "empty").mkdir()
    outcome = fwd2bot("index", "empty")
    assert outcome.code == 2
    assert "empty" in outcome.sentence
    assert not (place / ".fwd2bot").exists()
    assert models.loads == 0


def test_no_readable_image(fwd2bot: Run, place: Path) -> None:
    (place / "pictures").mkdir()
    (place / "pictures" / "a.png").write_bytes(b"no picture")
    outcome = fwd2bot("index", "pictures")
    assert outcome.code in (1, 2)
    assert "pictures" in outcome.sentence
    assert not (place / ".fwd2bot").exists()


def test_unknown_model_folder(fwd2bot: Run, own_indexed: Path) -> None:
    draw_colours(own_indexed / "pictures")
    outcome = fwd2bot("index", "pictures", "--model", "./no-such-model", "--index", "new", models=PretrainedModels())
    assert outcome.code == 1
    assert "./no-such-model" in outcome.sentence
    assert not (own_indexed / "new").exists()


@pytest.mark.parametrize("name", ["someone/no-such-model", "no such model!"])
def test_hub_model_without_network(fwd2bot: Run, own_indexed: Path, offline: None, name: str) -> None:
    draw_colours(own_indexed / "pictures")
    outcome = fwd2bot("index", "pictures", "--model", name, "--index", "new", models=PretrainedModels())
    assert outcome.code == 1
    assert name in outcome.sentence
    assert not (own_indexed / "new").exists()


@pytest.mark.parametrize("command", [["search", "red"], ["ask", "what?"], ["info"]])
def test_no_index(fwd2bot: Run, place: Path, command: list[str]) -> None:
    for arguments, name in ((command, str(place)), ([*command, "--index", "nowhere"], "nowhere")):
        outcome = fwd2bot(*arguments)
        assert outcome.code == 2
        assert name in outcome.sentence
        assert "fwd2bot index" in outcome.sentence
    assert list(place.iterdir()) == []


def test_made_by_another_model(fwd2bot: Run, own_indexed: Path) -> None:
    draw_colours(own_indexed / "pictures")
    before = contents(own_indexed / ".fwd2bot")
    for command in (["index", "pictures"], ["search", "red"], ["ask", "what?"]):
        outcome = fwd2bot(*command, models=FakeModels("another"))
        assert outcome.code == 1
        assert "default" in outcome.sentence
        assert ".fwd2bot" in outcome.sentence
    assert contents(own_indexed / ".fwd2bot") == before


def test_made_with_another_codec(fwd2bot: Run, own_indexed: Path) -> None:
    draw_colours(own_indexed / "pictures")
    before = contents(own_indexed / ".fwd2bot")
    outcome = fwd2bot("index", "pictures", "--codec", "float16")
    assert outcome.code == 1
    assert "float16" in outcome.sentence
    assert "pq8" in outcome.sentence
    assert contents(own_indexed / ".fwd2bot") == before


def test_unknown_codec(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    outcome = fwd2bot("index", "pictures", "--codec", "int3")
    assert outcome.code == 2
    assert "int3" in outcome.sentence
    assert "int8" in outcome.sentence, "what there is"
    assert not (place / ".fwd2bot").exists()


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 99}'])
@pytest.mark.parametrize("command", [["index", "pictures"], ["search", "red"], ["ask", "what?"], ["info"]])
def test_corrupted_manifest(fwd2bot: Run, own_indexed: Path, command: list[str], raw: str) -> None:
    draw_colours(own_indexed / "pictures")
    (own_indexed / ".fwd2bot" / "manifest.json").write_text(raw)
    before = contents(own_indexed / ".fwd2bot")
    outcome = fwd2bot(*command)
    assert outcome.code == 1
    assert "manifest.json" in outcome.sentence
    assert ("Upgrade" if "99" in raw else "index again") in outcome.sentence, "what to do"
    assert contents(own_indexed / ".fwd2bot") == before


def test_lost_data(fwd2bot: Run, own_indexed: Path) -> None:
    for file in (own_indexed / ".fwd2bot" / "images.lance").rglob("*.lance"):
        file.unlink()
    outcome = fwd2bot("search", "red")
    assert outcome.code == 1
    assert "damaged" in outcome.sentence


def test_read_only_target(fwd2bot: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_colours(place / "pictures")
    access = os.access  # root may write anywhere, so permissions would prove nothing here
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    outcome = fwd2bot("index", "pictures", "--index", "target")
    assert outcome.code == 1
    assert "target" in outcome.sentence
    assert "read-only" in outcome.sentence
    assert not (place / "target").exists()


def test_target_in_the_way(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    (place / "file").write_text("x")
    for target in ("file", "file/index", "pictures"):
        outcome = fwd2bot("index", "pictures", "--index", target)
        assert outcome.code == 1
        assert target in outcome.sentence
    assert (place / "file").read_text() == "x"
    assert len(list((place / "pictures").iterdir())) == 3


@pytest.mark.parametrize("seam", ["_insert_new", "_upsert"])
def test_disk_full(fwd2bot: Run, own_indexed: Path, monkeypatch: pytest.MonkeyPatch, seam: str) -> None:
    draw_colours(own_indexed / "pictures")
    Image.new("RGB", (9, 9), "yellow").save(own_indexed / "pictures" / "new.png")
    before = contents(own_indexed / ".fwd2bot")

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, seam, no_space)
    outcome = fwd2bot("index", "pictures")
    assert outcome.code == 1
    assert ".fwd2bot" in outcome.sentence
    assert "No space left on device" in outcome.sentence
    if seam == "_insert_new":  # with the other, tokens without a row were written, for the next run to find
        assert contents(own_indexed / ".fwd2bot") == before
    monkeypatch.undo()
    assert len(fwd2bot("search", "red", "--index", own_indexed / ".fwd2bot").out.splitlines()) == 3


def test_question_to_an_empty_index(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures").code == 0
    for picture in (place / "pictures").iterdir():
        picture.unlink()
    (place / "pictures" / "broken.png").write_bytes(b"no picture")
    fwd2bot("index", "pictures")
    for command in (["ask", "what?"], ["ask", "what?", "--query", "red"], ["search", "red"]):
        outcome = fwd2bot(*command)
        assert outcome.code == 1
        assert ".fwd2bot" in outcome.sentence
        assert outcome.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "x" * 300],
        ["bench", "index", "x" * 300],
        ["search", "--image", "x" * 300],
        ["search", "--like", "x" * 300],
        ["ask", "?", "--image", "x" * 300],
        ["ask", "?", "--image", "caf\udce9.png"],
        ["search", "--like", "caf\udce9.png"],
        ["search", "caf\udce9"],
        ["ask", "caf\udce9?"],
        ["search", "red", "--where", "1 / (width - width) > 1"],
    ],
)
def test_names_and_words_that_cannot_be(fwd2bot: Run, indexed: Path, arguments: list[str]) -> None:
    """Longer than a file system allows, no UTF-8, or found out about only while pictures are read."""
    outcome = fwd2bot(*arguments)
    assert outcome.code == 2, outcome.err
    assert "bug" not in outcome.sentence
    assert "damaged" not in outcome.sentence


def test_an_index_that_may_not_be_read(fwd2bot: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(Place.of(".fwd2bot")), "read", refused)  # root may read everything
    outcome = fwd2bot("info")
    assert outcome.code == 1
    assert "cannot be read: Permission denied" in outcome.sentence
    assert "Delete" not in outcome.sentence
