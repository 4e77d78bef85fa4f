"""Questions to an index: the right files in the right order, and answers without the pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeModel
from pictures import BLUE, GREEN, RED, plain, write
from PIL import Image

from fwd2bot_index import answering, corpus
from fwd2bot_index import store as store_module
from fwd2bot_index.corpus import Corpus, find_index
from fwd2bot_index.errors import (
    ImageError,
    IndexCorruptedError,
    IndexEmptyError,
    IndexMismatchError,
    IndexNotFoundError,
    InputError,
)
from fwd2bot_index.indexing import index_images
from fwd2bot_index.queries import Term
from fwd2bot_index.searching import Searcher, build_vectors
from fwd2bot_index.store import IndexStore
from fwd2bot_index.types import Compressor, Hit

FILES = {"red.png": plain(RED), "sub/green.png": plain(GREEN), "blue.png": plain(BLUE, (40, 30))}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", FILES)


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Corpus:
    index_images([photos], tmp_path / "index", FakeModel(), codec="int8")
    return Corpus.open(tmp_path / "index", model=FakeModel())


def reindexed(photos: Path, index: Corpus) -> Corpus:
    index_images([photos], index.place.folder, FakeModel(), codec="int8")
    return Corpus.open(index.place.folder, model=FakeModel())


def names(hits: list[Hit]) -> list[str]:
    return [Path(hit.uri).name for hit in hits]


# ---- searching


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_a_text_finds_its_picture(index: Corpus, colour: str) -> None:
    hits = index.search(f"something {colour}", top=2)
    assert names(hits)[0] == f"{colour}.png"
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].score > 0.99 > hits[1].score


def test_a_hit_says_what_is_known_of_the_file(index: Corpus, photos: Path) -> None:
    [hit] = index.search("blue", top=1)
    assert (hit.uri, hit.width, hit.height) == (str(photos / "blue.png"), 40, 30)
    assert len(hit.id) == 32


@pytest.mark.parametrize(
    "given", [str, Path, lambda path: Path(path).read_bytes(), lambda path: Image.open(path).convert("RGB")]
)
def test_a_picture_finds_itself(index: Corpus, photos: Path, given: Callable[[Path], object]) -> None:
    hits = index.search(image=given(photos / "blue.png"), top=1)  # type: ignore[arg-type]
    assert names(hits) == ["blue.png"]
    assert hits[0].score == pytest.approx(1, abs=1e-3)


def test_an_embedding_is_searched_for_as_it_is(index: Corpus) -> None:
    assert names(index.search_embedding(np.array([0, 1, 0], np.float32), top=1)) == ["green.png"]
    for bad in (np.zeros(4, np.float32), np.array([np.nan, 0, 0], np.float32), np.zeros((1, 3), np.float32)):
        with pytest.raises(InputError, match="3 finite numbers"):
            index.search_embedding(bad)


def test_more_is_asked_for_than_there_is(index: Corpus) -> None:
    assert len(index) == 3
    assert len(index.search("red", top=100)) == 3


def test_files_with_the_same_bytes_are_all_found(index: Corpus, photos: Path) -> None:
    shutil.copy(photos / "red.png", photos / "sub" / "copy.png")
    hits = reindexed(photos, index).search("red", top=2)
    assert set(names(hits)) == {"red.png", "copy.png"}
    assert hits[0].id == hits[1].id
    assert hits[0].score == hits[1].score


def test_hits_are_right_after_changes(index: Corpus, photos: Path) -> None:
    rng = np.random.default_rng(0)
    colours = [RED, GREEN, BLUE]
    truth: dict[str, int] = {}
    for step in range(6):
        for _ in range(4):
            name, colour = f"{rng.integers(12)}.png", int(rng.integers(3))
            write(photos, {name: plain(colours[colour], (10 + step, 10 + colour))})
            os.utime(photos / name, (step, step))
            truth[name] = colour
        if step % 2:
            gone = sorted(truth)[0]
            (photos / gone).unlink()
            del truth[gone]
        index = reindexed(photos, index)
    assert len(index) == len(truth) + 3
    for colour, word in enumerate(["red", "green", "blue"]):
        expected = {name for name, c in truth.items() if c == colour} | {f"{word}.png"}
        hits = index.search(word, top=len(expected))
        assert set(names(hits)) == expected
        assert {answer.text for answer in index.ask("which colour?", hits)} == {word}


def test_what_makes_no_sense_is_refused(index: Corpus, photos: Path) -> None:
    with pytest.raises(InputError, match="Search for something"):
        index.search()
    with pytest.raises(InputError, match="empty"):
        index.search("  ")
    with pytest.raises(InputError, match="20,000 characters"):
        index.search("x" * 20_000)
    with pytest.raises(InputError, match="100 terms"):
        index.search(*["red"] * 101)
    with pytest.raises(InputError, match="At least one"):
        index.search("red", top=0)
    with pytest.raises(ImageError, match="No such file"):
        index.search(image="nowhere.png")
    with pytest.raises(ImageError, match="not an image"):
        index.search(image=b"not an image")
    write(photos, {"bad.png": b"bad"})
    with pytest.raises(ImageError, match=r"bad\.png cannot be used: "):
        index.search("red", image=photos / "bad.png")
    with pytest.raises(InputError, match="no column yeer"):
        index.search("red", where="yeer = 3")


# ---- several terms, and which of what they find


def test_terms_add_up(index: Corpus, photos: Path) -> None:
    write(photos, {"purple.png": plain((250, 0, 250)), "yellow.png": plain((250, 250, 0))})
    index = reindexed(photos, index)
    assert names(index.search("red", "blue", top=1)) == ["purple.png"]
    assert names(index.search("red", image=photos / "blue.png", top=1)) == ["purple.png"]
    assert names(index.search("red", "green", top=1)) == ["yellow.png"]
    assert names(index.search("red", "green", minus=["green"], top=1)) == ["red.png"]
    assert names(index.search("red", minus=["blue"], top=1)) != ["purple.png"]
    assert names(index.search(minus=["red"], top=5))[-1] == "red.png"
    heavy = index.search(Term(text="red", weight=20), Term(text="blue"), top=1)
    assert names(heavy) == ["red.png"]


def test_like_a_picture_of_the_index(index: Corpus, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(photos, {"purple.png": plain((250, 0, 250))})
    index = reindexed(photos, index)
    [purple] = index.search("red", "blue", top=1)
    shutil.rmtree(photos)  # the file is not opened
    opened = Corpus.open(index.place.folder, model=unwanted)
    monkeypatch.chdir(photos.parent)
    for like in (purple, purple.uri, "photos/purple.png", purple.id, purple.id[:6]):
        hits = opened.search(like=like)
        assert set(names(hits)) == {"red.png", "blue.png", "green.png"}
        assert names(hits)[-1] == "green.png"
        assert [hit.rank for hit in hits] == [1, 2, 3]
    for nothing in ("photos/gone.png", "abcdef0123"):
        with pytest.raises(InputError, match="is no picture of the index"):
            opened.search(like=nothing)


def test_pages_follow_each_other(index: Corpus) -> None:
    whole = index.search("red", top=3)
    pages = [hit for skip in range(4) for hit in index.search("red", top=1, skip=skip)]
    assert pages == whole
    assert index.search("red", top=5, skip=100) == []


def test_scores_are_put_in_proportion(index: Corpus) -> None:
    hits = index.search("red", top=3)
    z = [hit.z for hit in hits]
    assert all(value is not None for value in z)
    assert sum(value or 0 for value in z) == pytest.approx(0, abs=1e-3)  # the three are all there is
    assert names(index.search("red", min_z=1.0)) == ["red.png"]
    assert names(index.search("red", percentile=99)) == ["red.png"]
    assert len(index.search("red", percentile=0)) == 3
    assert index.search("red", min_z=10) == []


def test_copies_are_put_together(index: Corpus, photos: Path) -> None:
    write(photos, {"nearly.png": plain((249, 0, 0)), "other.png": plain((250, 120, 0))})
    shutil.copy(photos / "red.png", photos / "copy.png")
    index = reindexed(photos, index)
    hits = index.search("red", top=2, collapse=0.999)
    assert len(hits) == 2
    assert {Path(uri).name for uri in (hits[0].uri, *hits[0].copies)} == {"red.png", "copy.png", "nearly.png"}
    assert names(hits)[1] == "other.png"
    assert hits[1].copies == ()
    exact = index.search("red", top=2, collapse=2.0)
    assert sorted(len(hit.copies) for hit in exact) == [0, 1]


def test_different_ones_are_preferred(index: Corpus, photos: Path) -> None:
    write(photos, {f"red{i}.png": plain((250 - i, i, 0)) for i in range(8)})
    index = reindexed(photos, index)
    assert all(name.startswith("red") for name in names(index.search("red", top=3)))
    diverse = names(index.search("red", top=3, diversity=0.7))
    assert {name[:3] for name in diverse} >= {"red", "blu"} or {name[:3] for name in diverse} >= {"red", "gre"}


def test_pages_of_different_ones_neither_overlap_nor_leave_out(
    index: Corpus, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(photos, {f"{n}.png": plain((250 - 9 * n, 5 * n, n * n % 200)) for n in range(20)})
    index = reindexed(photos, index)
    monkeypatch.setattr(corpus, "DIVERSE_POOL", 7)
    pages = [names(index.search("red", top=2, skip=2 * page, diversity=0.6)) for page in range(12)]
    shown = [name for page in pages for name in page]
    assert sorted(shown) == sorted(names(index.search("red", top=100)))
    assert shown != names(index.search("red", top=100))


def test_only_what_fulfils_a_condition(index: Corpus) -> None:
    assert names(index.search("red", where="width = 40")) == ["blue.png"]
    assert index.search("red", where="width = 4") == []


def test_a_trained_index_answers_alike(index: Corpus, photos: Path) -> None:
    before = {word: index.search(word, top=3) for word in ("red", "green")}
    build_vectors(index._store, "ivf")
    opened = Corpus.open(index.place.folder, model=FakeModel())
    for word, hits in before.items():
        found = opened.search(word, top=3)
        assert names(found) == names(hits)
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in hits], abs=1e-3)
    write(photos, {"new.png": plain((250, 250, 250))})
    reindexed(photos, index)
    assert "new.png" in names(opened.search("red", "green", "blue", top=1))


def test_an_open_index_sees_what_others_write(index: Corpus, photos: Path) -> None:
    hits = index.search("red", top=3)
    (photos / "red.png").unlink()
    reindexed(photos, index)
    assert names(index.search("red", top=3)) != names(hits)
    assert len(index) == 2
    with pytest.raises(InputError, match=r"not in the index .* any more: search again"):
        index.ask("which colour?", hits[:1])


def test_an_index_that_is_rewritten_in_the_middle_of_a_search(
    index: Corpus, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_vectors(index._store, "ivf")
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))
    nearest, rewritten = Searcher.nearest, []

    def then_rewrite(self: Searcher, *args: object, **options: object) -> object:
        found = nearest(self, *args, **options)  # type: ignore[arg-type]
        if not rewritten:
            rewritten.append(True)
            other = IndexStore.open(index.place.folder)
            other.set_columns([str(photos / "red.png")], pa.table({"year": [2020]}))
            other.remove([str(photos / "blue.png")])
            other.optimize()  # leaves nothing of the version that is being read
        return found

    monkeypatch.setattr(Searcher, "nearest", then_rewrite)
    # names are beside the vector index; the embeddings that --collapse compares are in the table
    assert names(index.search("red", top=3, collapse=0.999)) == ["red.png", "green.png"]
    assert rewritten


def test_real_damage_is_told(index: Corpus) -> None:
    build_vectors(index._store, "ivf")
    index.search("red")
    for file in (index.place.folder / "images.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(IndexCorruptedError, match="is damaged"):
        index.search("red", collapse=0.999)


# ---- answering


def test_answers_need_no_pictures(index: Corpus, photos: Path) -> None:
    hits = index.search("red", top=3)
    shutil.rmtree(photos)
    assert {Path(a.hit.uri).stem: a.text for a in index.ask("which colour?", hits)} == {
        "red": "red", "green": "green", "blue": "blue"
    }  # fmt: skip


def test_answers_come_in_the_order_of_the_hits_over_many_batches(
    index: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "ASK_BATCH", 2)
    hits = index.search("green", top=3)
    order = [hits[1], hits[0], hits[0], hits[2], hits[1]]
    answers = index.ask("which colour?", order)
    assert [answer.hit for answer in answers] == order
    assert [answer.text for answer in answers] == [Path(hit.uri).stem for hit in order]
    assert index.ask("which colour?", []) == []
    with pytest.raises(InputError, match="question is empty"):
        index.ask(" ", hits)


def test_tokens_are_those_of_the_hits(index: Corpus) -> None:
    tokens = index.tokens(index.search("blue", top=1))
    assert tokens.shape == (1, 4, 8)
    np.testing.assert_allclose(tokens[0, :, :3], [[0, 0, 1]] * 4, atol=0.01)


# ---- finding a file


def test_a_file_is_found_by_name_and_by_content(
    index: Corpus, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    by_name = index.find("sub/green.png")
    assert by_name is not None
    assert by_name.uri == str(photos / "sub" / "green.png")
    shutil.copy(photos / "sub" / "green.png", tmp_path / "elsewhere.png")
    assert index.find(tmp_path / "elsewhere.png") == by_name
    (photos / "sub" / "green.png").unlink()
    assert index.find("sub/green.png") == by_name
    assert index.find("nowhere.png") is None
    (tmp_path / "new.png").write_bytes(plain(RED, (9, 9)))
    assert index.find(tmp_path / "new.png") is None


def test_a_file_that_was_skipped_is_not_found(index: Corpus, photos: Path) -> None:
    write(photos, {"bad.png": b"garbage"})
    assert reindexed(photos, index).find(photos / "bad.png") is None


# ---- empty, mismatched, missing


def test_an_empty_index_says_so(index: Corpus, photos: Path) -> None:
    hits = index.search("red", top=1)
    index._store.remove([str(photos / name) for name in FILES])
    empty = Corpus.open(index.place.folder, model=unwanted)
    assert len(empty) == 0
    for ask in (
        lambda: empty.search("red"),
        lambda: empty.search_embedding(np.zeros(3, np.float32)),
        lambda: empty.ask("what?", hits),
    ):
        with pytest.raises(IndexEmptyError, match="fwd2bot index FOLDER"):
            ask()


def unwanted() -> Compressor:
    pytest.fail("the model was loaded")


def test_the_model_is_loaded_once_and_only_when_needed(index: Corpus, photos: Path) -> None:
    loads: list[int] = []

    def load() -> Compressor:
        loads.append(1)
        return FakeModel()

    opened = Corpus.open(index.place.folder, model=load)
    opened.stats()
    opened.find(photos / "red.png")
    opened.search_embedding(np.array([1, 0, 0], np.float32))
    assert loads == []
    opened.ask("what?", opened.search("red"))
    assert loads == [1]


def test_another_model_is_refused(index: Corpus) -> None:
    with pytest.raises(IndexMismatchError, match="other weights"):
        Corpus.open(index.place.folder, model=FakeModel(fingerprint="fake-2")).search("red")


def test_the_manifest_names_the_model_that_is_loaded(index: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_load", lambda manifest: FakeModel(name=manifest.model))
    monkeypatch.setattr(corpus, "_load_text_encoder", lambda manifest: None)
    monkeypatch.setattr(corpus, "_load_text_encoder", lambda manifest: None)
    assert Corpus.open(index.place.folder).search("red")[0].uri.endswith("red.png")


def test_an_index_is_found_upward(index: Corpus, photos: Path) -> None:
    with pytest.raises(IndexNotFoundError, match=r"photos/sub.*fwd2bot index FOLDER"):
        find_index(photos / "sub")
    shutil.copytree(index.place.folder, photos / ".fwd2bot")
    assert find_index(photos / "sub") == photos / ".fwd2bot"
    assert find_index(photos) == photos / ".fwd2bot"
    (photos / "sub" / ".fwd2bot").mkdir()  # no index: the search goes on
    assert find_index(photos / "sub") == photos / ".fwd2bot"
    assert len(Corpus.open(find_index(photos))) == 3
    with pytest.raises(IndexNotFoundError):
        Corpus.open(photos)


def test_importing_is_light() -> None:
    code = "import sys, fwd2bot_index.corpus; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert not {"torch", "transformers", "peft", "lance", "faiss"} & set(done.stdout.split())


def test_searching_by_embedding_needs_no_torch(index: Corpus) -> None:
    code = (
        "import sys, numpy as np; from fwd2bot_index.corpus import Corpus; "
        "print(len(Corpus.open(sys.argv[1]).search_embedding(np.ones(3, np.float32)))); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(index.place.folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    count, modules = done.stdout.splitlines()
    assert count == "3"
    assert not {"torch", "transformers", "peft"} & set(modules.split())


# ---- columns


def test_annotations_are_columns(index: Corpus) -> None:
    done: list[tuple[int, int]] = []
    report = index.annotate("is it red?", "is_red", choices=["yes", "no"], progress=lambda *n: done.append(n))
    assert report.answered == 3
    assert done == [(3, 3)]
    assert names(index.search("green", where="is_red")) == ["red.png"]
    table = index.to_arrow(where="NOT is_red")
    assert table.num_rows == 2
    assert {"uri", "id", "width", "is_red", "is_red_confidence"} <= set(table.column_names)
    assert "embedding" not in table.column_names
    with pytest.raises(InputError, match="no column is_rad"):
        index.to_arrow(where="is_rad")
    pytest.importorskip("pandas")
    assert list(index.to_pandas(where="is_red")["width"]) == [32]


def test_several_pictures_are_asked_about_together(index: Corpus) -> None:
    hits = index.search("red", top=3)
    answer = index.ask_together("is one red?", hits)
    assert answer.hits == tuple(hits)
    assert set(answer.text.split()) == {"red", "green", "blue"}
    assert [Path(hit.uri).name for hit in answer.rests_on] == ["red.png"]
    with pytest.raises(InputError, match="no pictures"):
        index.ask_together("is one red?", [])
    with pytest.raises(InputError, match="513 pictures"):
        index.ask_together("is one red?", [hits[0]] * 513)


def test_choices_are_all_that_can_be_said(index: Corpus) -> None:
    hits = index.search("red", top=3)
    answers = index.ask("is it red?", hits, choices=["yes", "no"])
    assert [a.text for a in answers] == ["yes", "no", "no"]
    assert answers.to_arrow().column("answer").to_pylist() == ["yes", "no", "no"]
    assert answers._repr_html_().count("data:image/jpeg") == 3
    for bad in (["yes"], ["a", "a"], ["", "b"]):
        with pytest.raises(InputError, match="choice"):
            index.ask("?", hits, choices=bad)
