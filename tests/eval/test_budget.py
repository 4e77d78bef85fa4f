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

from fwd2bot_eval.budget import NO_TOKENS, PLOT, STORED_EMBEDDING, _Pool, _pool, run_budget
from fwd2bot_eval.default_model import held_out
from fwd2bot_eval.report import write_report
from fwd2bot_eval.runs import Progress
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, fit_codec, payload_bytes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel


@pytest.fixture(scope="module")
def model() -> Fwd2BotModel:
    return Fwd2BotModel.from_pretrained(None, device="cpu")


def test_every_cell_is_measured_on_what_the_codec_gives_back(model: Fwd2BotModel, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told: list[Progress] = []
    result = run_budget(model, tmp_path, ks=[16, 2], limit=8, progress=told.append)
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
    both = run_budget(model, tmp_path / "both", ks=[16, 1], limit=6)
    one = run_budget(model, tmp_path / "one", ks=[1], limit=6)
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
    result = run_budget(model, tmp_path, ks=[1], limit=6)
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
    result = run_budget(model, tmp_path / "out", data=photos(tmp_path / "d"), ks=[16], limit=2)
    found = result.table("text -> image, photos").rows["k=16 float16"]["R@1"]
    assert (found.value, found.items, found.clusters) == (1.0, 4, 2)
    whole = result.table("text -> image, photos").rows[STORED_EMBEDDING]["R@1"]
    assert (whole.value, whole.items) == (1.0, 4)
    alone = run_budget(model, tmp_path / "alone", ks=[16], limit=2)
    assert result.table("answers") == alone.table("answers"), "questions are about the scenes"


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
        run_budget(model, tmp_path / "out", data=data, ks=[16], limit=3)
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
    result = run_budget(model, tmp_path, ks=[1], limit=2)
    assert result.figures == []
    assert not (tmp_path / PLOT).exists()
    assert any("pip install 'fwd2bot[eval]'" in note for note in result.notes)
    assert len(result.table("answers").rows) == len(CODEC_NAMES) + 1


def test_what_makes_no_sense_is_refused(model: Fwd2BotModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="k = 17"):
        run_budget(model, tmp_path, ks=[17])
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    plain = Fwd2BotModel.from_pretrained(tmp_path / "plain", device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match="training-free"):
        run_budget(plain, tmp_path / "out")
