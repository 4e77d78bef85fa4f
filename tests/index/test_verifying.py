"""Verification: an index that is whole passes, and each kind of damage is found and named; optimising keeps all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from fakes import manifest

from fwd2bot_index import store as store_module
from fwd2bot_index.errors import IndexBusyError, IndexCorruptedError
from fwd2bot_index.keys import keys_of
from fwd2bot_index.store import ImageRow, IndexStore
from fwd2bot_index.verifying import verify

K, D, E = 2, 64, 4

MANIFEST = manifest(k=K, d=D, e=E)


def id_of(number: int) -> str:
    return f"{number:032x}"


def row(number: int) -> ImageRow:
    embedding = np.zeros(E, np.float16)
    embedding[number % E] = 1
    return ImageRow(
        uri=f"/photos/{number}.jpg",
        id=id_of(number),
        size=100,
        mtime_ns=number,
        width=640,
        height=480,
        status="ok",
        embedding=embedding,
    )


def commit(store: IndexStore, numbers: range) -> None:
    store.commit([row(n) for n in numbers], {id_of(n): np.full((K, D), n, np.float32) for n in numbers})


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    store = IndexStore.create(tmp_path / "index", MANIFEST)
    for start in range(0, 60, 20):
        commit(store, range(start, start + 20))
    failed = ImageRow(uri="/photos/bad.jpg", id=None, size=1, mtime_ns=2, status="skipped", error="it is truncated")
    archive = ImageRow(uri="/photos/a.zip", id=None, size=1, mtime_ns=2, status="archive")
    store.commit([failed, archive], {})
    return store


def set_column(
    store: IndexStore, table: str, key: str, value: str, column: str, change: Callable[[object], object]
) -> None:
    """Give one cell another value, past all checks."""
    dataset = lance.dataset(str(store.place.folder / f"{table}.lance"))
    rows = dataset.to_table(filter=f"{key} = '{value}'")
    [cell] = rows.column(column).to_pylist()
    index = rows.schema.get_field_index(column)
    changed = rows.set_column(
        index, rows.schema.field(column), pa.array([change(cell)], rows.schema.field(column).type)
    )
    dataset.merge_insert(key).when_matched_update_all().execute(changed)


def problems(store: IndexStore) -> list[str]:
    found = verify(IndexStore.open(store.place.folder))
    assert found.whole == (not found.problems)
    assert found.problem_count == len(found.problems)
    return found.problems


def test_a_whole_index(store: IndexStore) -> None:
    done: list[tuple[int, int]] = []
    found = verify(store, progress=lambda *numbers: done.append(numbers))
    assert found.problems == []
    assert (found.files, found.skipped, found.archives, found.pictures, found.orphans) == (60, 1, 1, 60, 0)
    assert found.decoded == 60
    assert done[-1] == (122, 122)


@pytest.mark.parametrize(("sample", "least", "most"), [(0, 0, 1), (6, 6, 9), (1000, 60, 60)])
def test_a_sample_is_decoded(store: IndexStore, sample: int, least: int, most: int) -> None:
    assert least <= verify(store, sample=sample).decoded <= most


def test_an_empty_index(tmp_path: Path) -> None:
    assert verify(IndexStore.create(tmp_path / "index", MANIFEST)).whole


@pytest.mark.parametrize(
    ("column", "change", "problem"),
    [
        ("status", lambda _: "fine", "has a status that no version writes"),
        ("id", lambda _: "../x", "has no content id"),
        ("id", lambda _: None, "has no content id"),
        ("width", lambda _: 0, "has no width or height"),
        ("size", lambda _: -1, "has a negative size"),
        ("embedding", lambda _: None, "has no embedding"),
        ("embedding", lambda _: [0, 0, 0, 0.5], "has an embedding that is not what was written"),
        ("checksum", lambda old: old ^ 1, "has an embedding that is not what was written"),
    ],
)
def test_damaged_rows(store: IndexStore, column: str, change: Callable[[object], object], problem: str) -> None:
    set_column(store, "images", "uri", "/photos/7.jpg", column, change)
    named = problems(store)
    assert any(sentence.startswith("/photos/7.jpg") and problem in sentence for sentence in named), named
    assert not any("/photos/8.jpg" in sentence for sentence in named)


def test_a_row_skipped_for_no_reason(store: IndexStore) -> None:
    set_column(store, "images", "uri", "/photos/bad.jpg", "error", lambda _: None)
    assert problems(store) == ["/photos/bad.jpg was skipped without a reason."]


def test_an_embedding_that_has_another_length(store: IndexStore) -> None:
    store.commit([ImageRow(**{**vars(row(7)), "embedding": np.full(E, 0.7, np.float16)})], {})
    assert problems(store) == ["/photos/7.jpg has an embedding that is not of unit length."]


@pytest.mark.parametrize("column", ["payload", "checksum"])
def test_a_changed_payload(store: IndexStore, column: str) -> None:
    def change(old: object) -> object:
        return old ^ 1 if isinstance(old, int) else bytes([old[0] ^ 1]) + old[1:]  # type: ignore[index]

    set_column(store, "tokens", "id", id_of(7), column, change)
    assert problems(store) == [f"{id_of(7)} has summary tokens that are not what was written (checksum)."]
    with pytest.raises(IndexCorruptedError, match=f"{id_of(7)} are not what was written"):
        IndexStore.open(store.place.folder).tokens([id_of(6), id_of(7)])
    assert IndexStore.open(store.place.folder).tokens([id_of(6), id_of(8)]).shape == (2, K, D)


def test_a_byte_that_flips_on_disk(store: IndexStore) -> None:
    """What Lance itself does not notice."""
    number, pattern = 33, np.full(K * D, 33, np.float16).tobytes()
    [path] = [p for p in (store.place.folder / "tokens.lance" / "data").iterdir() if pattern in p.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(pattern) + 5] ^= 4
    path.write_bytes(content)
    assert problems(store) == [f"{id_of(number)} has summary tokens that are not what was written (checksum)."]


def test_a_payload_that_no_encoder_writes(store: IndexStore) -> None:
    bad = np.full((1, K * D), np.nan, np.float16).view(np.uint8)
    table = store_module._tokens_table([id_of(7)], bad)
    lance.dataset(str(store.place.folder / "tokens.lance")).merge_insert("id").when_matched_update_all().execute(table)
    assert problems(store) == [f"{id_of(7)} has summary tokens that cannot be decoded."]


def test_missing_tokens_and_tokens_without_a_row(store: IndexStore) -> None:
    lance.dataset(str(store.place.folder / "tokens.lance")).delete(f"id = '{id_of(7)}'")
    lance.dataset(str(store.place.folder / "images.lance")).delete(f"id = '{id_of(8)}'")
    found = verify(IndexStore.open(store.place.folder))
    assert found.problems == [f"{id_of(7)} has a row and no summary tokens."]
    assert found.orphans == 1


@pytest.mark.parametrize(("table", "what"), [("images", "file"), ("tokens", "picture")])
def test_doubled_rows(store: IndexStore, table: str, what: str) -> None:
    dataset = lance.dataset(str(store.place.folder / f"{table}.lance"))
    dataset.insert(dataset.to_table(limit=1))
    assert problems(store) == [f"{table}.lance has 1 rows too many: a {what} is there twice."]


@pytest.mark.parametrize("table", ["images", "tokens"])
def test_a_file_that_is_truncated_hides_nothing_else(store: IndexStore, table: str) -> None:
    if table == "tokens":
        set_column(store, "tokens", "id", id_of(1), "checksum", lambda old: old ^ 1)
    else:
        set_column(store, "images", "uri", "/photos/1.jpg", "size", lambda _: -1)
    fragments = lance.dataset(str(store.place.folder / f"{table}.lance")).get_fragments()
    file = fragments[1].data_files()[0].path
    path = store.place.folder / f"{table}.lance" / "data" / file
    os.truncate(path, path.stat().st_size // 2)
    named = problems(store)
    assert any(sentence.startswith(f"{table}.lance/data/{file} cannot be read (20 rows)") for sentence in named), named
    assert any("negative size" in sentence or "checksum" in sentence for sentence in named), named


def test_the_number_of_problems_is_bounded(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwd2bot_index.verifying.PROBLEMS_NAMED", 5)
    for path in (store.place.folder / "tokens.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes().replace(np.float16(1).tobytes(), np.float16(2).tobytes()))
    lance.dataset(str(store.place.folder / "tokens.lance")).delete("id > '0'")
    found = verify(IndexStore.open(store.place.folder))
    assert (found.problem_count, len(found.problems)) == (60, 5)


def test_keys() -> None:
    keys = keys_of(pa.array(["a", None, "b", "a", "Å"]))
    assert keys.dtype == np.uint64
    assert len(keys) == 4
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3


# ---- optimising


def contents(store: IndexStore) -> dict[str, tuple[object, ...]]:
    rows = store.rows(uris=[f"/photos/{n}.jpg" for n in range(200)])
    tokens = store.tokens([r.id or "" for r in rows])
    return {r.uri: (r.id, r.size, r.mtime_ns, repr(r.embedding), repr(t)) for r, t in zip(rows, tokens, strict=True)}


def test_optimising_keeps_everything_and_leaves_nothing_else(
    store: IndexStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))
    monkeypatch.setattr(store_module, "INDEXED_ROWS", 10)
    store.remove([f"/photos/{n}.jpg" for n in range(10)])
    (store.place.folder / "tokens.lance" / "data" / "of-a-dead-process.lance").write_bytes(b"x" * 100_000)
    (store.place.folder / "manifest.json.tmp").write_text("{")
    before = contents(store)
    assert len(before) == 50
    report = store.optimize()
    assert report.orphans == 10
    assert report.bytes_before - report.bytes_after > 100_000
    assert not list(store.place.folder.rglob("*dead*"))
    assert not list(store.place.folder.glob("*.tmp"))
    for table, keys in (("images", {"uri", "id"}), ("tokens", {"id"})):
        dataset = lance.dataset(str(store.place.folder / f"{table}.lance"))
        assert len(dataset.get_fragments()) == 1
        assert len(dataset.versions()) == 1
        assert {name for i in dataset.describe_indices() for name in i.field_names} == keys
    again = IndexStore.open(store.place.folder)
    assert contents(again) == before
    assert verify(again).whole
    assert store.optimize().orphans == 0


def test_writing_goes_on_after_optimising(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the indexes of the keys know, and rows that they do not know yet, are replaced and found alike."""
    monkeypatch.setattr(store_module, "INDEXED_ROWS", 10)
    expected = contents(store)
    for step in range(3):
        store.optimize()
        new = range(60 + 20 * step, 80 + 20 * step)
        commit(store, new)
        commit(store, range(10 * step, 10 * step + 30))
        store.remove([f"/photos/{new[0]}.jpg", f"/photos/{step}.jpg"])
        expected = {**expected, **contents(store)}
        for gone in (new[0], step):
            expected.pop(f"/photos/{gone}.jpg", None)
        found = verify(IndexStore.open(store.place.folder))
        assert found.problems == []
        assert found.files == len(expected)
    assert contents(IndexStore.open(store.place.folder)) == expected


def test_readers_go_on_reading(store: IndexStore) -> None:
    reader = IndexStore.open(store.place.folder)
    before = contents(store)
    stop, failures, reads = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                assert contents(reader) == before
                reads.append(1)
            except Exception as e:
                failures.append(e)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(5):
            store.optimize()
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert reads


def test_an_index_that_is_rewritten_meanwhile_is_no_damage(
    store: IndexStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))  # instead of reading for ten minutes
    other = IndexStore.open(tmp_path / "index")
    rewritten: list[bool] = []

    def rewrite(done: int, total: int) -> None:
        if not rewritten:
            rewritten.append(True)
            other.optimize()

    with pytest.raises(IndexBusyError, match="verify it again"):
        verify(store, progress=rewrite)
    assert verify(store).whole
