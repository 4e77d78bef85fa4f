from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import BLUE, GREEN, RED, encoded, left_red_right_blue, noise, plain, write
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import DataConfig, SourceConfig
from fwd2bot_training.data import CAPTION, DESCRIBE, NAME, Mixture, Routing, RowSource, open_source
from fwd2bot_training.data.parquet import ParquetSource
from fwd2bot_training.data.paths import expand_braces
from fwd2bot_training.data.texts import tidy

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def opened(root: Path, kind: str, path: str, **keys: Any) -> RowSource:
    routing = keys.pop("routing", Routing())
    bad_rows = keys.pop("bad_rows", "stop")
    config = SourceConfig(name="mine", kind=kind, path=path, **keys)  # type: ignore[arg-type]
    source = open_source(config, root=root, routing=routing, bad_rows=bad_rows)
    assert isinstance(source, RowSource)
    return source


def example(source: RowSource, index: int = 0, seed: int = 0) -> Any:
    return source.example(index, np.random.default_rng(seed), step=0)


def said(e: Any) -> list[tuple[str, str]]:
    return [(s.prompt, s.answer) for s in e.segments]


def color(e: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(e.image).reshape(-1, 3).mean(0).round())


def parquet(file: Path, rows: list[dict[str, Any]], *, picture: bytes | None = None, group: int | None = None) -> Path:
    image = {"bytes": plain(RED) if picture is None else picture, "path": "x.png"}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"image": image, **r} for r in rows]), file, row_group_size=group or 1000)
    return file


# --- what a row says


def test_of_several_captions_one_is_contrasted_and_two_are_said(tmp_path: Path) -> None:
    captions = ["A dog runs .", "The dog", "Two dogs", "It", "Run"]
    parquet(tmp_path / "a.parquet", [{"captions": captions}])
    source = opened(tmp_path, "parquet", "a.parquet")
    contrasted = Counter()
    for seed in range(60):
        e = example(source, seed=seed)
        answers = [a for _, a in said(e)]
        assert {p for p, _ in said(e)} == {CAPTION}
        assert len(answers) == 2
        assert e.caption not in answers
        assert e.regions[0].text.count(",") == 4
        contrasted[e.caption] += 1
    assert contrasted.keys() == {"A dog runs", "The dog", "Two dogs", "It", "Run"}


def test_long_captions_are_described_and_never_contrasted(tmp_path: Path) -> None:
    long = "one two three four. Five six"
    parquet(tmp_path / "a.parquet", [{"captions": [long]}, {"captions": [long, "short"]}, {"captions": ["short"]}])
    source = opened(tmp_path, "parquet", "a.parquet", routing=Routing(max_caption_tokens=5))
    assert (example(source, 0).caption, said(example(source, 0))) == (None, [(DESCRIBE, long)])
    for seed in range(8):
        e = example(source, 1, seed)
        assert (e.caption, said(e)) == ("short", [(DESCRIBE, long)])
    assert (example(source, 2).caption, said(example(source, 2))) == ("short", [])
    letters = opened(tmp_path, "parquet", "a.parquet", routing=Routing(max_caption_tokens=4, count_tokens=len))
    assert example(letters, 2).caption is None


def test_questions_words_and_given_negatives(tmp_path: Path) -> None:
    choice = {"question": "Who ?", "options": ["No one.", "A man.", "A cat."], "answer_index": 1}
    parquet(tmp_path / "a.parquet", [{"qa": [choice]}])
    parquet(tmp_path / "b.parquet", [{"qa": [{"question": "what is it", "answer": "coat_rack, bed"}], "word": "bed"}])
    parquet(tmp_path / "c.parquet", [{"caption": "a dog", "negatives": ["a cat", "a cow"]}])
    assert said(example(opened(tmp_path, "parquet", "a.parquet"))) == [("Who?", "A man")]
    b = example(opened(tmp_path, "parquet", "b.parquet"))
    assert said(b) == [("what is it?", "coat rack, bed"), (NAME, "bed")]
    assert [s.kind for s in b.segments] == ["mine", "name"]
    assert [r.text for r in b.regions] == ["bed"]
    c = example(opened(tmp_path, "parquet", "c.parquet"))
    assert (c.caption, c.negatives) == ("a dog", ("a cat", "a cow"))


