"""The benchmarks of re-ranking and of composed queries: what they count is counted right, and they run through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fwd2bot_eval import bench_compose, bench_rerank
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH
from fwd2bot_index.reranking import Weights

bundled = pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)


def test_recall_follows_the_weights() -> None:
    found = bench_rerank.Scored(
        rows=np.array([[5, 6, 7], [8, 9, 1]]),
        cosine=np.array([[3, 2, 1], [3, 2, 1]], np.float32),
        matching=np.array([[1, 2, 3], [1, 3, 2]], np.float32),
        caption=np.zeros((2, 3), np.float32),
        right=[7, 9],
    )
    assert found.recall(Weights(cosine=1, matching=0, caption=0), 1) == 0
    assert found.recall(Weights(cosine=1, matching=0, caption=0), 2) == 0.5
    assert found.recall(Weights(cosine=1, matching=2, caption=0), 1) == 1


def test_scenes_stand_beside_their_twins() -> None:
    sets = bench_rerank.scene_sets("val", 30, 10)
    for pictures, texts, rows in sets.values():
        assert len(pictures) <= 30
        assert len(texts) == len(rows) == 10
        assert len(set(rows)) == 10
    assert len(sets["scenes"][0]) == 30


def test_a_change_is_one_of_colour() -> None:
    made = [c for i in range(40) if (c := bench_compose.changed(scenes.scene(i), np.random.default_rng(i)))]
    assert len(made) > 20
    for scene, new, old in made:
        color, shape = new.split()[1:]
        assert [t.color for t in scene.things if t.shape == shape] == [color]
        assert old.split()[2] == shape
        assert old != new


@bundled
def test_they_run_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    bench_rerank.main(["--pool", "20", "--queries", "3", "--candidates", "4", "--negatives", "4", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert set(figures) == {"tuning", "held out", "hard negatives"}
    assert 0 <= figures["tuning"]["cosine"]["scenes"] <= 1
    bench_compose.main(["--pool", "30", "--queries", "5", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert figures["of"] == {"queries": 5, "pool": 30, "chance R@1": pytest.approx(1 / 29)}
    assert figures["0.5 words + reference"]["R@5"] > figures["of"]["chance R@1"]
    assert "chance" in capsys.readouterr().out
