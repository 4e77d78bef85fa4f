"""The benchmarks of searching and annotating run through and count right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import manifest
from pictures import BLUE, GREEN, RED, plain, write

from fwd2bot_eval import bench_annotate, bench_search
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH


def test_grown_embeddings_spread_as_the_real_ones_do() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 8)) * np.linspace(0.1, 1, 8)
    real = (real / np.linalg.norm(real, axis=1, keepdims=True)).astype(np.float32)
    made = bench_search.grown(real, 3000, rng)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(made.std(axis=0), real.std(axis=0), atol=0.12)


def test_every_kind_is_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 8)).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    store = bench_search.make_index(tmp_path / "index", real, 2000, model=manifest(k=1, d=2, e=8))
    texts, pictures = real[:5], bench_search.grown(real, 5, rng)
    for kind in ("exact", "ivf", "lance"):
        figures = bench_search.measure(store, kind, texts, pictures)
        assert figures.kind == kind
        assert figures.recall_texts >= 0.9
        assert figures.recall_pictures >= 0.9
        assert set(figures.filtered_recall) == {"0.1", "0.01", "0.001"}
        assert min(figures.filtered_recall.values()) >= 0.9
        assert figures.p99_ms >= figures.p50_ms > 0
    assert bench_search.make_index(tmp_path / "index", real, 2000, model=manifest(k=1, d=2, e=8)).stats().files == 2000
    with pytest.raises(SystemExit, match="another number of rows"):
        bench_search.make_index(tmp_path / "index", real, 3000, model=manifest(k=1, d=2, e=8))


@pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)
def test_annotating_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write(tmp_path / "images", {"a.png": plain(RED), "b.png": plain(GREEN), "c.png": plain(BLUE)})
    out = tmp_path / "figures.json"
    bench_annotate.main([str(images), "--limit", "2", "--repeats", "1", "--batch-size", "1", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert figures["pictures"] == 2
    assert all(value > 0 for value in figures.values())
    assert "times as fast" in capsys.readouterr().out
