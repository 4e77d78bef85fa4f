from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fwd2bot_eval.results import TaskResult
from fwd2bot_eval.runs import run
from fwd2bot_eval.subjects import Picture
from fwd2bot_eval.tasks import make_task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.retrieval import _chance
from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """Embeds a picture by its colour, and a text by the numbers in it: "1 0 0" is red."""

    name = "colours"
    fingerprint = "1"
    columns: Sequence[str] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012
    decode_side = None
    caption_prompt = ""
    short_answer_suffix = ""
    notes: Sequence[str] = ()

    def see(self, pictures: Sequence[Picture]) -> Any:
        class Seen:
            embedding = np.stack([np.asarray(p.image, np.float32)[0, 0] / 255 for p in pictures])

        return Seen()

    def embed_text(self, texts: Sequence[str]) -> Any:
        return np.array([[float(n) for n in t.split()] for t in texts], np.float32)

    def matching_question(self, text: str) -> str:
        return text


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
    assert "6 captions among 3 pictures. Median rank 2." in there.explanation
    if layout == "nocaps":
        assert there.rows["R@1, in-domain"]["cosine"].value == pytest.approx(1 / 2)
        assert there.rows["R@1, out-domain"]["cosine"].items == 4


def test_chance_of_several_captions() -> None:
    """One of 2 among the first 2 of 4: 1 - (2/4 x 1/3)."""
    assert _chance(4, 2, 2) == pytest.approx(5 / 6)
    assert _chance(3, 2, 2) == 1.0
    assert _chance(5000, 5, 1) == pytest.approx(0.001)


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
