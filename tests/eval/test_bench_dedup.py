"""The benchmark of duplicates: its counts are those of pictures whose embeddings are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import FakeModel
from pictures import noise, plain, write

from fwd2bot_eval import bench_dedup


def test_counts_of_a_model_that_sees_colours(tmp_path: Path) -> None:
    files = {f"{i}.png": plain(colour) for i, colour in enumerate([(200, 0, 0), (200, 4, 0), (0, 200, 0), (0, 0, 200)])}
    images = write(tmp_path / "images", {**files, "same bytes.png": files["0.png"], "bad.png": b"x"})
    (tmp_path / "made").mkdir()
    originals, [low, high] = bench_dedup.measure_thresholds(
        images, tmp_path / "made", FakeModel(), thresholds=(0.99, 1.1)
    )
    assert originals == 4
    assert low.recall == {kind.name: 1.0 for kind in bench_dedup.KINDS}  # a plain colour stays itself
    assert low.false_pairs == 1  # the two reds, and not the two of the same bytes
    assert set(high.recall.values()) == {0.0}
    assert high.false_pairs == 0


def test_copies_are_what_they_are_called() -> None:
    image = noise((200, 100))
    kinds = {kind.name: kind for kind in bench_dedup.KINDS}
    assert kinds["half size"].edit(image).size == (100, 50)
    assert kinds["3 % cropped"].edit(image).size == (194, 97)
    assert kinds["JPEG 60"].quality == 60
    dark, bright = image.resize((1, 1)), kinds["10 % brighter"].edit(image).resize((1, 1))
    assert bright.getpixel((0, 0)) > dark.getpixel((0, 0))  # type: ignore[operator]


def test_planted_copies_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_dedup.main(["--rows", "5000", "--json", str(tmp_path / "figures.json")])
    assert "5000 rows, 100 copies" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["seconds"] > 0
    assert figures["peak_bytes"] >= figures["before_bytes"] > 0
