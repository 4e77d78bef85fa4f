"""Benchmarks of caption pairs: scores worked out by hand, the published layouts, and whole runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import BLUE, GREEN, RED, encoded, left_red_right_blue, plain, write
from PIL import Image

from fwd2bot_eval import runs
from fwd2bot_eval.results import Table, TaskResult
from fwd2bot_eval.runs import Chunk
from fwd2bot_eval.scorers import scorer_names
from fwd2bot_eval.subjects import BLIND, Float32, Fwd2BotSubject, Picture, Reader, Seen, Subject
from fwd2bot_eval.tasks import make_task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.pairs import Aro, SugarCrepe, SugarCrepePP, Winoground
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel

SHARED = Path(__file__).parents[3] / "shared" / "data"
SEVEN = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
FIVE = SEVEN[2:]
COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}


class Scripted:
    """A subject whose every score is written down: how well a text fits a picture of one colour.

    Pictures are known by the colour in their middle. Cosine is the fit itself (pictures are axes, texts their fits);
    P("yes") and the caption's likelihood are ``matching`` and ``caption`` of the text, so that columns can disagree.
    """

    name = "scripted"
    fingerprint = "scripted-1"
    decode_side = None
    caption_prompt = "describe"
    notes: Sequence[str] = ()

    def __init__(
        self,
        cosine: dict[str, tuple[float, float, float]],
        *,
        columns: Sequence[str] = (),
        matching: dict[tuple[str, str], float] | None = None,
        caption: dict[tuple[str, str], float] | None = None,
        blind: dict[str, float] | None = None,
    ) -> None:
        self.cosine, self.columns = cosine, list(columns)
        self.matching, self.caption, self.blind = matching or {}, caption or {}, blind or {}
        self.settings: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
        self.seen: list[str] = []
        self.asked: list[tuple[str, str]] = []

    def see(self, pictures: Sequence[Picture]) -> Seen:
        colours = []
        for picture in pictures:
            middle = picture.image.getpixel((picture.image.width // 2, picture.image.height // 2))
            assert isinstance(middle, tuple)
            colours.append(list(COLOURS)[int(np.argmax(middle))])
        self.seen += colours
        return _ScriptedSeen(self, colours)

    def embed_text(self, texts: Sequence[str]) -> Float32:
        return np.array([self.cosine.get(t, (0.0, 0.0, 0.0)) for t in texts], np.float32)

    def matching_question(self, text: str) -> str:
        return text

    def short_answer_suffix(self, column: str) -> str:
        return ""


class _ScriptedSeen:
    def __init__(self, subject: Scripted, colours: list[str]) -> None:
        self._subject, self._colours = subject, colours
        self.embedding: Float32 = np.eye(3, dtype=np.float32)[[list(COLOURS).index(c) for c in colours]]

    def reader(self, column: str) -> Reader:
        return _ScriptedReader(self._subject, self._colours, column)


class _ScriptedReader:
    def __init__(self, subject: Scripted, colours: list[str], column: str) -> None:
        self._subject, self._colours, self._column = subject, colours, column

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        raise AssertionError("pairs are scored, not generated")

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> tuple[Float32, Float32]:
        subject = self._subject
        values = []
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            colour = self._colours[row]
            if answer == "no":
                values.append(0.0)
            elif answer == "yes":
                subject.asked.append((colour, prompt))
                values.append(subject.matching.get((colour, prompt), 0.0))
            elif self._column == BLIND:
                assert prompt == subject.caption_prompt
                values.append(subject.blind.get(answer, 0.0))
            else:
                values.append(subject.caption.get((colour, answer), 0.0))
        return np.array(values, np.float32), np.ones(len(values), np.float32)


def options(folder: Path, **more: Any) -> TaskOptions:
    return TaskOptions(data=folder, **more)


def on(value: float, colour: str = "red") -> tuple[float, float, float]:
    """An embedding with this cosine to pictures of ``colour``."""
    x, y, z = (value if c == colour else 0.0 for c in COLOURS)
    return x, y, z


def values(table: Table, column: str) -> dict[str, float]:
    """Rounded, by row; rows that were not measured in the column are not there."""
    return {row: round(cells[column].value, 4) for row, cells in table.rows.items() if column in cells}


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def crepe(
    folder: Path, rows: dict[str, list[tuple[str, str, str]]], *, default: tuple[str, str, str] | None = None
) -> Path:
    """SugarCrepe's seven files: (filename, true, false) by category, and pictures of the colour in the filename."""
    for category in SEVEN:
        own = rows.get(category) or [default or ("red.png", "true", "false")]
        dump(
            folder / f"{category}.json",
            {str(i): {"filename": f, "caption": t, "negative_caption": n} for i, (f, t, n) in enumerate(own)},
        )
    return write(folder, {f"val2017/{name}.png": plain(colour) for name, colour in COLOURS.items()})


# ---- SugarCrepe


