"""The command itself, run in this process on a fake model, in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Outcome, Run, draw_colours

from fwd2bot_cli.main import main
from fwd2bot_cli.session import Session


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and none of the caller's settings."""
    for name in [n for n in os.environ if n.startswith("FWD2BOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def fwd2bot(models: FakeModels, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """``fwd2bot("search", "red")`` -> exit code, stdout, stderr."""

    def run(*arguments: str | Path, models: FakeModels = models) -> Outcome:
        capfdbinary.readouterr()
        code = main([str(a) for a in arguments], Session(models=models))
        out, err = capfdbinary.readouterr()
        return Outcome(code, os.fsdecode(out), os.fsdecode(err))

    return run


@pytest.fixture(scope="session")
def indexed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, because starting the workers that decode takes longest."""
    folder = tmp_path_factory.mktemp("indexed") / "work"
    folder.mkdir()
    draw_colours(folder / "pictures")
    index = folder / ".fwd2bot"
    code = main(["index", str(folder / "pictures"), "--index", str(index), "--quiet"], Session(models=FakeModels()))
    assert code == 0
    return folder


@pytest.fixture
def indexed(indexed_once: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``pictures/{red,green,blue}.png`` and their index, shared by the tests that only read it."""
    monkeypatch.chdir(indexed_once)
    return indexed_once


@pytest.fixture
def own_indexed(indexed_once: Path, place: Path) -> Path:
    """A copy of the index to spoil; its pictures are still those of :func:`indexed`."""
    shutil.copytree(indexed_once / ".fwd2bot", place / ".fwd2bot")
    return place
