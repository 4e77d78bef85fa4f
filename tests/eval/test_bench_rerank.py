"""The benchmarks of re-ranking and of composed queries: what they count is counted right, and they run through."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fwd2bot_eval import bench_compose, bench_rerank
from fwd2bot_eval.default_model import held_out
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH
from fwd2bot_index.likelihoods import AnswerScores
from fwd2bot_index.reranking import Weights
from fwd2bot_index.types import SummaryTokens

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


def test_the_ceiling_counts_what_fits_among_the_candidates() -> None:
    scores = np.zeros((3, 2), np.float32)
    rows = np.array([[0, 1], [1, 2], [3, 4]])
    found = bench_rerank.Scored(rows=rows, cosine=scores, matching=scores, caption=scores, right=[0, 0, 3])
    assert found.ceiling(None) == pytest.approx(2 / 3)
    assert found.ceiling([[0, 1], [0], [3, 9]]) == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_scenes_stand_beside_their_twins() -> None:
    sets = bench_rerank.scene_searches("val", 30, 10)
    for searches in sets.values():
        assert len(searches.images) <= 30
        assert len(searches.texts) == len(set(searches.right)) == 10
        assert searches.fitting is not None
        assert all(right in fits for right, fits in zip(searches.right, searches.fitting, strict=True))
    assert len(sets["scenes"].images) == 30


def test_hard_negatives_are_counted_for_each_score() -> None:
    """Here the cosines always do, the answers never, and captions are all alike."""
    true = {str(c) for c in held_out(12)[2]}

    class Torn:
        caption_prompt = ""

        def compress(self, images: Sequence[Any]) -> SummaryTokens:
            tokens = torch.randn(len(images), 4, 16, generator=torch.Generator().manual_seed(0))
            return SummaryTokens(tokens=tokens, embedding=torch.ones(len(images), 1))

        def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
            return torch.tensor([[float(t in true)] for t in texts])

        def matching_question(self, text: str) -> str:
            return text

        def loglikelihood(self, tokens: torch.Tensor, asked: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
            return torch.tensor([[float(t not in true), 0.0] for t in asked])

        def score_answers(self, tokens: torch.Tensor, prompt: str, texts: Sequence[str]) -> AnswerScores:
            same = torch.zeros(len(texts))
            return AnswerScores(logprob=same, num_tokens=same, greedy=same)

    model: Any = Torn()
    won = bench_rerank.hard_negatives(model, 12)
    assert sum(by["items"] for by in won.values()) > 30
    for by in won.values():
        assert by["cosine"] == 1
        assert by["matching"] == by["caption"] == 0
        assert by["1 : 0 : 1"] == 1


def test_changes_are_what_they_are_called() -> None:
    made = [c for i in range(40) if (c := bench_compose.changed(scenes.scene(i), np.random.default_rng(i)))]
    assert len(made) > 15
    for seed in range(40):
        scene = scenes.scene(seed)
        for kind, change in bench_compose.changed(scene, np.random.default_rng(seed)).items():
            before, after = (Counter((t.color, t.shape) for t in s.things) for s in (scene, change.scene))
            [old] = (before - after).elements()
            new = list((after - before).elements())
            assert len(change.scene.things) == len(scene.things) - (kind == "without")
            if kind == "without":
                assert (new, change.words) == ([], f"without the {' '.join(old)}")
            else:
                assert change.words.endswith(f"{' '.join(new[0])} instead of the {' '.join(old)}")
                assert (new[0][1] == old[1]) == (kind == "color")


def test_recalls_with_and_without_references() -> None:
    """Two references, their targets, and another picture."""
    found = bench_compose.recalls(np.array([[9, 1, 8, 1, 1], [1, 2, 3, 4, 4]], np.float32))
    assert found["R@1"] == 0.5  # the second is tied with the other picture
    assert found["R@1 with references"] == 0.0
    assert found["R@5"] == found["R@5 with references"] == 1.0


@bundled
def test_they_run_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    bench_rerank.main(["--pool", "20", "--queries", "3", "--candidates", "4", "--negatives", "4", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert set(figures) == {"tuning", "held out", "hard negatives"}
    assert 0 <= figures["tuning"]["cosine"]["scenes R@1"] <= 1
    bench_compose.main(["--pool", "30", "--queries", "5", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert figures["of"]["of"] == {"queries": 5, "pool": 30, "chance R@1": pytest.approx(1 / 30)}
    assert figures["color"]["parts, 0.6"]["R@5"] > 0.5
    assert "chance" in capsys.readouterr().out
