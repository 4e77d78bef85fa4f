"""Captions: the scorer by hand on small cases, both layouts, and a subject whose captions the test writes."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fwd2bot_eval.report import write_report
from fwd2bot_eval.results import TaskResult
from fwd2bot_eval.runs import run
from fwd2bot_eval.subjects import Fwd2BotSubject, Picture
from fwd2bot_eval.tasks import TASKS, make_task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel

pytest.importorskip("pycocoevalcap.cider.cider", reason="captions are scored by pycocoevalcap, of the extra 'eval'")
from fwd2bot_eval.tasks.captions import cider, familiar, words

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RED, BLUE = (250, 0, 0), (0, 0, 250)
REFERENCES = {
    "red": ["a big red ball on grass", "red ball on the grass"],
    "blue": ["two blue dogs run home", "the blue dogs run"],
}


class Captioner:
    """Says what it is told to of a red or a blue picture."""

    name = "captioner"
    fingerprint = "1"
    decode_side = None
    caption_prompt = "write a caption."
    notes = ()
    settings: dict[str, Any]

    def __init__(self, say: Callable[[str, str], str], *, fail_after: int | None = None, answers: bool = True) -> None:
        self.say = say
        self.columns = ["k=2", "blind"] if answers else []
        self.settings = {"columns": self.columns, "device": "cpu", "dtype": "float32"}
        self.prompts: set[str] = set()
        self.seen = 0
        self.fail_after = fail_after

    def see(self, pictures: Sequence[Picture]) -> Any:
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(pictures)
        reds = [float(np.asarray(p.image)[..., 0].mean()) > 128 for p in pictures]
        return CaptionerSeen(self, ["red" if red else "blue" for red in reds])

    def embed_text(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def matching_question(self, text: str) -> str:
        raise NotImplementedError

    def short_answer_suffix(self, column: str) -> str:
        return "never added"


@dataclasses.dataclass
class CaptionerSeen:
    subject: Captioner
    colours: list[str]
    column: str = ""

    @property
    def embedding(self) -> Any:
        raise NotImplementedError

    def reader(self, column: str) -> Any:
        return dataclasses.replace(self, column=column)

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        self.subject.prompts |= set(prompts)
        said = [self.subject.say(self.column, self.colours[row]) for row in rows]
        return [" ".join(text.split()[:max_new_tokens]) for text in said]


def first_reference(column: str, colour: str) -> str:
    return REFERENCES["red" if column == "blind" else colour][0].upper() + "!"


def evaluate(data: Path, subject: Any, folder: Path, **options: Any) -> TaskResult:
    allow = options.get("allow_missing", False)
    result = run(make_task("captions", TaskOptions(data=data, **options)), subject, folder, allow_missing=allow)
    write_report(result, folder)
    return result


def captions(folder: Path, *, key: str = "captions", split: str = "test", count: int = 2, **change: Any) -> Path:
    rows = []
    for i in range(count):
        colour = ("red", "blue")[i % 2]
        shade = pictures.plain(RED if i % 2 == 0 else BLUE, size=(16 + i, 16))
        rows.append({"image": {"bytes": shade, "path": f"{i}.png"}, key: REFERENCES[colour]})
    rows[-1].update(change)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    pq.write_table(table, folder / f"{split}.parquet", row_group_size=16)
    return folder


def coco(folder: Path, **change: Any) -> Path:
    images = [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 4, "file_name": "000000000004.jpg"}]
    images[1].update(change)
    said = [(9, text) for text in REFERENCES["red"]] + [(4, text) for text in REFERENCES["blue"]]
    annotations = [{"image_id": i, "id": n, "caption": text} for n, (i, text) in enumerate(said)]
    document = {"info": {}, "images": images, "annotations": annotations}
    return pictures.write(
        folder,
        {
            "annotations/captions_val2017.json": json.dumps(document).encode(),
            "val2017/000000000009.jpg": pictures.plain(RED, format="JPEG"),
            "val2017/000000000004.jpg": pictures.plain(BLUE, format="JPEG"),
        },
    )


# ---- the scorer


def test_words() -> None:
    assert words("A dog's ball, in mid-air.") == ["a", "dogs", "ball", "in", "mid", "air"]
    assert words("the men’s 2 hats_off!") == ["the", "mens", "2", "hats", "off"]
    assert words("...") == []


def test_the_same_words_score_ten_and_others_nothing() -> None:
    """Pictures that share no words: an identical caption has cosine 1 for each of the four lengths of n-gram."""
    references = [["a red ball lies here"], ["two blue dogs run home"]]
    assert cider(["A red ball lies here!", "nothing like that said"], references) == pytest.approx([10, 0])
    assert cider(["two blue dogs run home", ""], references) == pytest.approx([0, 0])


def test_by_hand() -> None:
    """One word of two is right. IDF is log 2 for every word: vectors (1, 1) and (1, 1) share one place, cosine 1/2, of
    unigrams; no pair of words is right. Mean over four lengths, times 10."""
    references = [["red ball"], ["blue dog"]]
    assert cider(["red hat", "blue dog"], references) == pytest.approx([10 * 0.5 / 4, 10 * 2 / 4])
    # a caption three times as long: its penalty goes by the difference in numbers of pairs, 5 - 1, with sigma 6
    long = "red ball red ball red ball"
    unigrams = (1 + 1) / (math.sqrt(2) * math.sqrt(18))  # counts (3, 3), clipped to (1, 1)
    pairs = 1 / math.sqrt(3**2 + 2**2)  # "red ball" three times, "ball red" twice
    penalty = math.exp(-(4**2) / (2 * 6**2))
    (score, _) = cider([long, "x"], references)
    assert score == pytest.approx(10 * (unigrams + pairs) / 4 * penalty)


def test_words_that_every_picture_has_are_worth_nothing() -> None:
    references = [["red thing"], ["blue thing"]]
    assert cider(["thing", "thing"], references) == pytest.approx([0, 0])
    assert cider(["red", "thing"], references)[0] > 0


def test_several_references_are_averaged() -> None:
    both = cider(["red ball", "x"], [["red ball", "green hat"], ["blue dog"]])
    one = cider(["red ball", "x"], [["red ball"], ["blue dog"]])
    assert both[0] == pytest.approx(one[0] / 2)


def test_familiar() -> None:
    assert familiar("A red, red cat", ["red ball", "a hat"]) == 0.75
    assert familiar("", ["red"]) == 0


# ---- the layouts


@pytest.mark.parametrize("layout", ["parquet", "one caption", "coco", "coco file", "parquet file"])
def test_both_layouts(tmp_path: Path, layout: str) -> None:
    data = coco(tmp_path / "d") if "coco" in layout else captions(tmp_path / "d")
    if layout == "coco file":
        data = data / "annotations" / "captions_val2017.json"
    if layout == "parquet file":
        data = data / "test.parquet"
    if layout == "one caption":
        texts = [texts[0] for texts in REFERENCES.values()]
        table = pq.read_table(data / "test.parquet").select(["image"]).append_column("caption", pa.array(texts))
        pq.write_table(table, data / "test.parquet")
    subject = Captioner(first_reference)
    result = evaluate(data, subject, tmp_path / "r")
    table = result.table("CIDEr-D")
    references = [r[:1] if layout == "one caption" else r for r in REFERENCES.values()]
    seen = cider([r[0] for r in references], references)
    blind = cider([references[0][0]] * 2, references)
    assert table.rows["all"]["k=2"].value == pytest.approx(seen.mean())
    assert table.rows["all"]["blind"].value == pytest.approx(blind.mean())
    assert table.rows["all"]["k=2"].value > 2 > 1 > blind[1]
    # each caption is its only reference: both have the ten points, and two pictures are few to be sure of that
    low = 10 * 0.025 ** (1 / 2) if layout == "one caption" else seen.min()
    assert (table.rows["all"]["k=2"].low, table.rows["all"]["k=2"].high) == pytest.approx((low, seen.max()))
    assert subject.prompts == {"write a caption."}
    report = (tmp_path / "r" / "report.md").read_text()
    assert "- k=2: “A BIG RED BALL ON GRASS!”" in report
    assert "a person: “a big red ball on grass”" in report
    assert any("nearly with published" in note for note in result.notes)


def test_splits_and_limits(tmp_path: Path) -> None:
    folder = captions(tmp_path / "d", split="train")
    captions(folder, split="val", count=3)
    assert evaluate(folder, Captioner(first_reference), tmp_path / "r").items == 3, "val, since there is no test"
    assert evaluate(folder, Captioner(first_reference), tmp_path / "s", split="train").items == 2
    limited = evaluate(folder, Captioner(first_reference), tmp_path / "t", limit=1)
    assert limited.items == 1
    assert limited.table("CIDEr-D").rows["all"]["k=2"].value == 0, "no word is rarer than another in one picture"
    assert any("Only the first 1 rows" in note for note in limited.notes)
    folder = coco(tmp_path / "c")
    (folder / "captions_train2017.json").write_text("{}")
    with pytest.raises(InputError, match="name one of them as --data"):
        make_task("captions", TaskOptions(data=folder))
    assert evaluate(folder, Captioner(first_reference), tmp_path / "u", split="val2017", limit=1).items == 1
    (folder / "captions_train2017.json").unlink()
    with pytest.raises(InputError, match=r"has no train2017\.parquet"):
        make_task("captions", TaskOptions(data=folder, split="train2017"))
    with pytest.raises(InputError, match=r"--split train2017: .* is a single file"):
        make_task("captions", TaskOptions(data=folder / "annotations" / "captions_val2017.json", split="train2017"))
    captions(folder, split="val")
    with pytest.raises(InputError, match=r"captions_val2017\.json and val\.parquet: name one"):
        make_task("captions", TaskOptions(data=folder))
    assert evaluate(folder, Captioner(first_reference), tmp_path / "v", split="val2017", limit=1).items == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "has no list of texts under 'captions'"),
        (["a dog", ""], "has no list of texts under 'captions'"),
        (["..."], "has the caption '...', which has no words"),
        (None, "has no list of texts"),
    ],
)
def test_a_bad_row_of_parquet(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"test\.parquet, row 1 {message}"):
        make_task("captions", TaskOptions(data=captions(tmp_path, captions=value)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 5}, r"images\[1\] has no caption"),
        ({"id": "4"}, r"images\[1\] has no number under 'id'"),
        ({"id": 9}, r"images\[1\] has the id 9 a second time"),
        ({"file_name": "../x.jpg"}, r"images\[1\] names a picture outside"),
        ({"file_name": "5.jpg"}, None),
    ],
)
def test_a_bad_row_of_coco(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    expected = rf"captions_val2017\.json, {message}" if message else r"1 of 2 pictures are missing.*val2017\.zip"
    with pytest.raises(InputError, match=expected):
        make_task("captions", TaskOptions(data=coco(tmp_path, **change)))


def test_files_that_hold_no_captions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has none of test\.parquet"):
        make_task("captions", TaskOptions(data=tmp_path))
    with pytest.raises(InputError, match=r"test\.parquet has no column 'captions'"):
        make_task("captions", TaskOptions(data=captions(tmp_path, key="qa")))
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(InputError, match=r"other\.json has no list under 'images'"):
        make_task("captions", TaskOptions(data=tmp_path / "other.json"))


def test_without_the_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = captions(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(InputError, match=r"pip install 'fwd2bot\[eval\]'"):
        make_task("captions", TaskOptions(data=folder))


def test_a_model_that_only_embeds_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="captioner only embeds"):
        evaluate(captions(tmp_path / "d"), Captioner(first_reference, answers=False), tmp_path / "r")


# ---- runs


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    folder = captions(tmp_path / "d", count=40)
    whole = evaluate(folder, Captioner(first_reference), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, Captioner(first_reference, fail_after=32), tmp_path / "cut")
    subject = Captioner(first_reference)
    rest = evaluate(folder, subject, tmp_path / "cut")
    assert subject.seen == 8, "the first chunk is not seen again"
    assert dataclasses.replace(rest, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)


@pytest.fixture(scope="module")
def bundled() -> Fwd2BotSubject:
    return Fwd2BotSubject(Fwd2BotModel.from_pretrained(None), ks=[16, 4])


def test_the_bundled_model_says_what_is_drawn(tmp_path: Path, bundled: Fwd2BotSubject) -> None:
    drawn = [scenes.scene(seed, stream="test") for seed in range(4)]
    rows = [
        {
            "image": {"bytes": pictures.encoded(scenes.render(scene), "PNG"), "path": None},
            "captions": [str(scenes.caption(scene, np.random.default_rng(i))) for i in range(5)],
        }
        for scene in drawn
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    result = evaluate(tmp_path, bundled, tmp_path / "r")
    row = {column: cell.value for column, cell in result.table("CIDEr-D").rows["all"].items()}
    assert list(row) == ["k=16", "k=4", "uncompressed", "blind", "other picture"]
    assert row["k=16"] > 2 * row["other picture"]
    assert row["k=16"] > row["blind"]


def test_real_data(tmp_path: Path, bundled: Fwd2BotSubject) -> None:
    folder = DATA / "flickr8k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real data is for development only")
    result = evaluate(folder, bundled, tmp_path / "r", limit=2)
    assert result.items == 2
    assert result.table("CIDEr-D").rows["all"]["k=16"].items == 2


def test_it_is_registered() -> None:
    assert TASKS["captions"][0] == "captions:Captions"
