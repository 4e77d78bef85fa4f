from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_training.data import DATASETS, Mixture, ParquetSource, SceneSource, clean


def _parquet(path: Path, rows: list[dict[str, object]]) -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "x.png"}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"image": image, **r} for r in rows]), path)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def batch(seed: int, step: int) -> list[tuple[bytes, object]]:
        mixture = Mixture([(SceneSource(image_size=48), 1.0)], seed=seed, batch_size=3)
        return [(e.image.tobytes(), e.segments) for e in mixture.batch(step)[1]]

    assert batch(1, 5) == batch(1, 5)
    assert batch(1, 5) != batch(1, 6)
    assert batch(1, 5) != batch(2, 5)


def test_the_curriculum_grows_the_scenes() -> None:
    mixture = Mixture([(SceneSource(image_size=24, curriculum_steps=100), 1.0)], seed=0, batch_size=12)

    def most(step: int) -> int:
        described = [e.segments[-1].answer for e in mixture.batch(step)[1]]
        return max(d.count(",") + 1 for d in described)

    assert [most(step) for step in (0, 20, 100, 500)] == [1, 2, 6, 6]


def test_sources_are_drawn_by_weight() -> None:
    rare, common = SceneSource(image_size=24, name="rare"), SceneSource(image_size=24, name="common")
    mixture = Mixture([(rare, 1.0), (common, 9.0)], seed=0, batch_size=1)
    names = [mixture.batch(step)[0] for step in range(300)]
    assert 10 <= names.count("rare") <= 60


def test_batches_of_some_sources_are_larger() -> None:
    mixture = Mixture([(SceneSource(image_size=24, name="many"), 1.0)], seed=0, batch_size=3, larger={"many": 2})
    assert len(mixture.batch(0)[1]) == 6


def test_a_scene_has_a_hard_negative_that_differs_by_an_edit() -> None:
    _, examples = Mixture([(SceneSource(image_size=24), 1.0)], seed=0, batch_size=40).batch(0)
    assert sum(len(e.negatives) for e in examples) > 35
    for e in examples:
        assert e.caption not in e.negatives
        for negative in e.negatives:
            assert e.caption is not None
            assert {*negative.split()} & {*e.caption.split()}, "nearly true"


def test_captions_one_for_contrast_and_others_to_say(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [{"captions": ["A dog runs .", "The dog", "Two dogs", "It", "Run"]}])
    source = ParquetSource.read("a", tmp_path / "a.parquet", image_size=24)
    example = source.example(np.random.default_rng(0), step=0)
    said = {s.answer for s in example.segments}
    assert example.caption not in said
    assert len(said) == 2
    assert example.image.shape == (24, 24, 3)


def test_multiple_choice_trains_on_the_right_option(tmp_path: Path) -> None:
    qa = [{"question": "Who ?", "options": ["No one.", "A man.", "A cat."], "answer_index": 1}]
    _parquet(tmp_path / "a.parquet", [{"qa": qa}])
    example = ParquetSource.read("a", tmp_path / "a.parquet", image_size=24).example(np.random.default_rng(0), step=0)
    assert [(s.prompt, s.answer) for s in example.segments] == [("who ?", "a man")]
    assert example.caption is None


def test_pictures_are_not_mirrored_where_a_text_names_a_side(tmp_path: Path) -> None:
    buffer = BytesIO()
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste("black", (0, 0, 20, 40))
    picture.save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "x"}
    for name, answer in (("sided", "on the left"), ("free", "a wall")):
        row = {"image": image, "qa": [{"question": "where", "answer": answer}]}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    mirrored = {}
    for name in ("sided", "free"):
        source = ParquetSource.read(name, tmp_path / f"{name}.parquet", image_size=20)
        shots = [source.example(np.random.default_rng(i), step=0).image for i in range(30)]
        mirrored[name] = sum(s[:, 0].mean() > s[:, -1].mean() for s in shots)
    assert mirrored["sided"] == 0
    assert 5 < mirrored["free"] < 25


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [("A dog , running .", "a dog, running"), ("decorative_item", "decorative item"), ("Daytime.", "daytime")],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def test_wrong_names_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown source 'nope'"):
        Mixture.from_weights({"nope": 1.0}, data=tmp_path, image_size=24, seed=0, batch_size=1)
    with pytest.raises(InputError, match=r"train\.parquet"):
        Mixture.from_weights({"flickr8k": 1.0}, data=tmp_path, image_size=24, seed=0, batch_size=1)
    with pytest.raises(InputError, match="--data"):
        Mixture.from_weights({"flickr8k": 1.0}, data=None, image_size=24, seed=0, batch_size=1)


def test_no_source_is_a_test_split() -> None:
    assert all(path.endswith("/train.parquet") for path in DATASETS.values())