@pytest.mark.parametrize(
    ("raw", "tidied"),
    [
        ("A dog , running .", "A dog, running"),
        ("decorative_item", "decorative item"),
        ("Daytime.", "Daytime"),
        ("It runs . It jumps .", "It runs. It jumps."),
        ("about .5 m\n wide", "about .5 m wide"),
    ],
)
def test_tidy(raw: str, tidied: str) -> None:
    assert tidy(raw) == tidied


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"qa": [{"question": "who?", "answer": " "}]}, r"answer to 'who\?' is empty"),
        ({"qa": [{"question": "who?", "answer": None}]}, r"answer to 'who\?' is missing"),
        ({"qa": [{"question": "", "answer": "x"}]}, "question is empty"),
        (
            {"qa": [{"question": "who?", "options": ["a"], "answer_index": 1}]},
            "answer_index 1 .* none of its 1 options",
        ),
        ({"qa": ["who?"]}, "'who\\?', which is no question"),
        ({"qa": []}, "it says nothing"),
        ({"captions": ["a", "."]}, r"captions\[1\] is empty"),
        ({"captions": ["a", None]}, r"captions\[1\] is missing"),
        ({"captions": [["a"]]}, r"captions\[0\] is \['a'\], not a text"),
        ({"negatives": ["a"]}, "it says nothing"),
        ({"word": ""}, "word is empty"),
        ({"conversations": "hello"}, "not a list of turns"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "the question 'a' .* has no answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "from 'gpt'; human and gpt must take turns"),
        ({"conversations": [{"value": "a"}]}, "turn 0 .* not one with from and value"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]},
            "answer to 'a' is empty",
        ),
        ([1, 2], "it is .*, not an object"),
    ],
)
def test_rows_that_say_nothing_usable_name_file_and_row(tmp_path: Path, row: Any, reason: str) -> None:
    write(tmp_path, {"x.png": plain(RED)})
    good = {"image": "x.png", "caption": "fine"}
    bad = {"image": "x.png", **row} if isinstance(row, dict) else row
    (tmp_path / "rows.json").write_text(json.dumps([good, bad]))
    source = opened(tmp_path, "conversations", "rows.json")
    assert example(source, 0).caption == "fine"
    with pytest.raises(InputError, match=rf"rows\.json, record 1 \(the first is 0\): .*{reason}"):
        example(source, 1)
    assert list(source.texts(np.random.default_rng(0))) == ["fine"]


# --- pictures


def test_pictures_are_rgb_upright_and_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    turned = encoded(Image.new("L", (40, 20)), "JPEG", exif=exif.tobytes())
    parquet(tmp_path / "a.parquet", [{"word": "x"}], picture=turned)
    image = example(opened(tmp_path, "parquet", "a.parquet")).image
    assert (image.mode, image.size) == ("RGB", (20, 40))


def test_pictures_are_cropped_a_little_and_not_mirrored_where_a_text_names_a_side(tmp_path: Path) -> None:
    sided = encoded(left_red_right_blue((64, 64)), "PNG")
    for name, answer in (("sided", "on the Left"), ("free", "a bright wall")):
        parquet(tmp_path / f"{name}.parquet", [{"qa": [{"question": "where", "answer": answer}]}], picture=sided)
    mirrored = {}
    for name in ("sided", "free"):
        source = opened(tmp_path, "parquet", f"{name}.parquet", crop=True)
        images = [example(source, seed=i).image for i in range(40)]
        mirrored[name] = sum(image.getpixel((0, 0)) == BLUE for image in images)
        shares = [image.width * image.height / 64**2 for image in images]
        assert 0.55 < min(shares) < 0.7
        assert max(shares) <= 1
    assert mirrored["sided"] == 0
    assert 8 < mirrored["free"] < 32


