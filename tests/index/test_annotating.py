"""Annotations: every file its answer, also after interruptions, changes and copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel
from pictures import BLUE, GREEN, RED, plain, write

from fwd2bot_index import annotating
from fwd2bot_index.annotating import annotate
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import IndexEmptyError, IndexMismatchError, IndexWriteError, InputError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.store import IndexStore

COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    files = {f"{name}{i}.png": plain(colour, (10 + i, 10)) for name, colour in COLOURS.items() for i in range(5)}
    return write(tmp_path / "photos", files)


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> IndexStore:
    return indexed(photos, tmp_path / "index")


def indexed(photos: Path, folder: Path) -> IndexStore:
    index_images([photos], folder, FakeModel(), codec="int8")
    return IndexStore.open(folder)


def column(store: IndexStore, name: str) -> dict[str, object]:
    uris = [row["uri"] for row in rows(store)]
    return {Path(uri).name: values[name] for uri, values in zip(uris, store.user_values(uris), strict=True)}


def rows(store: IndexStore) -> list[dict[str, str]]:
    return list(store.embeddings().rows.select(["uri"]).to_pylist())


def test_every_file_has_its_answer(store: IndexStore) -> None:
    report = annotate(store, FakeModel(), "which colour?", "colour", batch_size=4)
    assert (report.answered, report.already, report.interrupted) == (15, 0, False)
    assert report.counts == {"red": 5, "green": 5, "blue": 5}
    assert column(store, "colour") == {f"{name}{i}.png": name for name in COLOURS for i in range(5)}
    confidences = column(store, "colour_confidence")
    assert all(isinstance(c, float) and 0.8 < c <= 1 for c in confidences.values())


def test_yes_and_no_are_true_and_false(store: IndexStore) -> None:
    annotate(store, FakeModel(), "is it red?", "is_red", choices=["yes", "no"])
    assert str(store.user_columns()["is_red"]) == "bool"
    assert column(store, "is_red") == {name: name.startswith("red") for name in column(store, "is_red")}
    index = Corpus.open(store.place.folder, model=FakeModel())
    hits = index.search("green", top=20, where="is_red AND is_red_confidence > 0.9")
    assert {Path(hit.uri).name for hit in hits} == {f"red{i}.png" for i in range(5)}
    assert len(index.search("green", top=20, where="NOT is_red")) == 10


def test_other_choices_are_text(store: IndexStore) -> None:
    annotate(store, FakeModel(), "which?", "warm", choices=["red", "blue"])
    values = column(store, "warm")
    assert {values[f"red{i}.png"] for i in range(5)} == {"red"}
    assert {values[f"blue{i}.png"] for i in range(5)} == {"blue"}


def test_what_is_new_is_added_and_the_rest_left(store: IndexStore, photos: Path) -> None:
    annotate(store, FakeModel(), "which colour?", "colour")
    shutil.copy(photos / "red0.png", photos / "copy.png")
    write(photos, {"new.png": plain(GREEN, (77, 7))})
    store = indexed(photos, store.place.folder)
    assert column(store, "colour")["new.png"] is None
    asked = Counting()
    report = annotate(store, asked, "which colour?", "colour")
    assert (report.answered, report.already) == (2, 15)
    assert asked.asked == 2
    assert column(store, "colour")["new.png"] == "green"
    assert column(store, "colour")["copy.png"] == "red"
    assert annotate(store, asked, "which colour?", "colour").answered == 0
    assert asked.asked == 2


def test_copies_share_an_answer(store: IndexStore, photos: Path) -> None:
    for i in range(3):
        shutil.copy(photos / "blue1.png", photos / f"copy{i}.png")
    store = indexed(photos, store.place.folder)
    asked = Counting()
    assert annotate(store, asked, "which colour?", "colour").answered == 18
    assert asked.asked == 15
    assert {column(store, "colour")[f"copy{i}.png"] for i in range(3)} == {"blue"}


def test_another_picture_under_the_name_loses_the_answer(store: IndexStore, photos: Path) -> None:
    annotate(store, FakeModel(), "which colour?", "colour")
    annotate(store, FakeModel(), "is it red?", "is_red", choices=["yes", "no"])
    write(photos, {"red0.png": plain(BLUE, (55, 5)), "red1.png": (photos / "red1.png").read_bytes()})
    store = indexed(photos, store.place.folder)
    for name in ("colour", "colour_confidence", "is_red", "is_red_confidence"):
        assert column(store, name)["red0.png"] is None
        assert column(store, name)["red1.png"] is not None  # written again, but the same
    assert annotate(store, FakeModel(), "which colour?", "colour").answered == 1
    assert column(store, "colour")["red0.png"] == "blue"


def test_an_interrupted_run_goes_on(store: IndexStore) -> None:
    report = annotate(store, Interrupted(after=2), "which colour?", "colour", batch_size=3)
    assert (report.answered, report.interrupted) == (6, True)
    asked = Counting()
    report = annotate(store, asked, "which colour?", "colour")
    assert (report.answered, report.already, asked.asked) == (9, 6, 9)
    assert None not in column(store, "colour").values()


def test_answers_are_committed_on_the_way(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Interrupted):
        error = RuntimeError

    with pytest.raises(RuntimeError):
        annotate(store, Broken(after=3), "which colour?", "colour", batch_size=2, commit_seconds=0)
    assert sum(value is not None for value in column(store, "colour").values()) == 6
    written: list[int] = []
    monkeypatch.setattr(IndexStore, "write_columns", lambda self, uris, columns: written.append(1))
    annotate(store, FakeModel(), "which colour?", "colour", batch_size=2, commit_seconds=1000)
    assert written == [1]


def test_only_some(store: IndexStore) -> None:
    report = annotate(store, FakeModel(), "which colour?", "colour", where="width > 12")
    assert (report.answered, report.already) == (6, 0)
    report = annotate(store, FakeModel(), "which colour?", "colour")
    assert (report.answered, report.already) == (9, 6)


def test_another_question_needs_another_column(store: IndexStore) -> None:
    annotate(store, FakeModel(), "which colour?", "colour")
    for question, choices in (("what?", None), ("which colour?", ["red", "blue"])):
        with pytest.raises(InputError, match="holds the answers to 'which colour\\?': choose another name"):
            annotate(store, FakeModel(), question, "colour", choices=choices)
    report = annotate(store, FakeModel(), "is it red?", "colour", choices=["no", "yes"], again=True)
    assert report.answered == 15
    assert str(store.user_columns()["colour"]) == "bool"
    assert store.annotations()["colour"].question == "is it red?"


@pytest.mark.parametrize(
    ("question", "name", "choices", "problem"),
    [
        (" ", "a", None, "question is empty"),
        ("x" * 20_000, "a", None, "20,000 characters"),
        ("a?", "a", ["yes"], "at least two"),
        ("a?", "a", ["yes", " "], "choice is empty"),
        ("a?", "a", ["yes", "yes"], "'yes' is there twice"),
        ("a?", "a", [str(i) for i in range(101)], "101 choices"),
        ("a?", "1a", None, "plain name"),
        ("a?", "true", None, "a word of SQL"),
        ("a?", "width", None, "a column of the index"),
        ("a?", "STATUS", None, "a column of the index"),
    ],
)
def test_what_makes_no_sense(
    store: IndexStore, question: str, name: str, choices: list[str] | None, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        annotate(store, FakeModel(), question, name, choices=choices)
    assert store.annotations() == {}
    assert store.user_columns() == {}


def test_a_column_of_somebody_else_is_left(store: IndexStore) -> None:
    import pyarrow as pa

    store.set_columns([rows(store)[0]["uri"]], pa.table({"colour": ["x"], "other_confidence": [1.0]}))
    for name in ("colour", "Colour", "other"):
        with pytest.raises(InputError, match="is there already"):
            annotate(store, FakeModel(), "which?", name, again=True)


def test_another_model_and_an_empty_index(store: IndexStore) -> None:
    with pytest.raises(IndexMismatchError, match="another model"):
        annotate(store, FakeModel(fingerprint="fake-2"), "which?", "colour")
    with pytest.raises(InputError, match="no column nothing"):
        annotate(store, FakeModel(), "which?", "colour", where="nothing = 3")
    store.remove([row["uri"] for row in rows(store)])
    with pytest.raises(IndexEmptyError):
        annotate(store, FakeModel(), "which?", "colour")


def test_answers_of_two_second_passes_are_not_mixed(store: IndexStore) -> None:
    annotate(store, FakeModel(), "which?", "colour")
    trained_on = FakeModel()
    trained_on.full_fingerprint = "trained on"
    with pytest.raises(InputError, match="another second pass than fake has now"):
        annotate(store, trained_on, "which?", "colour")
    assert annotate(store, trained_on, "which?", "colour", again=True).answered == len(rows(store))
    assert annotate(store, trained_on, "which?", "colour").answered == 0


def test_a_full_disk_leaves_what_was_committed(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written = IndexStore.write_columns
    calls = iter([True, False])

    def full(self: IndexStore, uris: object, columns: object) -> None:
        if not next(calls):
            raise IndexWriteError("no space left")
        written(self, uris, columns)

    monkeypatch.setattr(IndexStore, "write_columns", full)
    with pytest.raises(IndexWriteError):
        annotate(store, FakeModel(), "which colour?", "colour", batch_size=5, commit_seconds=0)
    monkeypatch.undo()
    assert sum(value is not None for value in column(store, "colour").values()) == 5
    assert annotate(store, FakeModel(), "which colour?", "colour").answered == 10


class Counting(FakeModel):
    """Counts the pictures that it was asked about."""

    asked = 0

    def answer(self, tokens: torch.Tensor, prompt: object, *, max_new_tokens: int = 32):  # type: ignore[no-untyped-def]
        self.asked += len(tokens)
        return super().answer(tokens, "", max_new_tokens=max_new_tokens)


class Interrupted(Counting):
    """Stops after some batches."""

    error: type[BaseException] = KeyboardInterrupt

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self._batches: Iterator[int] = iter(range(after))

    def answer(self, tokens: torch.Tensor, prompt: object, *, max_new_tokens: int = 32):  # type: ignore[no-untyped-def]
        if next(self._batches, None) is None:
            raise self.error
        return super().answer(tokens, prompt, max_new_tokens=max_new_tokens)


def test_many_pictures_of_few_keys(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is no key of the run is passed over, wherever it lies."""
    run = annotating._Run(store, "uri", None, None)  # nothing to do: uri is never null
    assert run.total == 0
    assert list(run.batches(4)) == []
    run._keys = np.array([0, 2**64 - 1], np.uint64)
    run.total = 2
    assert list(run.batches(4)) == []