SCORES = {"best": on(0.9), "good": on(0.5), "also good": on(0.5), "bad": on(0.1)}


def test_sugarcrepe_by_hand(tmp_path: Path) -> None:
    """Wins 1/2, 1, 0 (a tie), ...: and every average is a mean of categories, not of items."""
    data = crepe(
        tmp_path / "data",
        {
            "add_att": [("red.png", "best", "good"), ("red.png", "bad", "good")],
            "add_obj": [("red.png", "best", "bad")],
            "replace_att": [("red.png", "good", "also good")],
            "replace_obj": [("red.png", "good", "bad")] * 3,
            "replace_rel": [("red.png", "bad", "best")],
            "swap_att": [("red.png", "good", "bad"), ("red.png", "best", "bad"), ("red.png", "bad", "best")],
            "swap_obj": [("red.png", "bad", "good")],
        },
    )
    result = runs.run(SugarCrepe(options(data)), Scripted(SCORES), tmp_path / "run")
    table = result.table("SugarCrepe")
    assert list(table.columns) == ["cosine"]
    assert values(table, "cosine") == {
        "add_att": 0.5,
        "add_obj": 1.0,
        "replace_att": 0.0,
        "replace_obj": 1.0,
        "replace_rel": 0.0,
        "swap_att": 0.6667,
        "swap_obj": 0.0,
        "replace average": 0.3333,
        "swap average": 0.3333,
        "add average": 0.75,
        "average": round((0.5 + 1 + 0 + 1 + 0 + 2 / 3 + 0) / 7, 4),
    }
    assert set(table.chance.values()) == {0.5}
    assert (result.items, result.notes, result.skipped) == (12, [], [])
    assert table.rows["swap_att"]["cosine"].items == 3


def test_all_scorers_have_columns_and_the_first_matching_one_decides_what_is_right(tmp_path: Path) -> None:
    """A text-only model that likes the false caption, a matching question that does not, a caption that does not but
    for the language: the four columns disagree."""
    data = crepe(tmp_path / "data", {}, default=("red.png", "t|rue", "false"))
    subject = Scripted(
        {"t|rue": on(0.2), "false": on(0.7)},
        columns=["k=8", "k=4", BLIND],
        matching={("red", "t|rue"): 2.0, ("red", "false"): -1.0},
        caption={("red", "t|rue"): -9.0, ("red", "false"): -8.0},
        blind={"t|rue": -6.0, "false": -4.0},
    )
    task = SugarCrepe(options(data))
    result = runs.run(task, subject, tmp_path / "run")
    table = result.table("SugarCrepe")
    names = scorer_names(subject)
    assert list(table.columns) == names
    assert {name: table.rows["average"][name].value for name in names} == {
        "cosine": 0.0,
        "matching k=8": 1.0,
        "caption k=8": 0.0,
        "caption/blind k=8": 1.0,
        "matching k=4": 1.0,
        "caption k=4": 0.0,
        "caption/blind k=4": 1.0,
        "text only": 0.0,
    }
    records = runs.Records(sorted((tmp_path / "run" / "records").glob("*.parquet")))
    assert records.numbers("matching k=8").tolist() == [3.0] * 7
    assert records.numbers("text only").tolist() == [-2.0] * 7
    assert [e.right for e in result.examples] == [True] * 7
    assert result.examples[0].text == (
        "- true: “t\\|rue” (matching k=8 2.000, cosine 0.200)\n- false: “false” (matching k=8 -1.000, cosine 0.700)"
    )
    (picture,) = result.examples[0].pictures
    assert (tmp_path / "run" / picture).is_file()


def test_a_photo_is_compressed_once_and_a_pair_is_asked_once(tmp_path: Path) -> None:
    data = crepe(tmp_path / "data", {"swap_obj": [("blue.png", "true", "false"), ("red.png", "true", "other")]})
    subject = Scripted({}, columns=["k=8"])
    runs.run(SugarCrepe(options(data)), subject, tmp_path / "run")
    assert sorted(subject.seen) == ["blue", "red"]
    assert sorted(subject.asked) == [
        ("blue", "false"),
        ("blue", "true"),
        ("red", "false"),
        ("red", "other"),
        ("red", "true"),
    ]


def test_intervals_draw_photos_not_items(tmp_path: Path) -> None:
    rows = [("red.png", "best", "bad")] * 3 + [("blue.png", "best", "bad")]
    data = crepe(tmp_path / "data", {"swap_obj": rows})
    table = runs.run(SugarCrepe(options(data)), Scripted(SCORES), tmp_path / "run").table("SugarCrepe")
    cell = table.rows["swap_obj"]["cosine"]
    assert (cell.value, cell.items, cell.clusters) == (0.75, 4, 2)


