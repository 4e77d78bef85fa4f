"""Retrieval: ranks by hand in every published layout, chance by enumeration, and runs of the bundled model."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fwd2bot_eval.metrics import RESAMPLES
from fwd2bot_eval.results import TaskResult
from fwd2bot_eval.runs import run
from fwd2bot_eval.subjects import Picture
from fwd2bot_eval.tasks import make_task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.retrieval import _chance, median_estimate
from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError, ModelError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """Embeds a picture by its colour, and a text by the numbers in it: "1 0 0" is red."""

    name = "colours"
    fingerprint = "1"
    columns: Sequence[str] = ()
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32"}  # noqa: RUF012
    decode_side = None
    caption_prompt = ""
    notes: Sequence[str] = ()

    def __init__(self) -> None:
        self.seen = 0

    def see(self, pictures: Sequence[Picture]) -> Any:
        self.seen += len(pictures)

        class Seen:
            embedding = np.stack([np.asarray(p.image, np.float32)[0, 0] / 255 for p in pictures])

        return Seen()

    def embed_text(self, texts: Sequence[str]) -> Any:
        return np.array([[float(n) for n in t.split()] for t in texts], np.float32)

    def matching_question(self, text: str) -> str:
        return text

    def short_answer_suffix(self, column: str) -> str:
        return ""


def png(name: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[name]).save(data, "PNG")
    return data.getvalue()


TEXTS = {
    "red": ["1 0 0", "0 1 0.5"],  # found first; third
    "green": ["0.5 0.5 0", "0 0.2 0.1"],  # a tie, so second; first
    "blue": ["0 0 1", "1 1 0"],  # first; third
}
"""Ranks of the pictures by text, by hand: 1 3 2 1 1 3.

