"""The benchmark of codecs: what can be known of its figures is right, and differences are of the same items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fwd2bot_eval import bench_codec
from fwd2bot_eval.bench_codec import Items, fitted, losses, measure_scores, outlier_tokens, signals
from fwd2bot_eval.default_model import answer_accuracy, hard_negative_scores, held_out
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, payload_bytes
from fwd2bot_index.model import Fwd2BotModel


def kind(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens to fit to and to measure, of their own mean."""
    mean = 5 * np.random.default_rng(seed).normal(size=(4, 64))
    rng = np.random.default_rng([seed, 1])
    fit, tokens = ((mean + rng.normal(size=(n, 4, 64))).astype(np.float32) for n in (64, 30))
    return fit, tokens


def test_signals() -> None:
    found = {(s.tokens, s.label): s for s in signals({"a": kind(1), "b": kind(2)}, large=(2, 128), repeats=1)}
    assert len(found) == 2 * (len(CODEC_NAMES) + 2 * 3) + 2 * len(CODEC_NAMES)
    for name in CODEC_NAMES:
        figures = found["a", name]
        assert figures.bytes == payload_bytes(name, 4, 64)
        assert figures.ratio == pytest.approx(2 * 4 * 64 / figures.bytes)
        assert figures.rest_error is None
        assert min(figures.encode_ms, figures.decode_ms) > 0
        assert found["2 x 128, outliers", name].bytes == payload_bytes(name, 2, 128)
    assert found["a", "float16"].error < 1e-3
    # the mean is most of these tokens: a codec that knows it beats one that does not, and it has to be their mean
    for label in ("pq8", "pq8, fitted to 16"):
        assert found["a", label].error < 0.5 * found["a", "int2"].error
        assert found["a", label].error < 0.7 * found["a", "pq8, fitted to other"].error
    outliers = found["2 x 128, outliers", "int4"]
    assert outliers.rest_error is not None
    assert outliers.rest_error > 2 * outliers.error, "what the outliers cost the other channels"


def test_outliers_are_what_they_are_called() -> None:
    for massive, largest in ((0.0, 200), (0.5, 4000)):
        tokens, channels = outlier_tokens(50, 4, 256, massive=massive, seed=0)
        rest = np.delete(tokens, channels, axis=-1)
        assert np.abs(rest).max() < 6
        assert largest / 4 < np.abs(tokens[..., channels]).max() < largest
        again, same = outlier_tokens(50, 4, 256, massive=massive, seed=1)
        np.testing.assert_array_equal(channels, same)
        assert not np.array_equal(tokens, again)


def test_a_loss_is_paired() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.5).astype(float)
    worse = right.copy()
    worse[np.nonzero(right)[0][:8]] = 0
    pictures = [str(i // 2) for i in range(400)]
    [loss] = losses({"answers": (right, pictures)}, {"answers": (worse, pictures)}).values()
    assert loss.value == pytest.approx(2.0)
    assert 0.2 < loss.low < loss.value < loss.high < 4.5, "the interval of the scores themselves is 10 points wide"
    assert (loss.items, loss.clusters) == (400, 200)


def test_scores_are_of_what_the_codec_gives_back() -> None:
    fit, tokens = kind(1)

    def near(stored: torch.Tensor) -> Items:
        """Whether each picture's tokens are within a fifth of the true ones."""
        error = (stored.numpy() - tokens).reshape(len(tokens), -1)
        close = np.linalg.norm(error, axis=1) < 0.2 * np.linalg.norm(tokens.reshape(len(tokens), -1), axis=1)
        return {"near": (close.astype(float), [str(i) for i in range(len(tokens))])}

    found = measure_scores(fitted(fit, None, ["float16", "int8", "int2", "pq8"]), tokens, near)
    assert list(found) == ["float16", "int8", "int2", "pq8", "pq8, fitted to 16"]
    assert found["float16"]["near"].value == 100
    assert {label: row["near"].value for label, row in found.items() if label != "float16"} == {
        "int8": 0,
        "int2": 100,
        "pq8": 0,
        "pq8, fitted to 16": 0,
    }


def test_scene_items_are_those_of_the_card() -> None:
    model = Fwd2BotModel.from_pretrained(None, device="cpu")
    pool, questions, captions = held_out(6)
    summary = model.compress([scenes.render(s, size=96) for s in pool])
    items = bench_codec.scene_items(model, summary.tokens, questions, bench_codec.hard_negative_pairs(6))
    means = {name: right.mean() for name, (right, _) in items.items()}
    for name, accuracy in answer_accuracy(model, summary.tokens, questions).items():
        assert means[f"answers: {name}"] == pytest.approx(accuracy)
    hard = hard_negative_scores(model, summary.tokens, summary.embedding, pool, captions)
    for name, won in hard.items():
        assert means[f"matching: {name}"] == pytest.approx(won["matching question"])
        assert len(items[f"matching: {name}"][0]) == won["items"]
    assert len(items["answers"][0]) == sum(map(len, questions)) == len(items["answers"][1])


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--scenes", "3", "--codecs", "float16", "pq8", "--large", "2", "128", "--repeats", "1"]
    bench_codec.main(["--scores", *small, "--json", str(tmp_path / "codecs.json")])
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "codecs.json").read_text())
    assert "| scenes | pq8 | 768 | 1/8.00 |" in printed
    assert set(figures["scores"]) == {"float16", "pq8", "pq8, fitted to 16"}
    assert figures["scores"]["pq8"]["answers"]["items"] > 20
    assert {s["tokens"] for s in figures["signal"]} == {"scenes", "2 x 128, outliers", "2 x 128, massive"}