def test_limit_is_of_each_file_and_said(tmp_path: Path) -> None:
    data = crepe(tmp_path / "data", {"swap_obj": [("red.png", "best", "bad")] * 2 + [("red.png", "bad", "best")]})
    task = SugarCrepe(options(data, limit=2))
    assert sum(len(chunk.items) for chunk in task.chunks()) == 6 + 2
    result = runs.run(task, Scripted(SCORES), tmp_path / "run")
    assert values(result.table("SugarCrepe"), "cosine")["swap_obj"] == 1.0
    assert result.notes == ["Only the first 2 rows of each file (--limit): no score to compare with published ones."]


def test_missing_pictures_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    rows = [("gone.jpg", "best", "bad"), ("red.png", "best", "bad")]
    data = crepe(tmp_path / "data", {"swap_obj": [rows[0]], "swap_att": rows}, default=rows[1])
    with pytest.raises(InputError, match=r"1 of 2 pictures are missing, the first .*gone.jpg.*COCO's 2017 val.*unzip"):
        SugarCrepe(options(data))
    task = SugarCrepe(options(data, allow_missing=True))
    result = runs.run(task, Scripted(SCORES), tmp_path / "run", allow_missing=True)
    assert result.items == 6
    assert [(s.items, "gone.jpg" in s.where) for s in result.skipped] == [(2, True)]
    assert "swap_att.json, item 0" in result.skipped[0].where
    assert result.notes == [
        "6 of 8 items were scored: the pictures of the other 2 are missing or cannot be used (--allow-missing).",
        "No item of swap_obj was scored: averages that need them are left out.",
    ]
    shown = values(result.table("SugarCrepe"), "cosine")
    assert (shown["swap_att"], shown["replace average"], shown["add average"]) == (1.0, 1.0, 1.0)
    assert not {"swap_obj", "swap average", "average"} & set(shown)


def test_more_pictures_make_another_run(tmp_path: Path) -> None:
    """The chunks of a run without them are not its chunks any more."""
    data = crepe(tmp_path / "data", {"swap_obj": [("gone.png", "best", "bad")]})
    before = SugarCrepe(options(data, allow_missing=True)).signature
    assert SugarCrepe(options(data, allow_missing=True)).signature == before
    write(data, {"val2017/gone.png": plain(RED)})
    assert SugarCrepe(options(data, allow_missing=True)).signature != before
    assert SugarCrepe(options(data)).signature != SugarCrepe(options(data, limit=1)).signature


def test_a_broken_picture_is_named_with_its_row(tmp_path: Path) -> None:
    data = crepe(tmp_path / "data", {"swap_att": [("red.png", "a", "b"), ("torn.png", "a", "b")]})
    write(data, {"val2017/torn.png": plain(RED)[:40]})
    task = SugarCrepe(options(data))
    with pytest.raises(InputError, match=r"val2017/torn\.png \(.*swap_att\.json, item 1\) cannot be used"):
        runs.run(task, Scripted(SCORES), tmp_path / "run")


