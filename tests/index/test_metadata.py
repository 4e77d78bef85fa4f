"""Tables of metadata: what is read, what is refused, and how it comes to the right rows and stays there."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives_made import make_zip
from fakes import FakeModel
from pictures import BLUE, GREEN, RED, plain, write

import fwd2bot_index
from fwd2bot_index import metadata as metadata_module
from fwd2bot_index.errors import InputError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.metadata import join, read_metadata
from fwd2bot_index.store import OWN_COLUMNS, IndexStore
from fwd2bot_index.types import IndexReport
from fwd2bot_index.verifying import verify


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- reading


def test_types_of_csv(tmp_path: Path) -> None:
    path = table(
        tmp_path / "m.csv",
        "file_name,year,price,ok,day,when,note\na.jpg,2020,1.5,true,2020-01-02,2020-01-02 03:04:05,x\n",
    )
    read = read_metadata(path)
    assert read.keys == ["a.jpg"]
    assert read.columns.to_pylist() == [
        {
            "year": 2020,
            "price": 1.5,
            "ok": True,
            "day": date(2020, 1, 2),
            "when": datetime(2020, 1, 2, 3, 4, 5),
            "note": "x",
        }
    ]


def test_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "year": 2020, "camera": None}, {"path": "b.jpg", "year": None, "camera": "X"}]
    lines = table(tmp_path / "m.jsonl", "\n".join(json.dumps(row) for row in rows))
    columns = pa.table(
        {"path": ["a.jpg", "b.jpg"], "year": [2020, None], "camera": pa.array([None, "X"]).dictionary_encode()}
    )
    pq.write_table(columns, tmp_path / "m.parquet")
    expected = [{k: v for k, v in row.items() if k != "path"} for row in rows]
    for path in (lines, tmp_path / "m.parquet"):
        read = read_metadata(path)
        assert read.keys == ["a.jpg", "b.jpg"]
        assert read.columns.to_pylist() == expected
        assert [str(kind) for kind in read.columns.schema.types] == ["int64", "string"]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("m.txt", "path,a\n", "no table of metadata"),
        ("m.csv", "", "cannot be read"),
        ("m.csv", "path,a\nx.jpg,1\ny.jpg,1,2\n", "cannot be read.*3"),
        ("m.jsonl", '{"path": "a", "b": 1}\n{"path": \n', "cannot be read"),
        ("m.parquet", "nonsense", "cannot be read"),
        ("m.csv", "name,a\nx,1\n", "has the columns name, a"),
        ("m.csv", "path,file,a\nx,x,1\n", "has path and file"),
        ("m.csv", "path,a\n,1\n", "Row 1 of .* names no file"),
        ("m.csv", "path\nx\n", "no column besides path"),
        ("m.csv", "path,Width\nx,1\n", "The column 'Width' .* rename it"),
        ("m.csv", "path,trim\nx,1\n", "The column 'trim' .* a word of SQL: rename it"),
        ("m.csv", "path,user columns\nx,1\n", "'user columns' .* plain name"),
        ("m.csv", "path,a,A\nx,1,2\n", "two columns called A"),
        ("m.jsonl", '{"path": "a", "b": [1]}', "column b .* list"),
        ("m.jsonl", '{"image": {"bytes": "x"}, "b": 1}', "column image .* should name files"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    path = table(tmp_path / name, text)
    with pytest.raises(InputError, match=f"(?s){problem}") as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)


def test_no_such_file_and_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"m\.csv cannot be read: No such file"):
        read_metadata(tmp_path / "m.csv")
    monkeypatch.setattr(metadata_module, "LARGEST", 10)
    with pytest.raises(InputError, match="a table of metadata may have"):
        read_metadata(table(tmp_path / "m.csv", "path,a\nx.jpg,1\n"))


def test_the_index_has_all_names_to_itself() -> None:
    assert {
        "uri",
        "id",
        "size",
        "mtime_ns",
        "width",
        "height",
        "status",
        "error",
        "embedding",
        "checksum",
    } == OWN_COLUMNS


# ---- joining


def test_relative_keys(tmp_path: Path) -> None:
    """From the folder of the table first, then from the others in their order."""
    read = read_metadata(
        table(tmp_path / "tables" / "m.csv", f"path,n\na.jpg,1\nb.jpg,2\n./c/../d.jpg,3\n{tmp_path}/e.jpg,4\nf.jpg,5\n")
    )
    known = [
        tmp_path / "tables" / "a.jpg",
        tmp_path / "one" / "a.jpg",
        tmp_path / "one" / "b.jpg",
        tmp_path / "two" / "b.jpg",
    ]
    known += [tmp_path / "two" / "d.jpg", tmp_path / "e.jpg"]
    column = pa.chunked_array([[str(path) for path in known]])
    joined = join(read, column, [tmp_path / "one", tmp_path / "two"])
    numbers = dict(zip(joined.uris, joined.columns.column("n").to_pylist(), strict=True))
    assert numbers == {str(known[0]): 1, str(known[2]): 2, str(known[4]): 3, str(known[5]): 4}
    assert joined.unmatched == ["f.jpg"]


def test_rows_of_one_file(tmp_path: Path) -> None:
    known = pa.chunked_array([[str(tmp_path / "a.jpg")]])
    same = read_metadata(table(tmp_path / "m.csv", "path,n\na.jpg,1\n./a.jpg,1\n"))
    assert join(same, known, []).columns.to_pylist() == [{"n": 1}]
    other = read_metadata(table(tmp_path / "m.csv", "path,n\na.jpg,1\n./a.jpg,2\n"))
    with pytest.raises(InputError, match=r"Rows 1 and 2 of .* different things of \./a\.jpg"):
        join(other, known, [])


# ---- into the index


class Corpus:
    def __init__(self, root: Path) -> None:
        self.photos, self.folder = root / "photos", root / "index"
        write(self.photos, {"red.png": plain(RED), "sub/green.png": plain(GREEN), "blue.png": plain(BLUE)})
        self.model = FakeModel()

    def index(self, metadata: Path | None = None, *paths: Path) -> IndexReport:
        report = index_images(paths or [self.photos], self.folder, self.model, codec="float16", metadata=metadata)
        assert verify(self.store).problems == []
        return report

    @property
    def store(self) -> IndexStore:
        return IndexStore.open(self.folder)

    def values(self, *names: str) -> list[dict[str, object]]:
        return self.store.user_values([str(self.photos / name) for name in names])

    def versions(self) -> int:
        return len(lance.dataset(str(self.folder / "images.lance")).versions())


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_columns_join_and_filter(corpus: Corpus) -> None:
    path = table(
        corpus.photos / "metadata.csv", "file_name,year,camera\nred.png,2020,it's\nsub/green.png,2021,\nno.png,1,x\n"
    )
    report = corpus.index(path)
    assert (report.added, report.described, report.unmatched) == (3, 2, ("no.png",))
    assert {name: str(kind) for name, kind in corpus.store.user_columns().items()} == {
        "year": "int64",
        "camera": "string",
    }
    assert corpus.values("red.png", "blue.png", "never.png") == [
        {"year": 2020, "camera": "it's"},
        {"year": None, "camera": None},
        {"year": None, "camera": None},
    ]
    dataset = lance.dataset(str(corpus.folder / "images.lance"))
    assert dataset.to_table(filter="year > 2020").column("uri").to_pylist() == [str(corpus.photos / "sub/green.png")]
    assert len(corpus.store.embeddings()) == 3


def test_the_same_again_writes_nothing(corpus: Corpus) -> None:
    path = table(corpus.photos / "m.csv", "path,year,note\nred.png,2020,\nblue.png,,x\n")
    corpus.index(path)
    before = corpus.versions()
    report = corpus.index(path)
    assert (report.unchanged, report.described) == (3, 0)
    assert corpus.versions() == before
    table(path, "path,year,note\nred.png,2020,\nblue.png,1999,x\n")
    assert corpus.index(path).described == 1
    assert corpus.values("blue.png", "red.png") == [{"year": 1999, "note": "x"}, {"year": 2020, "note": None}]
    assert corpus.model.compressed == 3


def test_not_a_number_is_nothing(corpus: Corpus) -> None:
    path = corpus.photos / "m.parquet"
    pq.write_table(pa.table({"path": ["red.png", "blue.png"], "x": [float("nan"), 1.0]}), path)
    assert corpus.index(path).described == 1
    assert corpus.values("red.png", "blue.png") == [{"x": None}, {"x": 1.0}]
    assert corpus.index(path).described == 0


def test_what_a_table_does_not_name_stays(corpus: Corpus) -> None:
    corpus.index(table(corpus.photos / "a.csv", "path,year\nred.png,2020\n"))
    corpus.index(table(corpus.photos / "b.csv", "path,year,camera\nblue.png,2021,X\n"))
    assert corpus.values("red.png", "blue.png") == [{"year": 2020, "camera": None}, {"year": 2021, "camera": "X"}]


def test_columns_survive_changes_of_the_file(corpus: Corpus) -> None:
    corpus.index(table(corpus.photos / "m.csv", "path,year\nred.png,2020\nblue.png,2021\n"))
    (corpus.photos / "red.png").write_bytes(plain(GREEN, (50, 50)))
    write(corpus.photos, {"new.png": plain(RED, (9, 9))})
    report = corpus.index()
    assert (report.updated, report.added) == (1, 1)
    corpus.store.optimize()
    assert corpus.values("red.png", "blue.png", "new.png") == [{"year": 2020}, {"year": 2021}, {"year": None}]


def test_columns_go_with_a_file_that_is_renamed(corpus: Corpus) -> None:
    corpus.index(table(corpus.photos / "m.csv", "path,year,note\nred.png,2020,\nsub/green.png,2021,x\n"))
    (corpus.photos / "red.png").rename(corpus.photos / "scarlet.png")
    (corpus.photos / "sub").rename(corpus.photos / "down")
    (corpus.photos / "m.csv").unlink()
    report = corpus.index()
    assert (report.renamed, report.removed) == (2, 0)
    said = [{"year": 2020, "note": None}, {"year": 2021, "note": "x"}, {"year": None, "note": None}]
    assert corpus.values("scarlet.png", "down/green.png", "blue.png") == said
    before = corpus.versions()
    assert corpus.index().unchanged == 3
    assert corpus.versions() == before


def test_what_is_said_of_copies_is_said_of_their_new_names(corpus: Corpus) -> None:
    write(corpus.photos, {"a.png": plain(RED), "b.png": plain(RED)})
    corpus.index(table(corpus.photos / "m.csv", "path,year\na.png,1\nb.png,2\n"))
    (corpus.photos / "a.png").rename(corpus.photos / "y.png")
    (corpus.photos / "b.png").rename(corpus.photos / "z.png")
    (corpus.photos / "red.png").unlink()  # of which nothing is said
    corpus.index()
    assert corpus.values("y.png", "z.png") == [{"year": 1}, {"year": 2}]


def test_a_new_name_keeps_what_is_said_of_it(corpus: Corpus) -> None:
    corpus.index(table(corpus.photos / "m.csv", "path,year,note\nred.png,2020,x\nblue.png,2021,y\n"))
    (corpus.photos / "red.png").rename(corpus.photos / "scarlet.png")
    (corpus.photos / "m.csv").unlink()
    write(corpus.photos, {"azure.png": plain(BLUE)})  # a copy, beside which blue.png stays
    corpus.index(table(corpus.photos / "n.csv", "path,year\nscarlet.png,1999\n"))
    assert corpus.values("scarlet.png", "azure.png") == [{"year": 1999, "note": "x"}, {"year": None, "note": None}]


def test_a_new_name_that_was_asked_about_gets_what_was_said_of_the_old_one(corpus: Corpus) -> None:
    write(corpus.photos, {"in/a.png": plain(RED, (9, 9)), "in/b.png": plain(BLUE, (9, 9))})
    (corpus.photos / "out").mkdir()
    corpus.index(table(corpus.photos / "m.csv", "path,year\nin/a.png,2020\nin/b.png,2021\n"))
    (corpus.photos / "m.csv").unlink()
    for name in ("a.png", "b.png"):
        (corpus.photos / "in" / name).rename(corpus.photos / "out" / name)
    corpus.index(None, corpus.photos / "out")
    opened = fwd2bot_index.Corpus.open(corpus.folder, model=corpus.model)
    opened.annotate("is there red?", "red", choices=["yes", "no"])
    corpus.index()
    answers = corpus.values("out/a.png", "out/b.png")
    assert [said["year"] for said in answers] == [2020, 2021]
    assert None not in [said["red"] for said in answers]


def test_an_interrupted_renaming_goes_on(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.index(table(corpus.photos / "m.csv", "path,year\nred.png,2020\n"))
    (corpus.photos / "red.png").rename(corpus.photos / "scarlet.png")
    with monkeypatch.context() as patch:
        patch.setattr(IndexStore, "hand_on", lambda *_: pytest.fail("the run is cut off"))
        with pytest.raises(pytest.fail.Exception):
            corpus.index()
    assert corpus.values("scarlet.png", "red.png") == [{"year": None}, {"year": 2020}]
    corpus.index()
    assert corpus.values("scarlet.png", "red.png") == [{"year": 2020}, {"year": None}]
    assert len(corpus.store.embeddings()) == 3


def test_types_that_fit_and_types_that_do_not(corpus: Corpus) -> None:
    corpus.index(table(corpus.photos / "m.csv", "path,score\nred.png,0.5\n"))
    corpus.index(table(corpus.photos / "m.csv", "path,score\nblue.png,2\n"))
    assert corpus.values("red.png", "blue.png") == [{"score": 0.5}, {"score": 2.0}]
    before = corpus.versions()
    write(corpus.photos, {"new.png": plain(RED, (9, 9))})
    with pytest.raises(InputError, match="The column score is double in the index and string"):
        corpus.index(table(corpus.photos / "m.csv", "path,score\nblue.png,good\n"))
    assert corpus.versions() == before, "it is refused before any work is done"


def test_a_bad_table_is_refused_before_the_model_is_loaded(corpus: Corpus) -> None:
    path = table(corpus.photos / "m.csv", "name,year\nred.png,2020\n")
    with pytest.raises(InputError, match="must name each file"):
        index_images([corpus.photos], corpus.folder, lambda: pytest.fail("the model was loaded"), metadata=path)
    assert not corpus.folder.exists()


def test_no_row_is_of_a_file_in_the_index(corpus: Corpus) -> None:
    path = table(corpus.photos / "m.csv", "path,year\nx.png,2020\n")
    with pytest.raises(InputError, match=r"None of the 1 files named in .* is in the index; the first is x\.png"):
        corpus.index(path)
    assert len(corpus.store.embeddings()) == 3
    assert corpus.store.user_columns() == {}


def test_members_of_archives_and_tables_in_the_folder(corpus: Corpus) -> None:
    make_zip(corpus.photos / "a.zip", {"x/y.png": plain(RED, (7, 7))})
    pq.write_table(pa.table({"image": ["a.zip!/x/y.png", "red.png"], "n": [1, 2]}), corpus.photos / "m.parquet")
    report = corpus.index(corpus.photos / "m.parquet")
    assert (report.added, report.described, report.skipped) == (4, 2, ())
    assert corpus.values("a.zip!/x/y.png", "red.png") == [{"n": 1}, {"n": 2}]
