from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch

from fwd2bot_eval.budget import PLOT, run_budget
from fwd2bot_eval.default_model import held_out
from fwd2bot_eval.report import write_report
from fwd2bot_eval.runs import Progress
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, get_codec
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
    assert list(answers.rows) == [f"k={k} {name}" for k in (16, 2) for name in CODEC_NAMES]
    for k in (16, 2):
        for name in CODEC_NAMES:
            size = get_codec(name).payload_bytes(k, model.token_dim)
            assert answers.rows[f"k={k} {name}"]["bytes"].value == size
            assert found.rows[f"k={k} {name}"]["bytes"].value == size
    assert found.rows["stored embedding"]["bytes"].value == 2 * model.embedding_dim
    assert told[-1].done == told[-1].total == 8

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


def test_what_makes_no_sense_is_refused(model: Fwd2BotModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="k = 17"):
        run_budget(model, tmp_path, ks=[17])
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    plain = Fwd2BotModel.from_pretrained(tmp_path / "plain", device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match="training-free"):
        run_budget(plain, tmp_path / "out")