def test_a_truncated_picture_names_file_and_row(tmp_path: Path) -> None:
    jpeg = encoded(noise(), "JPEG")
    parquet(tmp_path / "a.parquet", [{"word": "x"}], picture=jpeg[: len(jpeg) // 2])
    with pytest.raises(InputError, match=r"a\.parquet, row 0 .*: its picture cannot be used: it cannot be decoded"):
        example(opened(tmp_path, "parquet", "a.parquet"))


# --- parquet


def test_parquet_rows_over_files_and_row_groups(tmp_path: Path) -> None:
    for file, start in (("a", 0), ("b", 5)):
        rows = [{"word": f"w{start + i}"} for i in range(5)]
        parquet(tmp_path / "d" / f"{file}.parquet", rows, group=2)
    for path in ("d", "d/*.parquet", "d/{a,b}.parquet", "**/*.parquet"):
        source = opened(tmp_path, "parquet", path)
        assert len(source) == 10
        assert [said(example(source, i))[0][1] for i in range(10)] == [f"w{i}" for i in range(10)]
    assert source.where(7).endswith("b.parquet, row 2 (the first is 0)")
    assert said(example(pickle.loads(pickle.dumps(source)), 9)) == [(NAME, "w9")]  # noqa: S301 - our own


def test_pictures_of_a_row_are_its_own(tmp_path: Path) -> None:
    colors = [(i, 2 * i, 0) for i in range(20)]
    rows = [{"image": {"bytes": plain(c), "path": None}, "word": str(c[0])} for c in colors]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    source = opened(tmp_path, "parquet", "a.parquet")
    for i in np.random.default_rng(0).permutation(20):
        assert color(example(source, int(i))) == colors[i]


def test_large_parquet_files_are_read_a_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = encoded(noise((40, 40)), "PNG")
    rows = [{"image": {"bytes": picture + bytes([i]), "path": None}, "word": str(i)} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    config = SourceConfig(name="mine", path="a.parquet")
    kept = 50 * len(picture)
    source = ParquetSource(config, [tmp_path / "a.parquet"], Routing(), kept_bytes=kept)
    reads = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, **keys: Any) -> Any:
        reads.append(group)
        return read_row_group(self, group, **keys)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    order = source.order(np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    assert len({r // 10 for r in order[:20]}) == 2, "two groups at a time"
    assert len({r // 10 for r in order[:6]}) == 2, "their rows mixed"
    m = Mixture([(source, 1.0)], seed=0, batch_size=10, data=DataConfig(length_grouped=False))
    for step in range(10):
        m.batch(step)
        assert sum(c.nbytes for c in source._kept.values()) <= kept
    assert sorted(reads) == list(range(10)), "each once per epoch"
    small = ParquetSource(config, [tmp_path / "a.parquet"], Routing())
    assert len({r // 10 for r in small.order(np.random.default_rng(0))[:20]}) > 5, "what fits is shuffled whole"


@pytest.mark.parametrize("kept_bytes", [2**20, 0])
def test_some_rows_of_parquet_files_and_no_others(tmp_path: Path, kept_bytes: int) -> None:
    for name, first in (("a", 0), ("b", 6)):
        rows = [
            {"image": {"bytes": plain((10 * (first + i), 0, 0)), "path": None}, "word": str(first + i)}
            for i in range(6)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=2)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    config = SourceConfig(name="mine", path="*.parquet", rows="3:8")
    source = ParquetSource(config, files, Routing(), kept_bytes=kept_bytes)
    order = source.order(np.random.default_rng(0))
    assert sorted(order) == list(range(5)), "each of them once"
    assert [example(source, i).segments[0].answer for i in range(5)] == ["3", "4", "5", "6", "7"]
    assert [color(example(source, i))[0] for i in range(5)] == [30, 40, 50, 60, 70]
    assert "b.parquet, row 1 " in source.where(4)
    with pytest.raises(InputError, match=r"a\.parquet: there are no rows 3:13 of 12"):
        ParquetSource(SourceConfig(name="mine", path="x", rows="3:13"), files, Routing())


def test_lengths_are_the_characters_of_the_texts(tmp_path: Path) -> None:
    qa = [{"question": "who", "answer": "né"}, {"question": "where", "answer": ""}]
    rows = [{"captions": ["ab", "cde"], "qa": qa}, {"captions": None, "qa": []}, {"captions": ["x", None], "qa": None}]
    parquet(tmp_path / "a.parquet", rows, group=2)
    source = opened(tmp_path, "parquet", "a.parquet")
    assert [source.length(i) for i in range(3)] == [5 + 5 + 5, 0, 1]


def test_pictures_beside_a_parquet_file(tmp_path: Path) -> None:
    write(tmp_path, {"pics/g.png": plain(GREEN)})
    rows = [{"image": {"bytes": None, "path": p}, "word": "x"} for p in ("pics/g.png", "pics/none.png", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = opened(tmp_path, "parquet", "a.parquet")
    assert color(example(source)) == GREEN
    with pytest.raises(InputError, match=r"row 1 .*cannot be read: No such file"):
        example(source, 1)
    with pytest.raises(InputError, match=r"row 2 .*it has no picture"):
        example(source, 2)


def test_bad_parquet_files_are_told_when_opened(tmp_path: Path) -> None:
    parquet(tmp_path / "bare.parquet", [{"label": 3}])
    parquet(tmp_path / "cut.parquet", [{"word": "x"}])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-30])
    pq.write_table(pa.table({"word": ["x"]}), tmp_path / "blind.parquet")
    pq.write_table(
        pq.read_table(parquet(tmp_path / "empty.parquet", [{"word": "x"}])).slice(0, 0), tmp_path / "empty.parquet"
    )
    for name, match in (
        ("bare", r"bare\.parquet needs an image column and one of .*; its columns are image, label"),
        ("blind", r"blind\.parquet needs an image column"),
        ("cut", r"cut\.parquet cannot be read as Parquet"),
        ("empty", r"empty\.parquet has no rows"),
        ("nope", r"there is nothing at .*nope\.parquet"),
    ):
        with pytest.raises(InputError, match=match):
            opened(tmp_path, "parquet", f"{name}.parquet")


# --- conversations


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]


@pytest.mark.parametrize("layout", ["list", "lines", "bom"])
def test_conversations(tmp_path: Path, layout: str) -> None:
    write(tmp_path, {"pics/a.png": plain(RED), "pics/b.png": plain(BLUE)})
    records = [
        {"id": "0", "image": "a.png", "conversations": turns("<image>\nWhat colour? é\n", "Red.", "Sure?", " Yes. \n")},
        {"id": "1", "conversations": turns("no picture", "none")},
        {"id": "2", "image": "b.png", "conversations": turns("<image>", "Blue,\nall of it.", "日本?", "no")},
    ]
    content = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    if layout != "lines":
        content = json.dumps(records, ensure_ascii=False, indent=1)
    (tmp_path / "c.json").write_text(("\ufeff" if layout == "bom" else "") + content, encoding="utf-8")
    source = opened(tmp_path, "conversations", "c.json", images="pics")
    assert (len(source), source.left_out) == (2, 1)
    assert said(example(source)) == [("What colour? é", "Red."), ("Sure?", "Yes.")]
    assert said(example(source, 1)) == [(DESCRIBE, "Blue,\nall of it."), ("日本?", "no")]
    assert color(example(source, 1)) == BLUE
    assert source.where(1).endswith("line 5" if layout == "lines" else "record 2 (the first is 0)")
    assert source.length(1) == len("<image>Blue,\nall of it.日本?no")


def test_missing_pictures_are_counted_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"pics/a.png": plain(RED)})
    names = ["a.png", "b.png", "sub/c.png", "b.png"]
    records = [{"image": n, "conversations": turns("x", n)} for n in names]
    (tmp_path / "c.json").write_text(json.dumps(records))
    with pytest.raises(
        InputError, match=r"2 of 3 pictures of .*c\.json are missing, the first b\.png .*pics.*bad_rows"
    ):
        opened(tmp_path, "conversations", "c.json", images="pics")
    source = opened(tmp_path, "conversations", "c.json", images="pics", bad_rows="skip")
    m = Mixture([(source, 1.0)], seed=0, batch_size=2, data=DataConfig(bad_rows="skip"))
    assert {s.answer for step in range(4) for e in m.batch(step)[1] for s in e.segments} == {"a.png"}
    assert {s.row for s in m.skipped} == {1, 2, 3}
    assert "line" not in m.skipped[0].reason
    with pytest.raises(InputError, match="3 of 3 pictures"):
        opened(tmp_path, "conversations", "c.json", images="elsewhere", bad_rows="skip")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"image": "a"}, {"ima', r"record 1 .*cut short"),
        ('[{"image": "a"} {"image": "b"}]', "after record 0"),
        ("", "is empty"),
        ("[]", "no record with an image"),
        ('[{"conversations": []}]', r"no record with an image \(1 without\)"),
    ],
)
def test_bad_conversation_files_are_told_when_opened(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=rf"c\.json.*{reason}"):
        opened(tmp_path, "conversations", "c.json")


def test_a_broken_line_is_a_bad_row(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": plain(RED)})
    (tmp_path / "c.jsonl").write_text(
        '{"image": "a.png", "caption": "x"}\n{"image": \n{"image": ["a.png"], "text": "y"}\n'
    )
    source = opened(tmp_path, "conversations", "c.jsonl")
    with pytest.raises(InputError, match=r"c\.jsonl, line 2: it is not valid JSON"):
        example(source, 1)
    with pytest.raises(InputError, match=r"c\.jsonl, line 3: its image is \['a.png'\]"):
        example(source, 2)


# --- webdataset


def tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return file


def test_webdataset(tmp_path: Path) -> None:
    record = json.dumps({"captions": ["blue", "all blue"], "qa": [{"question": "what?", "answer": "sky"}]}).encode()
    tar(
        tmp_path / "s-00.tar",
        {
            "d/000.png": plain(RED),
            "d/000.txt": "rot é".encode(),
            "d/000.cls": b"7",
            "001.JPG": plain(BLUE),
            "001.json": record,
        },
    )
    tar(
        tmp_path / "s-01.tar",
        {"long/" + "x" * 150 + ".bmp": plain(GREEN, format="BMP"), "long/" + "x" * 150 + ".txt": b"g"},
    )
    for path in ("s-{00..01}.tar", "s-*.tar", "."):
        source = opened(tmp_path, "webdataset", path)
        assert len(source) == 3
    assert example(source, 0).caption == "rot é"
    assert color(example(source, 0)) == RED
    b = example(source, 1)
    assert (color(b), len(b.segments)) == (BLUE, 2)
    assert b.caption in ("blue", "all blue")
    assert color(example(source, 2)) == GREEN
    assert source.where(1).endswith("s-00.tar, sample 001")
    assert source.length(0) == len("rot é".encode())


def test_bad_tars_are_told_when_opened(tmp_path: Path) -> None:
    members = {f"{i}.{e}": d for i in range(3) for e, d in (("png", plain(RED)), ("txt", b"red"))}
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    for share in (0.3, 0.5, 0.6):
        (tmp_path / "cut.tar").write_bytes(whole[: int(6 * 1024 * share) // 512 * 512])
        with pytest.raises(InputError, match=r"cut\.tar is cut short or damaged after \d\.(png|txt)"):
            opened(tmp_path, "webdataset", "cut.tar")
    damaged = bytearray(whole)
    damaged[2048 + 150] ^= 1
    (tmp_path / "damaged.tar").write_bytes(damaged)
    with pytest.raises(InputError, match=r"cut short or damaged after 0\.txt"):
        opened(tmp_path, "webdataset", "damaged.tar")
    with tarfile.open(tmp_path / "small.tar", "w:gz") as t:
        t.add(tmp_path / "whole.tar", "x")
    with pytest.raises(InputError, match=r"small\.tar is not an uncompressed tar"):
        opened(tmp_path, "webdataset", "small.tar")
    tar(tmp_path / "none.tar", {"README": b"x"})
    with pytest.raises(InputError, match=r"none\.tar holds no samples"):
        opened(tmp_path, "webdataset", "none.tar")
    tar(tmp_path / "lacking.tar", {**members, "9.txt": b"x"})
    with pytest.raises(InputError, match=r"1 of 4 samples of .*lacking\.tar have no picture, the first 9"):
        opened(tmp_path, "webdataset", "lacking.tar")
    with pytest.raises(InputError, match=r"lacking\.tar, sample 9: it has no picture"):
        example(opened(tmp_path, "webdataset", "lacking.tar", bad_rows="skip"), 3)
    tar(tmp_path / "mute.tar", {**members, "9.png": plain(RED)})
    with pytest.raises(InputError, match=r"1 of 4 samples of .*mute\.tar have no text"):
        opened(tmp_path, "webdataset", "mute.tar")


def test_braces() -> None:
    assert expand_braces("a{1..3}b{x,y}") == ["a1bx", "a1by", "a2bx", "a2by", "a3bx", "a3by"]
    assert expand_braces("s-{008..011}") == ["s-008", "s-009", "s-010", "s-011"]
    assert expand_braces("plain") == ["plain"]


# --- folders


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    write(tmp_path, {"f/a.png": plain(RED), "f/sub/b.png": plain(BLUE)})
    rows = [{"file_name": "a.png", "text": "red"}, {"file_name": "sub/b.png", "text": 'blue, "sky"'}]
    with open(tmp_path / "f" / "metadata.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    source = opened(tmp_path, "folder", "f")
    assert [(example(source, i).caption, color(example(source, i))) for i in (0, 1)] == [
        ("red", RED),
        ('blue, "sky"', BLUE),
    ]
    assert source.where(1).endswith("metadata.csv, line 3")
    assert [source.length(i) for i in (0, 1)] == [3, 11]
    lines = [{"file_name": "a.png", "captions": ["r", "e"]}, {"file_name": "none.png", "caption": "d"}]
    (tmp_path / "f" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"1 of 2 pictures of .*metadata\.jsonl are missing, the first none\.png"):
        opened(tmp_path, "folder", "f")
    assert example(opened(tmp_path, "folder", "f", bad_rows="skip")).caption in ("r", "e")


def test_a_folder_with_texts_beside_the_pictures(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"f/a.png": plain(RED), "f/a.txt": b"red\n", "f/b/c.jpg": plain(BLUE, format="JPEG"), "f/b/c.txt": b"b"},
    )
    source = opened(tmp_path, "folder", "f")
    assert [example(source, i).caption for i in range(len(source))] == ["red", "b"]
    write(tmp_path, {"f/d.png": plain(GREEN), "f/e.png": plain(GREEN), "f/e.txt": b" \n"})
    with pytest.raises(InputError, match=r"1 of 4 pictures in .* have no text, the first .*d\.png .*d\.txt"):
        opened(tmp_path, "folder", "f")
    source = opened(tmp_path, "folder", "f", bad_rows="skip")
    with pytest.raises(InputError, match=r"e\.png: its text\[0\] is empty"):
        example(source, [source.where(i)[-5:] for i in range(4)].index("e.png"))


def test_bad_folders_are_told_when_opened(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"file": b"", "none/x.md": b"", "csv/metadata.csv": b"name,caption\na,b\n", "zero/metadata.jsonl": b"\n"},
    )
    for path, match in (
        ("nope", "nope is not a folder"),
        ("file", "file is not a folder"),
        ("none", "there are no pictures in"),
        ("csv", r"metadata\.csv needs the columns file_name and caption; it has name, caption"),
        ("zero", r"metadata\.jsonl has no rows"),
    ):
        with pytest.raises(InputError, match=match):
            opened(tmp_path, "folder", path)


# --- Hugging Face datasets


def test_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        captions=datasets.List(datasets.Value("string")),
        qa=datasets.List({"question": datasets.Value("string"), "answer": datasets.Value("string")}),
        label=datasets.Value("int32"),
    )
    rows = {
        "image": [{"bytes": plain(c), "path": None} for c in (RED, BLUE)],
        "captions": [["red"], []],
        "qa": [[], [{"question": "what", "answer": "sky"}]],
        "label": [0, 1],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, val=data.select([1])).save_to_disk(tmp_path / "two")
    data.remove_columns(["captions", "qa"]).save_to_disk(tmp_path / "mute")
    for path in ("one", "two"):
        source = opened(tmp_path, "datasets", path)
        assert len(source) == 2
        assert (example(source).caption, color(example(source))) == ("red", RED)
        assert (said(example(source, 1)), color(example(source, 1))) == ([("what?", "sky")], BLUE)
        assert [source.length(i) for i in (0, 1)] == [3, 7]
    assert len(opened(tmp_path, "datasets", "two", split="val")) == 1
    assert said(example(pickle.loads(pickle.dumps(source)), 1)) == [("what?", "sky")]  # noqa: S301 - our own
    with pytest.raises(InputError, match="no split 'test'; it has train, val"):
        opened(tmp_path, "datasets", "two", split="test")
    with pytest.raises(InputError, match="mute needs an image column and one of"):
        opened(tmp_path, "datasets", "mute")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"datasets cannot load .*empty"):
        opened(tmp_path, "datasets", "empty")


def test_datasets_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r"fwd2bot\[train\]"):
        opened(tmp_path, "datasets", "some/set")


# --- paths, and all together


def test_relative_paths_need_a_root(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"word": "x"}])
    config = SourceConfig(name="mine", path="a.parquet")
    with pytest.raises(InputError, match="'mine' needs --data"):
        open_source(config, root=None)
    absolute = SourceConfig(name="mine", path=str(tmp_path / "a.parquet"))
    assert len(open_source(absolute, root=None)) == 1
    with pytest.raises(InputError, match=r"nothing at .*\*\.parquet"):
        opened(tmp_path / "none", "parquet", "*.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder holds no \.parquet file"):
        opened(tmp_path, "parquet", "folder")


def test_a_mixture_from_its_settings(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"captions": ["one two three"]}] * 6)
    data = DataConfig(
        sources=(
            SourceConfig(name="scenes", kind="scenes", size=24, weight=1.0),
            SourceConfig(name="a", path="a.parquet", weight=3.0, batch_factor=2),
        ),
        max_caption_tokens=2,
    )
    m = Mixture.from_config(data, root=tmp_path, seed=0, batch_size=2)
    batches = [m.batch(step) for step in range(100)]
    assert 55 < sum(name == "a" for name, _ in batches) < 92
    assert {(name, len(b)) for name, b in batches} == {("scenes", 2), ("a", 4)}
    assert {e.caption for name, b in batches if name == "a" for e in b} == {None}
    by_letter = Mixture.from_config(data, root=tmp_path, seed=0, batch_size=2, count_tokens=lambda t: 1)
    assert {e.caption for s in range(9) for e in by_letter.batch(s)[1] if by_letter.batch(s)[0] == "a"} == {
        "one two three"
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("flickr8k/val.parquet", 1000),
        ("visual7w/val.parquet", 608),
        ("daquar/train.parquet", 794),
        ("shapes/val.parquet", 1024),
    ],
)
def test_real_data(path: str, rows: int) -> None:
    source = opened(SHARED, "parquet", path, crop=True)
    assert len(source) == rows
    m = Mixture([(source, 1.0)], seed=0, batch_size=16)
    first = m.batch(0)[1]
    assert len({e.image.tobytes() for e in first}) == 16
    assert (first[0].caption is None) == ("flickr8k" not in path)
    texts = list(source.texts(np.random.default_rng(0)))
    assert min(map(len, texts)) >= 1
    assert len(texts) >= rows
