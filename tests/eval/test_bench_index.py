"""The benchmark of indexing: every figure is measured, and those that can be known are right."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeModel
from pictures import encoded, noise, write
from tiny_models import build

from fwd2bot_eval import bench_index
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.types import Compressor, ImageInput, SummaryTokens


@pytest.fixture
def images(tmp_path: Path) -> Path:
    files = {f"{i}.png": encoded(noise((30 + i, 20), seed=i), "PNG") for i in range(6)}
    return write(tmp_path / "images", {**files, "bad.png": b"x"})


class SlowModel(FakeModel):
    def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
        time.sleep(0.1 * len(images))
        return super().compress(images)


def test_figures_of_a_model_whose_time_is_known(images: Path, tmp_path: Path) -> None:
    def load() -> Compressor:
        time.sleep(0.2)
        return SlowModel()

    figures = bench_index.measure_indexing(images, tmp_path / "index", load)
    assert (figures.files, figures.skipped) == (6, 1)
    assert figures.loading_seconds >= 0.2
    assert 0.6 / figures.seconds <= figures.model_share <= figures.model_share_when_ready <= 1
    assert figures.images_per_second == pytest.approx(6 / figures.seconds)
    assert figures.images_per_second < figures.images_per_second_when_ready < 10
    stats = Corpus.open(tmp_path / "index").stats()
    assert figures.all_bytes == stats.total_bytes / 6
    assert figures.tokens_bytes + figures.embedding_bytes < figures.all_bytes
    assert figures.peak_bytes > 50 * 2**20

    asking = bench_index.measure_asking(tmp_path / "index", SlowModel(), repeats=2)
    assert asking.from_file >= 0.1
    assert asking.from_tokens > 0


@pytest.mark.slow
def test_the_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, processor = build("llava")
    base.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    bench_index.main([str(images), "--model", str(tmp_path / "model"), "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "files indexed              6 (1 skipped)" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["search"]) == ["interpreter", "imports", "model", "embed", "read index", "search", "total"]
    assert list(figures["unchanged"]) == ["interpreter", "imports", "fingerprint", "compare", "total"]
    for stages in (figures["search"], figures["unchanged"]):
        total = stages.pop("total")
        assert all(seconds >= 0 for seconds in stages.values())
        assert sum(stages.values()) <= total
