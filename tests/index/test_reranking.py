"""Re-ranking: the order that the scores say, within the time that there is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel

from fwd2bot_index import reranking
from fwd2bot_index.errors import InputError
from fwd2bot_index.reranking import Weights, combined, rerank
from fwd2bot_index.scenes import caption, hard_negatives, render, scene


def colours(*names: str) -> np.ndarray:
    tokens = np.zeros((len(names), 4, 8), np.float32)
    for i, name in enumerate(names):
        tokens[i, :, :3] = FakeModel.COLOURS[name]
    return tokens


def test_what_fits_comes_first() -> None:
    tokens = colours("blue", "red", "green", "red")
    cosines = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    found = rerank(FakeModel(), "red", cosines, lambda a, b: tokens[a:b], weights=Weights(caption=0, matching=5))
    assert found.order == [1, 3, 0, 2]
    np.testing.assert_allclose(found.matching, [0.0067, 0.9933, 0.0067, 0.9933], atol=1e-3)


def test_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "BATCH", 2)
    tokens = colours("blue", "red", "red", "red", "blue")
    cosines = np.linspace(0.9, 0.5, 5, dtype=np.float32)
    read: list[tuple[int, int]] = []

    def slowly(start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        time.sleep(0.05)
        return tokens[start:stop]

    found = rerank(FakeModel(), "red", cosines, slowly, weights=Weights(matching=5), seconds=0.04)
    assert read == [(0, 2)]  # the first batch is always done
    assert found.order == [1, 0, 2, 3, 4]
    assert np.isnan(found.matching).tolist() == [False, False, True, True, True]
    for bad in (0, -1, float("nan")):
        with pytest.raises(InputError, match="more than 0"):
            rerank(FakeModel(), "red", cosines, slowly, seconds=bad)
    assert rerank(FakeModel(), "red", cosines[:0], slowly).order == []


def test_no_batch_is_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "BATCH", 2)
    now = iter(range(100))
    monkeypatch.setattr(reranking.time, "perf_counter", lambda: next(now))  # a second passes at every look
    tokens = colours(*["red"] * 20)
    read: list[int] = []

    def tokens_of(start: int, stop: int) -> np.ndarray:
        read.append(start)
        return tokens[start:stop]

    rerank(FakeModel(), "red", np.linspace(1, 0, 20, dtype=np.float32), tokens_of, seconds=6.5)
    # after n batches n + 1 seconds have passed, and one more would take (n + 1) / n of them
    assert read == [0, 2, 4, 6, 8]


def test_a_model_that_is_very_sure() -> None:
    class Sure(FakeModel):
        def loglikelihood(self, tokens, prompt, completions, *, ended=False):  # type: ignore[no-untyped-def]
            return torch.tensor([[-500.0, 0.0], [0.0, -500.0]])

    found = rerank(Sure(), "red", np.array([1, 0], np.float32), lambda a, b: colours("red", "red")[a:b])
    np.testing.assert_allclose(found.matching, [0, 1], atol=1e-6)
    assert found.order in ([0, 1], [1, 0])


def test_an_odd_score_loses_no_candidate() -> None:
    class Odd(FakeModel):
        def loglikelihood(self, tokens: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            scores = super().loglikelihood(tokens, *rest, **more)
            scores[1] = torch.nan
            return 300 * scores

    found = rerank(Odd(), "red", np.array([0.9, 0.8, 0.7], np.float32), lambda a, b: colours("red", "red", "blue")[a:b])
    assert found.order == [0, 1, 2]  # as the cosine has it
    np.testing.assert_allclose(found.matching, [1, np.nan, 0], atol=1e-6)


def test_each_picture_is_asked_about_its_own_text() -> None:
    read = torch.from_numpy(colours("blue", "red"))
    np.testing.assert_array_equal(reranking.matching_scores(FakeModel(), read, ["blue", "blue"]), [5, -5])


def test_scores_are_standardised_before_they_are_added() -> None:
    rng = np.random.default_rng(0)
    cosine, matching, words = rng.normal(size=(3, 2, 50)).astype(np.float32)
    total = combined(cosine, 100 * matching + 7, words, Weights(cosine=1, matching=2, caption=0))
    expected = (cosine - cosine.mean(1, keepdims=True)) / cosine.std(1, keepdims=True)
    expected += 2 * (matching - matching.mean(1, keepdims=True)) / matching.std(1, keepdims=True)
    np.testing.assert_allclose(total, expected, atol=1e-4)
    same = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(combined(same, same, same, Weights()), np.zeros((1, 4)))


def test_the_bundled_model_tells_a_picture_from_a_false_one() -> None:
    from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH
    from fwd2bot_index.model import Fwd2BotModel

    if not (DEFAULT_MODEL_PATH / "config.json").exists():
        pytest.skip("the bundled model is not in this checkout")
    model = Fwd2BotModel.from_pretrained(device="cpu")
    right = []
    for seed in range(12):
        drawn = scene(seed, stream="held out")
        said = caption(drawn, np.random.default_rng([7, seed]))
        tokens = model.compress([render(drawn)]).tokens
        for false in hard_negatives(drawn, said, np.random.default_rng([8, seed])).values():
            true, other = (reranking.matching_scores(model, tokens, str(text))[0] for text in (said, false))
            right.append(true > other)
    assert len(right) >= 20
    assert np.mean(right) > 0.8