From a picture to texts: red scores 1 0 .5 0 0 1: its best 1 ties with blue's "1 1 0", so second. Green: 0 1 .5 .2 0 1,
its best .5 behind two: third. Blue: 0 .5 0 .1 1 0: first."""


def parquet(folder: Path) -> Path:
    rows = [{"image": {"bytes": png(c), "path": f"{c}.png"}, "captions": TEXTS[c]} for c in COLOURS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    return folder


def karpathy(folder: Path) -> Path:
    (folder / "images").mkdir()
    for colour in COLOURS:
        (folder / "images" / f"{colour}.png").write_bytes(png(colour))
    images = [
        {"filename": f"{c}.png", "split": "test", "imgid": i, "sentences": [{"raw": t} for t in TEXTS[c]]}
        for i, c in enumerate(COLOURS)
    ]
    images.append({"filename": "other.png", "split": "train", "imgid": 9, "sentences": [{"raw": "1 1 1"}]})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return folder


def nocaps(folder: Path) -> Path:
    (folder / "images").mkdir()
    for colour in COLOURS:
        (folder / "images" / f"{colour}.png").write_bytes(png(colour))
    domains = ["in-domain", "out-domain", "out-domain"]
    document = {
        "images": [{"id": i, "file_name": f"{c}.png", "domain": domains[i]} for i, c in enumerate(COLOURS)],
        "annotations": [
            {"id": 2 * i + j, "image_id": i, "caption": t}
            for i, c in enumerate(COLOURS)
            for j, t in enumerate(TEXTS[c])
        ],
    }
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(document))
    return folder


LAYOUTS = {"parquet": parquet, "karpathy": karpathy, "nocaps": nocaps}


def scored(data: Path, out: Path, **options: Any) -> TaskResult:
    return run(make_task("retrieval", TaskOptions(data=data, **options)), Colours(), out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recalls_by_hand_in_every_layout(layout: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    result = scored(LAYOUTS[layout](tmp_path / "data"), tmp_path / "out")
    there, back = result.table("text -> image"), result.table("image -> text")
    assert there.rows["R@1"]["cosine"].value == pytest.approx(3 / 6)
    assert there.rows["R@5"]["cosine"].value == 1.0
    assert (there.rows["R@1"]["cosine"].items, there.rows["R@1"]["cosine"].clusters) == (6, 3)
    assert back.rows["R@1"]["cosine"].value == pytest.approx(1 / 3)
    assert back.rows["R@5"]["cosine"].value == 1.0
    assert there.chance["R@1"] == pytest.approx(1 / 3)
    assert back.chance["R@1"] == pytest.approx(2 / 6)
    assert there.explanation == "6 captions among 3 pictures."
    assert there.rows["median rank"]["cosine"].value == 1.5, "of 1 1 1 2 3 3"
    assert back.rows["median rank"]["cosine"].value == 2, "of 1 2 3"
    if layout == "nocaps":
        assert there.rows["R@1, in-domain"]["cosine"].value == pytest.approx(1 / 2)
        assert there.rows["R@1, out-domain"]["cosine"].items == 4
        assert there.rows["median rank, in-domain"]["cosine"].value == 2, "of 1 3"
        assert there.chance["R@1, in-domain"] == pytest.approx(1 / 3), "among all pictures"
    else:
        assert list(there.rows) == ["R@1", "R@5", "R@10", "median rank"]


def test_chance_of_several_captions() -> None:
    """One of 2 among the first 2 of 4: 1 - (2/4 x 1/3)."""
    assert _chance(4, 2, 2) == pytest.approx(5 / 6)
    assert _chance(3, 2, 2) == 1.0
    assert _chance(5000, 5, 1) == pytest.approx(0.001)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3), (4, 2)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_chance_is_what_random_orders_give(counts: tuple[int, ...], k: int) -> None:
    """All orders of the texts, by picture: how often one of its own is among the first k."""
    texts = [picture for picture, count in enumerate(counts) for _ in range(count)]
    orders = list(itertools.permutations(range(len(texts))))
    for picture, count in enumerate(counts):
        found = sum(any(texts[t] == picture for t in order[:k]) for order in orders)
        assert _chance(len(texts), count, k) == pytest.approx(found / len(orders))


def test_whoever_finds_everything_alike_finds_nothing(tmp_path: Path) -> None:
    class Alike(Colours):
        def embed_text(self, texts: Sequence[str]) -> Any:
            return np.ones((len(texts), 3), np.float32)

        def see(self, pictures: Sequence[Picture]) -> Any:
            class Seen:
                embedding = np.ones((len(pictures), 3), np.float32)

            return Seen()

    (tmp_path / "data").mkdir()
    result = run(make_task("retrieval", TaskOptions(data=parquet(tmp_path / "data"))), Alike(), tmp_path / "out")
    there, back = result.table("text -> image").rows, result.table("image -> text").rows
    assert (there["R@1"]["cosine"].value, there["median rank"]["cosine"].value) == (0, 3)
    assert (back["R@1"]["cosine"].value, back["median rank"]["cosine"].value) == (0, 5), "the other 4 texts first"


@pytest.mark.parametrize("kind", ["picture", "text"])
def test_an_embedding_that_is_no_number_is_no_first_rank(kind: str, tmp_path: Path) -> None:
    class Broken(Colours):
        def embed_text(self, texts: Sequence[str]) -> Any:
            embedded = super().embed_text(texts)
            if kind == "text":
                embedded[3] = np.nan
            return embedded

        def see(self, pictures: Sequence[Picture]) -> Any:
            seen = super().see(pictures)
            if kind == "picture":
                seen.embedding[1] = np.nan
            return seen

    (tmp_path / "data").mkdir()
    task = make_task("retrieval", TaskOptions(data=parquet(tmp_path / "data")))
    name = {"picture": r"picture:green\.png", "text": r"text:green\.png:1"}[kind]
    with pytest.raises(ModelError, match=rf"embedding of {name} \(.*row 1\) is not a number"):
        run(task, Broken(), tmp_path / "out")


def test_the_interval_of_a_median_by_writing_resamples_out() -> None:
    """Of several items a picture, in no order of rank; means of two middle ranks occur."""
    rng = np.random.default_rng(3)
    ranks = rng.integers(1, 40, 31)
    clusters = [str(i) for i in rng.integers(0, 8, 31)]
    names, places = np.unique(clusters, return_inverse=True)
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    medians = [np.median(np.repeat(ranks, w[places])) for w in weights]
    assert any(m % 1 for m in medians)
    found = median_estimate(ranks, clusters)
    assert found.value == np.median(ranks)
    assert (found.low, found.high) == tuple(np.quantile(medians, [0.025, 0.975]))
    # the quantiles above may miss a middle: of two pictures half of the resamples have one
    halves = median_estimate(np.array([1, 2]), ["a", "b"])
    assert (halves.low, halves.value, halves.high) == (1, 1.5, 2)


def test_the_median_has_an_interval_over_pictures() -> None:
    ranks = np.array([1, 1, 1, 9, 9, 9])
    together = median_estimate(ranks, ["a", "a", "a", "b", "b", "b"])
    assert (together.value, together.low, together.high) == (5, 1, 9)
    assert (together.items, together.clusters) == (6, 2)
    assert median_estimate(np.array([4, 4, 4]), ["a", "b", "c"]).high == 4
    assert np.isnan(median_estimate(np.array([4, 2]), ["a", "a"]).low), "of one picture there is none"
    many = np.random.default_rng(0).integers(1, 101, 2000)
    found = median_estimate(many, [str(i) for i in range(2000)])
    assert found.value == np.median(many)
    # of a uniform variable the median's standard error is 100 / (2 sqrt(n))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 100 / (2 * 2000**0.5), abs=1.5)


def test_a_picture_that_is_there_twice_has_its_own_captions_each_time(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [
        {"image": {"bytes": png("red"), "path": "1.png"}, "captions": ["1 0 0"]},
        {"image": {"bytes": png("red"), "path": "2.png"}, "captions": ["1 0 0"]},
        {"image": {"bytes": png("blue"), "path": "3.png"}, "captions": ["0 0 1"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test.parquet")
    there = scored(tmp_path / "data", tmp_path / "out").table("text -> image")
    assert there.rows["R@1"]["cosine"].value == pytest.approx(1 / 3), "its copy is a tie"
    assert there.rows["R@1"]["cosine"].clusters == 2


def test_coco_in_karpathys_layout(tmp_path: Path) -> None:
    """Pictures under ``filepath``; its training split has a second part."""
    (tmp_path / "d").mkdir()
    data = karpathy(tmp_path / "d")
    document = json.loads((data / "dataset_flickr30k.json").read_text())
    for image, split in zip(document["images"], ["train", "restval", "test", "val"], strict=True):
        image |= {"filepath": "val2014", "split": split, "cocoid": 5}
    (data / "dataset_flickr30k.json").unlink()
    (data / "dataset_coco.json").write_text(json.dumps(document))
    (data / "images").rename(data / "val2014")
    assert scored(data, tmp_path / "test").table("text -> image").rows["R@1"]["cosine"].items == 2
    train = scored(data, tmp_path / "train", split="train").table("text -> image")
    assert (train.rows["R@1"]["cosine"].items, train.rows["R@1"]["cosine"].clusters) == (4, 2)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """40 pictures are two chunks; the second one fails at first."""
    rows = []
    for i in range(40):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (i * 5, 255 - i, 9)).save(data, "PNG")
        rows.append({"image": {"bytes": data.getvalue(), "path": f"{i}.png"}, "captions": [f"{i} 0 0", "0 1 0.5"]})
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test.parquet")

    class Stops(Colours):
        def embed_text(self, texts: Sequence[str]) -> Any:
            if self.seen > 32:
                raise KeyboardInterrupt
            return super().embed_text(texts)

    def task() -> Any:
        return make_task("retrieval", TaskOptions(data=tmp_path / "data"))

    whole = run(task(), Colours(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(task(), Stops(), tmp_path / "cut")
    subject = Colours()
    rest = run(task(), subject, tmp_path / "cut")
    assert subject.seen == 8
    assert dataclasses.replace(rest, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_limit_takes_the_first_pictures_and_says_so(tmp_path: Path) -> None:
    result = scored(parquet(tmp_path), tmp_path / "out", limit=2)
    assert result.table("text -> image").rows["R@1"]["cosine"].clusters == 2
    assert any("--limit" in note for note in result.notes)


def test_missing_pictures(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = karpathy(tmp_path / "data")
    (data / "images" / "red.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 pictures are missing.*red\.png"):
        scored(data, tmp_path / "out")
    task = make_task("retrieval", TaskOptions(data=data, allow_missing=True))
    result = run(task, Colours(), tmp_path / "out", allow_missing=True)
    assert [s.items for s in result.skipped] == [1]
    assert any("2 of 3" in note for note in result.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sentences": []}, r"dataset_flickr30k\.json.*sentences"),
        ({"sentences": [{"raw": " "}]}, r"images\[1\] has no text under 'raw'"),
        ({"filename": "../red.png"}, "outside of its folder"),
        ({"filename": None}, r"images\[1\] has no text under 'filename'"),
    ],
)
def test_bad_rows_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    data = karpathy(tmp_path)
    document = json.loads((data / "dataset_flickr30k.json").read_text())
    document["images"][1] |= change
    (data / "dataset_flickr30k.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=said):
        make_task("retrieval", TaskOptions(data=data))


def test_what_cannot_be_told_apart_is_asked_for(tmp_path: Path) -> None:
    data = karpathy(tmp_path)
    (data / "nocaps_val_4500_captions.json").write_text("{}")
    with pytest.raises(InputError, match="name one of them as --data"):
        make_task("retrieval", TaskOptions(data=data))
    with pytest.raises(InputError, match="no pictures of the split 'val'"):
        make_task("retrieval", TaskOptions(data=data / "dataset_flickr30k.json", split="val"))


def test_the_bundled_model_finds_scenes(tmp_path: Path) -> None:
    from fwd2bot_eval.subjects import Fwd2BotSubject
    from fwd2bot_index.model import Fwd2BotModel

    rows = []
    for i in range(6):
        scene = scenes.scene(i, stream="retrieval test")
        data = io.BytesIO()
        scenes.render(scene, size=96).save(data, "PNG")
        caption = str(scenes.caption(scene, np.random.default_rng(i)))
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "caption": caption})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    subject = Fwd2BotSubject(Fwd2BotModel.from_pretrained(None, device="cpu"))
    result = run(make_task("retrieval", TaskOptions(data=tmp_path)), subject, tmp_path / "out")
    assert result.table("text -> image").rows["R@1"]["cosine"].value >= 4 / 6


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data is not here")
def test_real_captions(tmp_path: Path) -> None:
    task = make_task("retrieval", TaskOptions(data=SHARED / "flickr8k", limit=3))
    (chunk,) = task.chunks()
    assert [len(item.references) for item in chunk.items] == [5, 5, 5]
