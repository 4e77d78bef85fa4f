"""A corpus looked at by many readers at once, without anything that is searched for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeModel, manifest
from pictures import plain
from PIL import Image
from stored_rows import E, commit, row

from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import InputError
from fwd2bot_index.places import Place
from fwd2bot_index.queries import weighted
from fwd2bot_index.store import IndexStore, writing
from fwd2bot_index.thumbnails import small_jpeg


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    store = IndexStore.create(tmp_path / "index", manifest(k=1, d=2, e=E))
    commit(store, *(row(number) for number in range(6)))
    commit(store, row(6), row(6, uri="/photos/copy.jpg"))
    return store


@pytest.fixture
def corpus(store: IndexStore) -> Corpus:
    return Corpus.open(store.place.folder, model=FakeModel)


def test_the_newest_first(corpus: Corpus) -> None:
    whole = [hit.uri for hit in corpus.newest(100)]
    assert sorted(whole[:2]) == ["/photos/6.jpg", "/photos/copy.jpg"]
    assert len(whole) == 8
    assert [hit.uri for hit in corpus.newest(3, skip=2)] == whole[2:5]
    assert [hit.rank for hit in corpus.newest(3, skip=2)] == [3, 4, 5]
    assert corpus.newest(3, skip=8) == []
    assert {hit.width for hit in corpus.newest(10, where="width > 5")} == {6, 7}
    with pytest.raises(InputError, match="no column"):
        corpus.newest(where="nothing = 1")


def test_by_id(corpus: Corpus) -> None:
    ids = [row(number).id or "" for number in (6, 2)]
    assert [hit.uri for hit in corpus.pictures(ids)] == ["/photos/6.jpg", "/photos/2.jpg"]
    assert [hit.uri for hit in corpus.files(ids[0])] == ["/photos/6.jpg", "/photos/copy.jpg"]
    assert corpus.files("' OR 1 = 1") == []
    with pytest.raises(InputError, match="no picture with the id"):
        corpus.pictures([*ids, "0" * 32])


def test_facets(store: IndexStore, corpus: Corpus) -> None:
    uris = [f"/photos/{number}.jpg" for number in range(4)]
    table = pa.table(
        {
            "place": ["Ulm", "Bonn", "Ulm", None],
            "year": [2001, 2003, None, 2002],
            "share": [0.5, float("nan"), float("inf"), 0.25],
            "taken": [date(2020, 1, 2), None, date(2019, 1, 1), None],
            "good": [True, None, False, True],
        }
    )
    store.set_columns(uris, store.fitting(table))
    found = {facet.name: facet for facet in corpus.facets()}
    assert found["place"].values == {"Ulm": 2, "Bonn": 1}
    assert (found["year"].least, found["year"].most) == (2001, 2003)
    assert (found["share"].least, found["share"].most) == (0.25, 0.5)
    assert (found["taken"].kind, found["taken"].least, found["taken"].most) == ("time", "2019-01-01", "2020-01-02")
    assert found["good"].kind == "boolean"
    assert (found["width"].least, found["width"].most) == (1, 7)


def test_text_with_many_values_is_not_counted(store: IndexStore, corpus: Corpus) -> None:
    commit(store, *(row(number) for number in range(10, 50)))
    names = [f"n{number}" for number in range(10, 50)]
    uris = [f"/photos/{number}.jpg" for number in range(10, 50)]
    store.set_columns(uris, store.fitting(pa.table({"name": names})))
    [facet] = [facet for facet in corpus.facets() if facet.name == "name"]
    assert facet.values is None


def test_threads_read_while_another_process_would_write(store: IndexStore, corpus: Corpus) -> None:
    """Lance refuses to read a dataset while it is moved to another version."""
    hits = corpus.newest(5)

    def read(_: int) -> int:
        corpus.metadata(hits)
        corpus.search_embedding(np.eye(E, dtype=np.float32)[0])
        return len(corpus.tokens(hits))

    with ThreadPoolExecutor(6) as pool:
        reading = pool.map(read, range(60))
        for number in range(10, 16):
            commit(store, row(number))
        assert list(reading) == [5] * 60


def test_whether_it_is_being_written(store: IndexStore, tmp_path: Path) -> None:
    assert not store.place.is_being_written()
    with writing(store.place.folder):
        assert store.place.is_being_written()
    assert not store.place.is_being_written()
    assert not Place.of(tmp_path / "nowhere").is_being_written()


@pytest.mark.parametrize(
    ("text", "said"),
    [("a^2", ("a", 2.0)), ("a ^ b^-.5", ("a ^ b^-.5", 1.0)), ("a^b^-0.5", ("a^b", -0.5)), ("^2", ("^2", 1.0))],
)
def test_weights(text: str, said: tuple[str, float]) -> None:
    assert weighted(text) == said


def test_small_jpegs() -> None:
    small = Image.open(BytesIO(small_jpeg(plain((250, 0, 0), size=(640, 320)), side=160)))
    assert (small.format, small.size) == ("JPEG", (160, 80))


def test_kept(tmp_path: Path) -> None:
    from served_index import add_pictures

    ids = add_pictures(tmp_path / "i", tmp_path / "p", {"red": (250, 0, 0), "dark": (90, 0, 0), "blue": (0, 0, 250)})
    corpus = Corpus.open(tmp_path / "i", model=FakeModel)
    kept = {name: corpus.kept(corpus.files(id_)[0]) for name, id_ in ids.items()}
    assert (kept["blue"].caption, kept["blue"].rank, kept["blue"].among) == ("blue", 1, 3)
    assert sorted([kept["red"].rank, kept["dark"].rank]) == [1, 2]
