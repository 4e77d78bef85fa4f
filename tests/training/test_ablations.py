from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models

from fwd2bot_training import ablations
from fwd2bot_training.config import load_recipe
from fwd2bot_training.runner import leaves_checkpoint


@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_every_variant_is_a_run_with_one_change(name: str) -> None:
    run = ablations.run_of(name, base=Path("somewhere"), seed=3)
    reference = ablations.run_of("reference", base=Path("somewhere"), seed=3)
    assert run.train == reference.train
    assert run.data.sources == reference.data.sources
    assert (run == reference) == (name == "reference")
    assert max(ablations.VARIANTS[name].lengths) == run.model.num_tokens


@pytest.mark.parametrize("name", ["reference", "average pooling", "single pass, both losses"])
def test_the_last_phase_of_another_recipe_is_changed_instead(name: str) -> None:
    run = ablations.run_of(name, base=Path("somewhere"), seed=3, recipe="mini", overrides=["train.steps=9"])
    mini = load_recipe("mini").last_of_both
    assert run.data == mini.data
    assert run.method.matching_weight == mini.method.matching_weight > 0
    assert (run.model.base, run.train.seed, run.train.steps) == ("somewhere", 3, 9)
    assert (run.method == mini.method) == (name == "reference")


def test_a_variant_stays_what_its_name_says() -> None:
    changes = ["method.contrastive_weight=0.5", "train.steps=9"]
    runs = {n: ablations.run_of(n, base=Path("x"), seed=0, overrides=changes) for n in ("reference", "answers only")}
    assert {n: r.method.contrastive_weight for n, r in runs.items()} == {"reference": 0.5, "answers only": 0.0}
    assert {r.train.steps for r in runs.values()} == {9}


def test_the_rivals_and_the_paper_are_covered() -> None:
    groups = {v.group for v in ablations.VARIANTS.values()}
    assert groups >= {"losses", "passes", "adapters", "compressors", "queries", "k", "extras"}
    runs = {n: ablations.run_of(n, base=Path("x"), seed=0) for n in ablations.VARIANTS}
    assert {r.method.compressor for r in runs.values()} == {"llm", "pooling", "resampler"}
    assert {r.model.adapters for r in runs.values()} == {"stage", "shared", "none"}
    assert any(not leaves_checkpoint(r) for r in runs.values())


@pytest.mark.slow
def test_a_variant_is_trained_scored_and_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    (tmp_path / "flickr8k").mkdir()
    file = io.BytesIO()
    tiny_models.pictures(1)[0].save(file, "PNG")
    row = {"image": {"bytes": file.getvalue(), "path": None}, "captions": ["a dog", "a cat"]}
    pq.write_table(pa.Table.from_pylist([row] * 3), tmp_path / "flickr8k/val.parquet")
    sources = "data.sources={scenes={kind='scenes'}, grids={kind='grids'}}"
    arguments = ["--base", str(tmp_path / "base"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    arguments += ["--scenes", "6", "--only", "reference", "Matryoshka 24, 48, 96"]
    arguments += [
        "--set",
        sources,
        "train.steps=1",
        "train.batch_size=2",
        "train.precision='float32'",
        "data.workers=0",
    ]
    assert ablations.main(arguments) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 4
    scores = json.loads((tmp_path / "out/Matryoshka-24--48--96-0/scores.json").read_text())
    assert set(scores["negatives"]) == {"whole", "24", "48", "96"}
    assert set(scores["answers"]) == set(scores["look_alikes"]) == {"16", "8", "4"}
    assert {name.partition("/")[0] for name in scores["look_alikes"]["4"]} == {"grids"}
    assert "| grids k=16 | grids k=8 | grids k=4 | scenes t2i" in table  # nothing was asked about boxes, nor at k=1
    marks = [p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/scores.json")]
    assert ablations.main(arguments) == 0
    assert [p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/scores.json")] == marks
    assert capsys.readouterr().out == table


def test_the_mean_is_over_question_types() -> None:
    cells = {"color": {"right": 1, "count": 2}, "count": {"right": 0, "count": 9}, "describe": {"right": 9, "count": 9}}
    assert ablations.type_mean(cells) == pytest.approx(0.25)
