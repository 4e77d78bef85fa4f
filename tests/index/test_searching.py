"""Searching through a trained vector index: what it finds is what an exact search finds, after every kind of change."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import manifest
from stored_rows import E, commit, embedding, row

from fwd2bot_index import hit_names, searching, vector_files
from fwd2bot_index.errors import InputError
from fwd2bot_index.searching import Choice, Searcher, build_vectors, choose, plan_of, rabitq_bits, refresh_vectors
from fwd2bot_index.snapshots import Snapshot
from fwd2bot_index.store import IndexStore

TRAINED: list[Choice] = ["ivf", "ivf-rabitq", "hnsw"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = IndexStore.create(tmp_path_factory.mktemp("index") / "index", manifest(k=1, d=2, e=E))
    commit(store, *map(row, range(2000)))
    store.set_columns(
        [f"/photos/{n}.jpg" for n in range(2000)], pa.table({"year": [1900 + n % 100 for n in range(2000)]})
    )
    return store.place.folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> IndexStore:
    shutil.copytree(made, tmp_path / "index")
    return IndexStore.open(tmp_path / "index")


def truth(store: IndexStore, query: np.ndarray, k: int, keep: set[str] | None = None) -> list[str]:
    rows = store.embeddings()
    uris = rows.rows.column("uri").to_pylist()
    scores = rows.embedding.astype(np.float32) @ query
    order = [i for i in np.argsort(-scores, kind="stable") if keep is None or uris[i] in keep]
    return [uris[i] for i in order[:k]]


def found(searcher: Searcher, query: np.ndarray, k: int, where: str | None = None) -> list[str]:
    addresses, scores = searcher.nearest(query, k, where=where)
    assert (np.diff(scores) <= 0).all()
    exact = searcher.embeddings(addresses) @ query
    np.testing.assert_allclose(scores, exact, atol=2e-3)
    uris: list[str] = searcher.rows(addresses).column("uri").to_pylist()
    return uris


def queries() -> list[np.ndarray]:
    texts = np.random.default_rng(1).normal(size=(8, E)).astype(np.float32)
    return [embedding(n).astype(np.float32) for n in (3, 77, 1999)] + list(
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    )


def check(store: IndexStore, *, least: float = 0.9) -> None:
    searcher = Searcher.of(store)
    assert len(searcher) == len(store.embeddings())
    shares = []
    for query in queries():
        right = truth(store, query, 10)
        shares.append(len(set(found(searcher, query, 10)) & set(right)) / len(right))
    assert np.mean(shares) >= least


@pytest.mark.parametrize("kind", TRAINED)
def test_a_trained_index_finds_what_an_exact_one_finds(store: IndexStore, kind: Choice) -> None:
    files = build_vectors(store, kind)
    assert files is not None
    assert files.settings.kind == kind
    assert min(files.settings.recall) >= 0.98
    assert plan_of(store).method == kind
    assert plan_of(store).tail == 0
    check(store)


def test_rabitq_scores_are_exact(store: IndexStore) -> None:
    build_vectors(store, "ivf-rabitq")
    query = queries()[0]
    addresses, scores = Searcher.of(store).nearest(query, 5)
    np.testing.assert_allclose(
        scores, Snapshot.of(store).embeddings_at(addresses).astype(np.float32) @ query, atol=1e-6
    )


@pytest.mark.parametrize("kind", TRAINED)
def test_changes_are_seen_at_once(store: IndexStore, kind: Choice) -> None:
    build_vectors(store, kind)
    query = embedding(5000).astype(np.float32)
    commit(store, row(5000), row(5001))  # new
    assert found(Searcher.of(store), query, 1) == ["/photos/5000.jpg"]
    assert plan_of(store).tail == 2
    commit(store, row(6000, uri="/photos/3.jpg"))  # another picture under an old name
    assert found(Searcher.of(store), embedding(6000).astype(np.float32), 1) == ["/photos/3.jpg"]
    assert "/photos/3.jpg" not in found(Searcher.of(store), embedding(3).astype(np.float32), 50)
    store.remove(["/photos/77.jpg"])  # gone
    assert "/photos/77.jpg" not in found(Searcher.of(store), embedding(77).astype(np.float32), 50)
    commit(store, row(8, uri="/copies/8.jpg"), row(8, uri="/copies/again.jpg"))  # copies
    best = found(Searcher.of(store), embedding(8).astype(np.float32), 3)
    assert set(best) == {"/photos/8.jpg", "/copies/8.jpg", "/copies/again.jpg"}
    check(store)
    store.set_columns([f"/photos/{n}.jpg" for n in range(100, 600)], pa.table({"year": [2020] * 500}))  # rows move
    assert plan_of(store).tail == 3
    check(store)
    store.optimize()  # all rows move
    assert plan_of(store).tail == 3
    check(store)
    build_vectors(store, kind)
    assert plan_of(store).tail == 0
    check(store)


@pytest.mark.parametrize("kind", [*TRAINED, "exact"])
@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("year < 1950", lambda n: n % 100 < 50),
        ("year = 1907", lambda n: n % 100 == 7),
        ("year = 1907 AND width < 300", lambda n: n % 100 == 7 and n + 1 < 300),
        ("year > 3000", lambda n: False),
    ],
)
def test_filters_keep_recall(
    store: IndexStore,
    kind: Choice,
    where: str,
    keep,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(searching, "FEW", 10)  # 1,000 and 20 are asked of the index, the others compared one by one
    build_vectors(store, kind)
    commit(store, row(2107))  # in the tail, with no year
    kept = {f"/photos/{n}.jpg" for n in range(2000) if keep(n)}
    searcher = Searcher.of(store)
    shares = []
    for query in queries():
        right = truth(store, query, 10, kept)
        got = found(searcher, query, 10, where)
        assert set(got) <= kept
        assert len(got) == min(10, len(kept))
        shares.append(len(set(got) & set(right)) / max(1, len(right)) if right else 1.0)
    assert np.mean(shares) >= 0.97


def test_more_is_asked_for_than_there_is(store: IndexStore) -> None:
    for kind in ("exact", *TRAINED):
        build_vectors(store, kind)
        commit(store, row(2000))
        assert len(found(Searcher.of(store), queries()[0], 10_000)) >= 0.99 * 2001
        store.remove(["/photos/2000.jpg"])


def test_lance_has_an_index_of_its_own(store: IndexStore) -> None:
    build_vectors(store, "ivf")
    assert build_vectors(store, "lance") is None
    assert not list((store.place.folder / "faiss").glob("*.faiss"))
    assert plan_of(store).method == "lance IVF_RQ"
    check(store)
    commit(store, row(5000))
    assert found(Searcher.of(store), embedding(5000).astype(np.float32), 1) == ["/photos/5000.jpg"]
    assert set(found(Searcher.of(store), queries()[0], 5, "year = 1907")) <= {
        f"/photos/{n}.jpg" for n in range(7, 2000, 100)
    }
    build_vectors(store, "exact")
    assert plan_of(store).method == "exact"


def test_an_index_of_no_pictures(tmp_path: Path) -> None:
    store = IndexStore.create(tmp_path / "index", manifest(k=1, d=2, e=E))
    assert build_vectors(store) is None
    with pytest.raises(InputError, match="no pictures"):
        build_vectors(store, "ivf")
    commit(store, row(1), row(2))
    for kind in TRAINED:
        build_vectors(store, kind)
        assert found(Searcher.of(store), queries()[0], 5) == truth(store, queries()[0], 5)
    store.remove(["/photos/1.jpg", "/photos/2.jpg"])
    assert len(Searcher.of(store)) == 0
    assert found(Searcher.of(store), queries()[0], 5) == []


# ---- damage


def damage_index(store: IndexStore) -> None:
    next((store.place.folder / "faiss").glob("*.faiss")).write_bytes(b"\0" * 100)


def damage_description(store: IndexStore) -> None:
    (store.place.folder / "faiss" / "current.json").write_text('{"name": "../x"}')


def damage_positions(store: IndexStore) -> None:
    path = next((store.place.folder / "faiss").glob("*.safetensors"))
    path.write_bytes(b"\xff" * path.stat().st_size)


def damage_names(store: IndexStore) -> None:
    path = next((store.place.folder / "faiss").glob("*.arrow"))
    path.write_bytes(b"\xff" * path.stat().st_size)


def lose_a_file(store: IndexStore) -> None:
    next((store.place.folder / "faiss").glob("*.faiss")).unlink()


@pytest.mark.parametrize("damage", [damage_index, damage_description, damage_positions, damage_names, lose_a_file])
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_damaged_vector_index_is_done_without(store: IndexStore, kind: Choice, damage) -> None:  # type: ignore[no-untyped-def]
    build_vectors(store, kind)
    assert vector_files.problem(store.place) is None
    damage(store)
    assert plan_of(store).unusable
    assert plan_of(store).method == "exact"
    assert vector_files.problem(store.place)
    check(store, least=1.0)
    build_vectors(store, kind)
    assert plan_of(store).unusable is None
    assert len(list((store.place.folder / "faiss").iterdir())) == 4


@pytest.mark.parametrize("end", [".faiss", ".safetensors", ".arrow"])
def test_a_byte_that_changed_is_found(store: IndexStore, end: str) -> None:
    build_vectors(store, "ivf")
    path = next((store.place.folder / "faiss").glob(f"*{end}"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    assert vector_files.problem(store.place) == "its bytes are not those that were written"


# ---- names


def test_hits_are_named_by_the_file_beside_the_index(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_names, "BATCH", 300)
    store.commit([replace(row(5), uri=f"/photos/copy {n}.jpg") for n in (1, 2)], {})  # copies share a position
    build_vectors(store, "ivf")
    searcher = Searcher.of(store)
    addresses = np.random.default_rng(2).permutation(searcher.snapshot.pictures().address)
    from_the_table = searcher.snapshot.rows_at(addresses)
    assert len(addresses) == 2002

    def unwanted(*_: object) -> None:
        raise AssertionError("the table was asked")

    monkeypatch.setattr(Snapshot, "rows_at", unwanted)
    assert searcher.rows(addresses).to_pydict() == from_the_table.to_pydict()


def test_names_of_another_version_are_asked_of_the_table(store: IndexStore) -> None:
    build_vectors(store, "ivf")
    store.commit([row(3), replace(row(4), uri="/photos/renamed.jpg")], {})
    store.remove(["/photos/4.jpg"])
    assert found(Searcher.of(store), embedding(4).astype(np.float32), 1) == ["/photos/renamed.jpg"]


def test_a_trained_index_of_another_corpus_gives_no_wrong_name(store: IndexStore, tmp_path: Path) -> None:
    other = IndexStore.create(tmp_path / "other", store.manifest)
    for start in (0, 1000):  # in as many versions
        commit(other, *(replace(row(n), uri=f"/other/{n}.jpg") for n in range(start + 7, start + 1007)))
    while other.images_version < store.images_version:
        commit(other, replace(row(7), uri="/other/7.jpg"))
    assert other.images_version == store.images_version
    build_vectors(store, "ivf")
    build_vectors(other, "ivf")
    shutil.rmtree(store.place.folder / "faiss")
    shutil.copytree(other.place.folder / "faiss", store.place.folder / "faiss")
    wanted = [f"/photos/{n}.jpg" for n in (3, 500, 1999)]
    searcher = Searcher.of(store)
    assert [found(searcher, embedding(n).astype(np.float32), 1)[0] for n in (3, 500, 1999)] == wanted


def test_a_name_that_changed_on_disk_is_asked_of_the_table(store: IndexStore) -> None:
    build_vectors(store, "ivf")
    path = next((store.place.folder / "faiss").glob("*.arrow"))
    raw = path.read_bytes()
    assert raw.count(b"/photos/77.jpg") == 1
    path.write_bytes(raw.replace(b"/photos/77.jpg", b"/photos/99.jpg"))
    assert found(Searcher.of(store), embedding(77).astype(np.float32), 1) == ["/photos/77.jpg"]


# ---- choosing


def test_what_is_chosen() -> None:
    gib = 2**30
    assert choose(10_000, 192, memory=16 * gib) == ("exact", 16)
    assert choose(1_000_000, 192, memory=16 * gib) == ("ivf", 16)
    assert choose(10_000_000, 192, memory=8 * gib) == ("ivf-rabitq", 4)
    assert choose(100_000_000, 192, memory=16 * gib) == ("ivf-rabitq", 1)
    assert rabitq_bits(100_000_000, 192, memory=16 * gib) == 1
    assert searching.free_memory() > 2**20


def test_lances_own_index_is_trained_again_when_the_rest_has_grown(store: IndexStore) -> None:
    build_vectors(store, "lance")
    commit(store, *map(row, range(2000, 2100)))
    refresh_vectors(store)
    assert Snapshot.of(store).not_in_vector_index == 100  # a short tail
    commit(store, *map(row, range(2100, 2400)))
    refresh_vectors(store)
    assert Snapshot.of(store).not_in_vector_index == 0


def test_an_indexing_run_trains_where_it_should(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refresh_vectors(store) is None
    monkeypatch.setattr(searching, "EXACT_BYTES", 1000)
    files = refresh_vectors(store)
    assert files is not None
    assert files.settings.kind == "ivf"
    assert refresh_vectors(store) is None  # nothing has changed
    commit(store, *map(row, range(2000, 2100)))
    assert refresh_vectors(store) is None  # a short tail
    commit(store, *map(row, range(2100, 2300)))
    files = refresh_vectors(store)
    assert files is not None
    assert files.settings.rows == 2300
    build_vectors(store, "hnsw")
    store.remove([f"/photos/{n}.jpg" for n in range(500)])
    files = refresh_vectors(store)
    assert files is not None
    assert files.settings.kind == "hnsw"  # what was asked for stays
