"""``fwd2bot bench``: figures of a run with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import Run
from PIL import Image

from fwd2bot_cli.main import main
from fwd2bot_cli.session import Session
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH

needs_the_bundled_model = pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)


@pytest.fixture
def pictures(place: Path) -> Path:
    folder = place / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (40 + i, 30), (40 * i, 90, 200 - 30 * i)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@needs_the_bundled_model
def test_stages_add_up(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "index", str(pictures), "--batch-size", "4", "--json", "--quiet"], Session())
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["pictures"], found["skipped"]) == (6, 1)
    assert sum(found["stages"].values()) == pytest.approx(found["seconds"], rel=0.02)
    assert all(found["stages"][stage] > 0 for stage in ("decode", "preprocess", "vision", "llm", "codec", "write"))
    assert found["slowest_share"] == pytest.approx(max(found["stages"].values()) / found["seconds"])
    assert found["over_plain"] == pytest.approx(found["plain_seconds"] / found["seconds"])
    assert not (pictures.parent / ".fwd2bot").exists()


@needs_the_bundled_model
def test_with_half_the_bits(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "index", str(pictures), "--dtype", "bfloat16", "--json", "--quiet"], Session())
    assert (code, json.loads(capsys.readouterr().out)["dtype"]) == (0, "bfloat16")


@needs_the_bundled_model
def test_a_few_of_many(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "broken.png").unlink()
    assert main(["bench", "index", str(pictures), "--limit", "2", "--quiet"], Session()) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows][:7] == ["decode", "preprocess", "vision", "llm", "codec", "write", "other"]
    assert "images/s on" in next(row for row in rows if row[0] == "all")[-1]


def test_nothing_to_measure(fwd2bot: Run, place: Path) -> None:
    assert "There is no folder or file nowhere" in fwd2bot("bench", "index", "nowhere").sentence
