"""The budget: bytes are the codec's, scores those of a direct computation, losses of the same items."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch

from fwd2bot_eval.budget import NO_TOKENS, PLOT, STORED_EMBEDDING, Budget, _cell, _embedded, _Pool, _pool
from fwd2bot_eval.default_model import held_out, stored
from fwd2bot_eval.report import write_report
from fwd2bot_eval.runs import Progress
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, fit_codec, payload_bytes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel


@pytest.fixture(scope="module")
def model() -> Fwd2BotModel:
    return Fwd2BotModel.from_pretrained(None, device="cpu")


@pytest.fixture(autouse=True)
def few_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwd2bot_eval.budget.FIT_PICTURES", 5)


def test_every_cell_is_measured_on_what_the_codec_gives_back(model: Fwd2BotModel, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told: list[Progress] = []
    result = Budget(model, ks=[16, 2], limit=8).run(tmp_path, progress=told.append)
    answers, found = result.table("answers"), result.table("text -> image, scenes")
    cells = [f"k={k} {name}" for k in (16, 2) for name in CODEC_NAMES]
    assert list(answers.rows) == [*cells, NO_TOKENS]
    assert list(found.rows) == [*cells, STORED_EMBEDDING]
    for k in (16, 2):
        for name in CODEC_NAMES:
            size = payload_bytes(name, k, model.token_dim)
            nothing = np.zeros((1, k, model.token_dim), np.float32)
            written = fit_codec(name, nothing).encode(nothing).nbytes
            assert answers.rows[f"k={k} {name}"]["bytes"].value == size == written
            assert found.rows[f"k={k} {name}"]["bytes"].value == size
    assert found.rows[STORED_EMBEDDING]["bytes"].value == 2 * model.embedding_dim
    assert told[-1].done == told[-1].total == 2 * len(CODEC_NAMES)

    pool, questions, captions = held_out(8)
    tokens = model.compress([scenes.render(s, size=96) for s in pool]).tokens
    right = [
        model.generate(tokens[i : i + 1, :2], q.text, max_new_tokens=6)[0] == q.answer
        for i, qs in enumerate(questions)
        for q in qs
    ]
    assert answers.rows["k=2 float16"]["answers"].value == pytest.approx(sum(right) / len(right), abs=1.5 / len(right))
    with torch.no_grad():
        scores = model.embed_text([str(c) for c in captions]) @ model.embed_tokens(tokens[:, :2]).T
    first = (scores >= scores.diagonal()[:, None]).sum(1) <= 1
    assert found.rows["k=2 float16"]["R@1"].value == pytest.approx(float(first.float().mean()), abs=0.13)
    assert (tmp_path / PLOT).stat().st_size > 5000
    assert f"({PLOT})" in write_report(result, tmp_path).read_text()
    assert json.loads((tmp_path / "result.json").read_text())["task"] == "budget"


def test_a_loss_is_of_the_same_items(model: Fwd2BotModel, tmp_path: Path) -> None:
    """Also where all tokens in float16 are not among what was asked for."""
    both = Budget(model, ks=[16, 1], limit=6).run(tmp_path / "both")
    one = Budget(model, ks=[1], limit=6).run(tmp_path / "one")
    for title, score in (("answers", "answers"), ("text -> image, scenes", "R@1")):
        rows = both.table(title).rows
        best = rows["k=16 float16"]
        assert (best[f"loss of {score}"].low, best[f"loss of {score}"].high) == (0, 0)
        for name in CODEC_NAMES:
            row = rows[f"k=1 {name}"]
            assert row[f"loss of {score}"].value == pytest.approx(best[score].value - row[score].value)
            assert one.table(title).rows[f"k=1 {name}"] == row
    loss = both.table("answers").rows["k=1 float16"]["loss of answers"]
    assert 0 < loss.low < loss.value < loss.high, "one token is too few"


def test_what_guessing_scores(model: Fwd2BotModel, tmp_path: Path) -> None:
    result = Budget(model, ks=[1], limit=6).run(tmp_path)
    asked = [q for qs in held_out(6)[1] for q in qs]
    counts: dict[str, Counter[str]] = {}
    for q in asked:
        counts.setdefault(q.type, Counter())[q.answer] += 1
    right = sum(max(c.values()) for c in counts.values())
    guessed = result.table("answers").rows[NO_TOKENS]
    assert guessed["answers"].value == pytest.approx(right / len(asked))
    assert guessed["bytes"].value == 0


def photos(folder: Path, count: int = 3, **change: Any) -> Path:
    rows = []
    for i in range(count):
        data = pictures.encoded(scenes.render(scenes.scene(i, stream="budget test"), size=96), "PNG")
        caption = scenes.caption(scenes.scene(i, stream="budget test"), np.random.default_rng(i))
        rows.append({"image": {"bytes": data, "path": f"{i}.png"}, "captions": [str(caption), f"{caption}."]})
    rows[-1] |= change
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    return folder


def test_captioned_pictures_are_a_pool_of_their_own(model: Fwd2BotModel, tmp_path: Path) -> None:
    result = Budget(model, data=photos(tmp_path / "d"), ks=[16], limit=2).run(tmp_path / "out")
    found = result.table("text -> image, photos").rows["k=16 float16"]["R@1"]
    assert (found.value, found.items, found.clusters) == (1.0, 4, 2)
    whole = result.table("text -> image, photos").rows[STORED_EMBEDDING]["R@1"]
    assert (whole.value, whole.items) == (1.0, 4)
    alone = Budget(model, ks=[16], limit=2).run(tmp_path / "alone")
    assert result.table("answers") == alone.table("answers"), "questions are about the scenes"


def test_codecs_are_fitted_to_other_pictures(model: Fwd2BotModel, tmp_path: Path) -> None:
    data = photos(tmp_path / "d", 6)
    budget = Budget(model, data=data, ks=[16], limit=2)
    shown = [scenes.render(scenes.scene(i, stream="budget test"), size=96) for i in range(6)]
    pool = budget._photo_pool([])
    assert pool.fit is not None
    torch.testing.assert_close(pool.tokens, model.compress(shown[:2]).tokens, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pool.fit, model.compress(shown[2:]).tokens, atol=1e-4, rtol=1e-3)
    cell = _cell(model, [pool], [(scenes.Question(type="t", text="is it?", answer="yes"), 0)], 16, "pq32")
    known = _embedded(model, stored(pool.tokens, "pq32", fit=pool.fit))
    assert cell[pool.title]["R@1"].tolist() == pool.recalls(known)["R@1"].tolist()
    result = budget.run(tmp_path / "some")
    assert "text -> image, scenes: pq8, pq16, pq32 are fitted to 5 other pictures." in result.notes
    assert "text -> image, photos: pq8, pq16, pq32 are fitted to 4 other pictures." in result.notes
    whole = Budget(model, data=data, ks=[16], limit=6).run(tmp_path / "whole")
    assert any("for want of others" in note for note in whole.notes)


def test_a_folder_is_of_one_budget(model: Fwd2BotModel, tmp_path: Path) -> None:
    first = Budget(model, ks=[1], limit=2)
    result = first.run(tmp_path / "out")
    written = (tmp_path / "out" / "result.json").read_bytes()
    for other in (Budget(model, ks=[2], limit=2), Budget(model, ks=[1], limit=3)):
        assert other.identity != first.identity
        with pytest.raises(InputError, match="holds a run of another"):
            other.run(tmp_path / "out")
    assert (tmp_path / "out" / "result.json").read_bytes() == written
    assert Budget(model, ks=[1], limit=2).run(tmp_path / "out").tables == result.tables
    assert {key: result.settings[key] for key in ("limit", "dtype", "allow_missing")} == {
        "limit": 2,
        "dtype": "float32",
        "allow_missing": False,
    }


def test_recalls_by_hand() -> None:
    """Three pictures on the axes; the third text likes the second picture better than its own."""
    texts = np.array([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.5]], np.float32)
    pool = _Pool(
        title="t",
        tokens=torch.zeros(3, 1, 1),
        embedding=np.eye(3),
        texts=texts,
        of_text=[0, 1, 2],
        keys=["a", "b", "c"],
    )
    found = pool.recalls(np.eye(3, dtype=np.float32))
    assert (found["R@1"].tolist(), found["R@10"].tolist()) == ([1, 1, 0], [1, 1, 1])


def test_a_bad_picture_is_named(model: Fwd2BotModel, tmp_path: Path) -> None:
    data = photos(tmp_path / "d", image={"bytes": b"no picture", "path": "x.png"})
    with pytest.raises(InputError, match=r"test\.parquet, row 2 cannot be used: it is not an image"):
        Budget(model, data=data, ks=[16], limit=3).run(tmp_path / "out")
    skipping = Budget(model, data=data, ks=[1], limit=3, allow_missing=True).run(tmp_path / "skipping")
    (lost,) = skipping.skipped
    assert (lost.where.endswith("test.parquet, row 2"), lost.items) == (True, 2)
    assert skipping.table("text -> image, photos").rows[STORED_EMBEDDING]["R@1"].items == 4
    with pytest.raises(InputError, match="no pictures"):
        _pool(model, "none", iter(()))


def test_more_pictures_than_a_batch_keep_their_texts(model: Fwd2BotModel) -> None:
    """130 pictures are three batches."""
    images = [scenes.render(scenes.scene(i, stream="budget test"), size=32) for i in range(130)]
    made = _pool(model, "t", iter((str(i), image, [f"{i}"] * (1 + i % 2)) for i, image in enumerate(images)))
    assert made.tokens.shape[0] == len(made.embedding) == 130
    assert list(made.of_text) == [i for i in range(130) for _ in range(1 + i % 2)]
    assert made.clusters == [str(i) for i in made.of_text]
    alone = model.compress(images[128:129]).tokens
    torch.testing.assert_close(made.tokens[128:129], alone, atol=1e-4, rtol=1e-3)


def test_without_matplotlib_there_are_tables_and_a_note(
    model: Fwd2BotModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = Budget(model, ks=[1], limit=2).run(tmp_path)
    assert result.figures == []
    assert not (tmp_path / PLOT).exists()
    assert any("pip install 'fwd2bot[eval]'" in note for note in result.notes)
    assert len(result.table("answers").rows) == len(CODEC_NAMES) + 1


def test_what_makes_no_sense_is_refused(model: Fwd2BotModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drawn scenes have no splits"):
        Budget(model, split="val")
    with pytest.raises(InputError, match="k = 17"):
        Budget(model, ks=[17])
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    plain = Fwd2BotModel.from_pretrained(tmp_path / "plain", device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match="training-free"):
        Budget(plain)