Change = Callable[[dict[str, Any]], Any]
BAD_ROWS: list[tuple[Change, str]] = [
    (lambda r: r.pop("negative_caption"), "swap_obj.json, item 1 has no text under 'negative_caption'"),
    (lambda r: r.update(caption=" "), "swap_obj.json, item 1 has no text under 'caption'"),
    (lambda r: r.update(caption=3), "swap_obj.json, item 1 has no text under 'caption'"),
    (lambda r: r.update(filename=["red.png"]), "swap_obj.json, item 1 has no text under 'filename'"),
    (lambda r: r.update(filename="../../secret.png"), "swap_obj.json, item 1 names a picture outside"),
    (lambda r: r.update(filename="/etc/secret.png"), "swap_obj.json, item 1 names a picture outside"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, change: Change, message: str) -> None:
    data = crepe(tmp_path, {})
    rows = [{"filename": "red.png", "caption": "a", "negative_caption": "b"} for _ in range(3)]
    change(rows[1])
    dump(data / "swap_obj.json", {str(i): row for i, row in enumerate(rows)})
    with pytest.raises(InputError, match=message):
        SugarCrepe(options(data))
    assert len(list(SugarCrepe(options(data, limit=1)).chunks())) == 1


def test_bad_files_and_options_are_named(tmp_path: Path) -> None:
    data = crepe(tmp_path, {})
    with pytest.raises(InputError, match="--split val: this benchmark has a single one"):
        SugarCrepe(options(data, split="val"))
    for text, message in [("[", "not valid JSON"), ("3", "holds no items"), ("{}", "holds no items")]:
        (data / "swap_obj.json").write_text(text)
        with pytest.raises(InputError, match=rf"swap_obj.json .*{message}"):
            SugarCrepe(options(data))
    dump(data / "swap_obj.json", ["no row"])
    with pytest.raises(InputError, match=r"swap_obj\.json, item 0 has no text under 'filename'"):
        SugarCrepe(options(data))
    (data / "swap_obj.json").unlink()
    with pytest.raises(InputError, match=r"swap_obj\.json is missing \(1 of 7 files\).*sugar-crepe"):
        SugarCrepe(options(data))


@pytest.mark.skipif(not (SHARED / "sugarcrepe").is_dir(), reason="the published SugarCrepe files are not here")
def test_published_sugarcrepe_files(tmp_path: Path) -> None:
    """Real rows, drawn pictures: COCO's photos are not here."""
    for file in (SHARED / "sugarcrepe").glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    write(tmp_path, {f"val2017/{name}": plain(RED, format="JPEG") for name in ("000000085329.jpg", "000000222235.jpg")})
    with pytest.raises(InputError, match=r"\d+ of \d+ pictures are missing.*cocodataset.org"):
        SugarCrepe(options(tmp_path))
    task = make_task("sugarcrepe", options(tmp_path, allow_missing=True))
    chunks = list(task.chunks())
    assert sum(len(chunk.items) for chunk in chunks) == 7511
    assert sum(len(chunk.pictures) for chunk in chunks) == len({p.key for chunk in chunks for p in chunk.pictures})
    few = make_task("sugarcrepe", options(tmp_path, allow_missing=True, limit=20))
    result = runs.run(few, Scripted({}), tmp_path / "run", allow_missing=True)
    assert 2 <= result.items < 40
    assert result.notes[1].startswith(f"{result.items} of 140 items were scored")


# ---- SugarCrepe++


def crepe_pp(folder: Path, rows: dict[str, list[tuple[str, str, str]]]) -> Path:
    """The five files as published, lists: (true, true, false) by category; one red picture."""
    for category in FIVE:
        own = rows.get(category) or [("near", "nearer", "far")]
        listed = [
            {"id": i, "filename": "red.png", "caption": a, "caption2": b, "negative_caption": n}
            for i, (a, b, n) in enumerate(own)
        ]
        dump(folder / f"{category}.json", listed)
    return write(folder, {"val2017/red.png": plain(RED)})


def test_sugarcrepe_pp_by_hand(tmp_path: Path) -> None:
    """Embeddings (x is the cosine to the picture): which pairs of texts are closest is another question."""
    cosine = {
        "near": (0.8, 0.6, 0.0),
        "nearer": (0.9, 0.436, 0.0),
        "far": (0.1, 0.0, 0.995),
        "near but else": (0.85, 0.0, 0.5268),
    }
    data = crepe_pp(
        tmp_path / "data",
        {
            # won both ways
            "replace_att": [("near", "nearer", "far")],
            # ITT: only one of the true captions wins. TOT: 0.982 > 0.68, 0.765
            "replace_obj": [("near", "nearer", "near but else")],
            # ITT: 0.85, 0.9 > 0.8. TOT: lost, 0.765 < 0.982, whichever true caption is the one too close
            "replace_rel": [("near but else", "nearer", "near"), ("nearer", "near but else", "near")],
            # the false caption is a true one: nobody can win
            "swap_att": [("near", "nearer", "near")],
            # both win, half the items
            "swap_obj": [("near", "nearer", "far"), ("far", "near", "nearer")],
        },
    )
    result = runs.run(SugarCrepePP(options(data)), Scripted(cosine), tmp_path / "run")
    itt, tot = result.table("SugarCrepe++ ITT"), result.table("SugarCrepe++ TOT")
    assert values(itt, "cosine") == {
        "replace_att": 1.0,
        "replace_obj": 0.0,
        "replace_rel": 1.0,
        "swap_att": 0.0,
        "swap_obj": 0.5,
        "average": 0.5,
    }
    assert list(tot.columns) == ["text cosine"]
    assert values(tot, "text cosine") == {
        "replace_att": 1.0,
        "replace_obj": 1.0,
        "replace_rel": 0.0,
        "swap_att": 0.0,
        "swap_obj": 0.5,
        "average": 0.5,
    }
    assert {*itt.chance.values(), *tot.chance.values()} == {1 / 3}
    lost = next(e for e in result.examples if e.category == "replace_obj")
    assert lost.right is False
    assert lost.text.splitlines() == [
        "- true: “near” (cosine 0.800)",
        "- true: “nearer” (cosine 0.900)",
        "- false: “near but else” (cosine 0.850)",
    ]


def test_sugarcrepe_pp_needs_both_true_captions(tmp_path: Path) -> None:
    data = crepe_pp(tmp_path, {})
    dump(data / "swap_obj.json", [{"filename": "red.png", "caption": "a", "negative_caption": "b"}])
    with pytest.raises(InputError, match=r"swap_obj\.json, item 0 has no text under 'caption2'"):
        SugarCrepePP(options(data))
    (data / "swap_att.json").unlink()
    with pytest.raises(InputError, match=r"swap_att\.json is missing \(1 of 5 files\).*SugarCrepe_pp"):
        SugarCrepePP(options(data))


# ---- ARO


def aro(
    folder: Path, relations: Sequence[tuple[str, str, str]], attributes: Sequence[tuple[list[str], str, str]]
) -> Path:
    """A photo, left red, right blue; the rows' boxes show its left: (relation or attributes, true, false)."""
    box = {"bbox_x": 2, "bbox_y": 3, "bbox_w": 20, "bbox_h": 16}

    def row(true: str, false: str, **more: Any) -> dict[str, Any]:
        return {"image_path": "1.png", "true_caption": true, "false_caption": false, **box, **more}

    dump(folder / "visual_genome_relation.json", [row(t, f, relation_name=r) for r, t, f in relations])
    dump(folder / "visual_genome_attribution.json", [row(t, f, attributes=a) for a, t, f in attributes])
    return write(folder, {"images/1.png": encoded(left_red_right_blue(), "PNG")})


WON, LOST = ("good", "bad"), ("bad", "good")


def test_aro_by_hand(tmp_path: Path) -> None:
    """Two relations count for the mean, 30 items (24 won) and 25 (5 won): (0.8 + 0.2) / 2. One of 24 items and a
    symmetric one do not, but for the accuracy of items: (24 + 5 + 24 + 40) / 119."""
    relations = [
        *[("on", *WON)] * 24, *[("on", *LOST)] * 6,
        *[("under", *WON)] * 5, *[("under", *LOST)] * 20,
        *[("riding", *WON)] * 24,
        *[("near", *WON)] * 40,
    ]  # fmt: skip
    attributes = [
        *[(["red", "big"], *WON)] * 25,
        *[(["red", "tall"], *LOST)] * 25,
        *[(["big", "red"], *LOST)] * 10,
    ]
    data = aro(tmp_path / "data", relations, attributes)
    result = runs.run(Aro(options(data)), Scripted(SCORES), tmp_path / "run")
    assert values(result.table("ARO"), "cosine") == {
        "VG-Relation, mean over relations": 0.5,
        "VG-Relation, all items": round(93 / 119, 4),
        "VG-Attribution, mean over pairs of attributes": 0.5,
        "VG-Attribution, all items": round(25 / 60, 4),
    }
    by_relation = result.table("ARO VG-Relation")
    assert values(by_relation, "cosine") == {"on": 0.8, "under": 0.2}
    assert {e.category for e in result.examples} == {"VG-Relation", "VG-Attribution"}
    assert len(result.examples) == 12


def test_a_relation_and_attributes_of_the_same_name_are_not_mixed(tmp_path: Path) -> None:
    data = aro(tmp_path / "data", [("red / big", *LOST)] * 25, [(["red", "big"], *WON)] * 25)
    table = runs.run(Aro(options(data)), Scripted(SCORES), tmp_path / "run").table("ARO")
    assert values(table, "cosine") == {
        "VG-Relation, mean over relations": 0.0,
        "VG-Relation, all items": 0.0,
        "VG-Attribution, mean over pairs of attributes": 1.0,
        "VG-Attribution, all items": 1.0,
    }


def test_aro_without_a_frequent_relation_has_no_mean(tmp_path: Path) -> None:
    data = aro(tmp_path / "data", [("on", *WON)], [(["red", "big"], *WON)])
    result = runs.run(Aro(options(data)), Scripted(SCORES), tmp_path / "run")
    assert values(result.table("ARO"), "cosine") == {"VG-Relation, all items": 1.0, "VG-Attribution, all items": 1.0}
    assert [t.title for t in result.tables] == ["ARO"]


def test_aro_shows_the_box_only(tmp_path: Path) -> None:
    """Left red, right blue: the same photo gives both, and a box that comes again is compressed once."""
    data = aro(tmp_path / "data", [("on", *WON)] * 3, [(["red", "big"], *WON)])
    path = data / "visual_genome_relation.json"
    rows = json.loads(path.read_text())
    rows[1].update(bbox_x=40, bbox_w=24)
    rows[2].update(bbox_x=60, bbox_w=10)  # reaches over the edge: black there, as in the benchmark's loader
    dump(path, rows)
    task = Aro(options(data))
    (chunk,) = task.chunks()
    sizes = []
    for picture in chunk.pictures:
        (tmp_path / "part.png").write_bytes(picture.read())
        with Image.open(tmp_path / "part.png") as part:
            sizes.append((part.size, part.getpixel((0, 0)), part.getpixel((part.width - 1, 0))))
    assert sizes == [((20, 16), RED, RED), ((24, 16), BLUE, BLUE), ((10, 16), BLUE, (0, 0, 0))]
    assert [item.rows for item in chunk.items] == [(0,), (0,), (1,), (2,)]
    subject = Scripted(SCORES)
    result = runs.run(task, subject, tmp_path / "run")
    assert subject.seen[:2] == ["red", "blue"]
    assert len(subject.seen) == 3
    assert result.table("ARO").rows["VG-Relation, all items"]["cosine"].clusters == 1


BAD_BOXES: list[tuple[Change, str]] = [
    (lambda r: r.pop("bbox_w"), "item 0 has no number under 'bbox_w'"),
    (lambda r: r.update(bbox_x="3"), "item 0 has no number under 'bbox_x'"),
    (lambda r: r.update(bbox_x=True), "item 0 has no number under 'bbox_x'"),
    (lambda r: r.update(bbox_h=0), "item 0 has an empty box"),
    (lambda r: r.update(bbox_y=float("nan")), "item 0 has no number under 'bbox_y'"),
    (lambda r: r.pop("relation_name"), "item 0 has no text under 'relation_name'"),
    (lambda r: r.update(image_path="../1.png"), "item 0 names a picture outside"),
]


@pytest.mark.parametrize(("change", "message"), BAD_BOXES)
def test_a_bad_box_is_named(tmp_path: Path, change: Change, message: str) -> None:
    data = aro(tmp_path, [("on", *WON)], [(["red", "big"], *WON)])
    path = data / "visual_genome_relation.json"
    rows = json.loads(path.read_text())
    change(rows[0])
    dump(path, rows)
    with pytest.raises(InputError, match=f"visual_genome_relation.json, {message}"):
        Aro(options(data))


@pytest.mark.parametrize("change", [{"bbox_x": 64}, {"bbox_y": 32}, {"bbox_x": -20}, {"bbox_w": 10**9}])
def test_a_box_outside_of_its_photo_is_named(tmp_path: Path, change: dict[str, int]) -> None:
    data = aro(tmp_path / "data", [("on", *WON)], [(["red", "big"], *WON)])
    path = data / "visual_genome_relation.json"
    dump(path, [{**json.loads(path.read_text())[0], **change}])
    with pytest.raises(InputError, match=r"1\.png \(.*relation\.json, item 0\) cannot be used: its box"):
        runs.run(Aro(options(data)), Scripted(SCORES), tmp_path / "run")
    result = runs.run(Aro(options(data, allow_missing=True)), Scripted(SCORES), tmp_path / "2", allow_missing=True)
    assert (result.items, len(result.skipped)) == (1, 1)
    assert "VG-Relation, all items" not in values(result.table("ARO"), "cosine")


# ---- Winoground


def winoground(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Official layout; every row about the red and the blue picture, tagged as it says."""
    base = {"image_0": "red", "image_1": "blue", "secondary_tag": "", "num_main_preds": 1}
    lines = [json.dumps({"id": i, **base, **row}) for i, row in enumerate(rows)]
    write(folder, {f"images/{name}.png": plain(colour) for name, colour in COLOURS.items()})
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def example(zero: str, one: str, collapsed: str = "Object", tag: str = "Noun") -> dict[str, Any]:
    return {"caption_0": zero, "caption_1": one, "collapsed_tag": collapsed, "tag": tag}


WINOGROUND = {
    # (score for the red picture, for the green one, for the blue one)
    "red": (0.9, 0.0, 0.1),
    "blue": (0.2, 0.0, 0.8),
    "red loudly": (0.9, 0.0, 0.85),
    "faint": (0.05, 0.0, 0.3),
    "same": (0.5, 0.0, 0.5),
}


def test_winoground_by_hand(tmp_path: Path) -> None:
    data = winoground(
        tmp_path / "data",
        [
            # 0.9 > 0.2, 0.8 > 0.1; 0.9 > 0.1, 0.8 > 0.2: text, image, group
            example("red", "blue"),
            # text: 0.9 > 0.2 but 0.8 < 0.85. image: 0.9 > 0.85, 0.8 > 0.2: image only
            example("red loudly", "blue", "Relation", "Verb"),
            # text: 0.9 > 0.05, 0.3 > 0.1. image: 0.9 > 0.1, 0.3 > 0.05: all
            example("red", "faint", "Relation", "Verb"),
            # text: 0.2 > 0.05 but 0.3 < 0.8: no. image: 0.2 < 0.8: no
            example("blue", "faint", "Relation", "Noun"),
            # ties everywhere
            example("same", "same", "Both", ""),
            # text: 0.9 > 0.5, 0.5 > 0.1. image: 0.9 > 0.1, but 0.5 = 0.5: text only
            example("red", "same", "Both", "Verb"),
        ],
    )
    result = runs.run(Winoground(options(data)), Scripted(WINOGROUND), tmp_path / "run")
    assert [t.title for t in result.tables] == ["text score", "image score", "group score"]
    text, image, group = (values(t, "cosine") for t in result.tables)
    assert text == {
        "overall": 0.5, "Object": 1.0, "Relation": 0.3333, "Both": 0.5, "tag: Noun": 0.5, "tag: Verb": 0.6667,
    }  # fmt: skip
    assert image == {
        "overall": 0.5, "Object": 1.0, "Relation": 0.6667, "Both": 0.0, "tag: Noun": 0.5, "tag: Verb": 0.6667,
    }  # fmt: skip
    assert group == {
        "overall": 0.3333, "Object": 1.0, "Relation": 0.3333, "Both": 0.0, "tag: Noun": 0.5, "tag: Verb": 0.3333,
    }  # fmt: skip
    chances = [t.chance["overall"] for t in result.tables]
    assert chances == [0.25, 0.25, 1 / 6]
    assert {e.category: e.right for e in result.examples}["Object"] is True
    assert [len(e.pictures) for e in result.examples] == [2] * 6
    assert result.examples[0].text.splitlines() == [
        "- true of picture 1: “red” (picture 1: cosine 0.900; picture 2: cosine 0.100)",
        "- true of picture 2: “blue” (picture 1: cosine 0.200; picture 2: cosine 0.800)",
    ]


def test_items_that_share_a_picture_are_resampled_together(tmp_path: Path) -> None:
    """By their second pictures too, and by way of others."""
    pairs = [("red", "blue"), ("green", "blue"), ("other", "other2"), ("other2", "red2"), ("alone", "alone")]
    rows = [{**example("red", "blue"), "image_0": one, "image_1": two} for one, two in pairs]
    data = winoground(tmp_path, rows)
    write(data, {f"images/{name}.png": plain(RED) for pair in pairs for name in pair})
    (chunk,) = Winoground(options(data)).chunks()
    one, two, three, four, five = (item.cluster for item in chunk.items)
    assert one == two
    assert three == four
    assert len({one, three, five}) == 3


TIES = [
    # captions 0 and 1, each (score for the red picture, 0, score for the blue one); text, image
    ((0.5, 0.0, 0.1), (0.5, 0.0, 0.8), 0, 1),
    ((0.9, 0.0, 0.6), (0.2, 0.0, 0.6), 0, 1),
    ((0.4, 0.0, 0.4), (0.2, 0.0, 0.8), 1, 0),
    ((0.9, 0.0, 0.1), (0.5, 0.0, 0.5), 1, 0),
]


@pytest.mark.parametrize(("zero", "one", "text", "image"), TIES)
def test_one_tie_is_enough_to_lose(
    tmp_path: Path, zero: tuple[float, float, float], one: tuple[float, float, float], text: int, image: int
) -> None:
    data = winoground(tmp_path / "data", [example("zero", "one")])
    result = runs.run(Winoground(options(data)), Scripted({"zero": zero, "one": one}), tmp_path / "run")
    assert [t.rows["overall"]["cosine"].value for t in result.tables] == [text, image, 0]
    assert [e.right for e in result.examples] == [False]


def test_winoground_by_every_scorer(tmp_path: Path) -> None:
    """The matching question is right where the cosine is wrong; a text without a picture never is."""
    data = winoground(tmp_path / "data", [example("red", "blue")])
    subject = Scripted(
        {"red": on(0.1), "blue": on(0.9)},
        columns=["k=4", BLIND],
        matching={("red", "red"): 1.0, ("blue", "blue"): 1.0},
        caption={("red", "red"): -1.0, ("red", "blue"): -3.0, ("blue", "red"): -2.0, ("blue", "blue"): -2.5},
        blind={"red": -1.0, "blue": -2.0},
    )
    result = runs.run(Winoground(options(data)), subject, tmp_path / "run")
    scores = {t.title: {c: t.rows["overall"][c].value for c in t.columns} for t in result.tables}
    # caption: the blue picture prefers "red" (-2 > -2.5), until the sentence's own likelihood is taken off (-1 < -0.5)
    assert scores == {
        "text score": {"cosine": 0, "matching k=4": 1, "caption k=4": 0, "caption/blind k=4": 1, "text only": 0},
        "image score": {"cosine": 0, "matching k=4": 1, "caption k=4": 1, "caption/blind k=4": 1, "text only": 0},
        "group score": {"cosine": 0, "matching k=4": 1, "caption k=4": 0, "caption/blind k=4": 1, "text only": 0},
    }
    assert [e.right for e in result.examples] == [True]


def test_winoground_limit_and_missing_pictures(tmp_path: Path) -> None:
    rows = [example("red", "blue"), {**example("red", "blue"), "image_1": "gone"}, example("same", "same")]
    data = winoground(tmp_path / "data", rows)
    with pytest.raises(InputError, match=r"1 of 3 pictures are missing, the first .*gone\.jpg.*images\.zip"):
        Winoground(options(data))
    limited = runs.run(Winoground(options(data, limit=1)), Scripted(WINOGROUND), tmp_path / "limited")
    assert limited.items == 1
    assert "first 1 rows" in limited.notes[0]
    task = Winoground(options(data, allow_missing=True))
    result = runs.run(task, Scripted(WINOGROUND), tmp_path / "run", allow_missing=True)
    assert (result.items, [s.items for s in result.skipped]) == (2, [1])
    assert result.notes[0].startswith("2 of 3 items were scored")
    assert result.table("group score").rows["overall"]["cosine"].value == 0.5


WINOGROUND_BAD_ROWS: list[tuple[Change, str]] = [
    (lambda r: r.pop("caption_1"), "has no text under 'caption_1'"),
    (lambda r: r.update(image_0=4), "has no text under 'image_0'"),
    (lambda r: r.pop("tag"), "has no text under 'tag'"),
    (lambda r: r.pop("collapsed_tag"), "has no text under 'collapsed_tag'"),
    (lambda r: r.update(image_1="../red"), "names a picture outside"),
]


@pytest.mark.parametrize(("change", "message"), WINOGROUND_BAD_ROWS)
def test_winoground_bad_rows_are_named(tmp_path: Path, change: Change, message: str) -> None:
    row = {**example("red", "blue"), "image_0": "red", "image_1": "blue"}
    change(row)
    write(tmp_path, {"images/red.png": plain(RED), "images/blue.png": plain(BLUE)})
    lines = [{**example("red", "blue"), "image_0": "red", "image_1": "blue"}, row]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=rf"examples\.jsonl, line 2 {message}"):
        Winoground(options(tmp_path))


def test_winoground_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"examples\.jsonl is missing.*facebook/winoground"):
        Winoground(options(tmp_path))
    (tmp_path / "examples.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"examples\.jsonl holds no items"):
        Winoground(options(tmp_path))
    (tmp_path / "examples.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"examples\.jsonl, line 1 has no text under 'image_0'"):
        Winoground(options(tmp_path))


# ---- whole runs


@pytest.fixture(scope="module")
def bundled() -> Fwd2BotModel:
    return Fwd2BotModel.from_pretrained(None)


class Interrupted(Exception):
    pass


class StopsAtSecondChunk(SugarCrepe):
    """Two pictures to a chunk, and an end in the middle."""

    measured = 0

    def chunks(self) -> Iterator[Chunk[Any]]:
        return in_twos(super().chunks())

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Any]) -> list[runs.Record]:
        self.measured += 1
        if self.measured == 2:
            raise Interrupted
        return super().measure(subject, seen, items)


class InTwos(StopsAtSecondChunk):
    """The same chunks, to the end."""

    measured = 2


def in_twos(chunks: Iterator[Chunk[Any]]) -> Iterator[Chunk[Any]]:
    for chunk in chunks:
        for start in range(0, len(chunk.pictures), 2):
            own = range(start, min(start + 2, len(chunk.pictures)))
            yield Chunk(
                pictures=[chunk.pictures[i] for i in own],
                items=[
                    dataclasses.replace(item, rows=tuple(r - start for r in item.rows))
                    for item in chunk.items
                    if item.rows[0] in own
                ],
            )


def comparable(result: TaskResult) -> dict[str, Any]:
    return {k: v for k, v in result.to_json().items() if k not in ("seconds", "machine", "command")}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, bundled: Fwd2BotModel) -> None:
    rows = {c: [(f"{list(COLOURS)[i % 3]}.png", f"a {c} thing", "a green thing")] for i, c in enumerate(SEVEN)}
    data = crepe(tmp_path / "data", rows)
    compressed: list[int] = []

    class Counting(Fwd2BotSubject):
        def see(self, pictures: Sequence[Picture]) -> Seen:
            compressed.append(len(pictures))
            return super().see(pictures)

    subject = Counting(bundled, ks=[4], baselines=False)
    with pytest.raises(Interrupted):
        runs.run(StopsAtSecondChunk(options(data)), subject, tmp_path / "run")
    assert compressed == [2, 1]
    resumed = runs.run(InTwos(options(data)), subject, tmp_path / "run")
    assert compressed == [2, 1, 1]
    whole = runs.run(InTwos(options(data)), subject, tmp_path / "whole")
    assert compressed == [2, 1, 1, 2, 1]
    assert comparable(resumed) == comparable(whole)
    assert resumed.items == 7
    assert list(resumed.table("SugarCrepe").columns) == ["cosine", "matching k=4", "caption k=4"]


def test_a_run_that_is_done_is_only_summarised(tmp_path: Path) -> None:
    data = winoground(tmp_path / "data", [example("red", "blue")])
    first = runs.run(Winoground(options(data)), Scripted(WINOGROUND), tmp_path / "run")
    subject = Scripted(WINOGROUND)
    again = runs.run(Winoground(options(data)), subject, tmp_path / "run")
    assert subject.seen == []
    assert comparable(again) == comparable(first)


@pytest.mark.skipif(not (SHARED / "winoground_format").is_dir(), reason="no data in Winoground's layout is here")
def test_winoground_layout_with_the_bundled_model(tmp_path: Path, bundled: Fwd2BotModel) -> None:
    task = make_task("winoground", options(SHARED / "winoground_format", limit=4))
    subject = Fwd2BotSubject(bundled, ks=[4])
    result = runs.run(task, subject, tmp_path)
    assert result.items == 4
    assert list(result.table("text score").columns) == scorer_names(subject)
    assert list(result.table("text score").rows) == ["overall", "Object", "tag: Object"]
    for name in scorer_names(subject):
        text, image, group = (t.rows["overall"][name].value for t in result.tables)
        assert group <= min(text, image)
    assert all(t.rows["overall"]["text only"].value == 0 for t in result.tables)
