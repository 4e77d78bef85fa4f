"""The store: what was committed is what is read, after any mixture of updates, deletions and merges; and every way in
which a disk can disappoint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fakes import manifest

from fwd2bot_index import places
from fwd2bot_index import store as store_module
from fwd2bot_index.codec import fit_codec, fit_to_bytes
from fwd2bot_index.errors import (
    IndexCorruptedError,
    IndexMismatchError,
    IndexNotFoundError,
    IndexWriteError,
    InputError,
    ModelError,
)
from fwd2bot_index.store import ImageRow, IndexStore, check_target, writing

K, D, E = 2, 3, 4

MANIFEST = manifest(k=K, d=D, e=E)


def picture(number: int, uri: str | None = None) -> ImageRow:
    return ImageRow(
        uri=uri or f"/photos/{number}.jpg",
        id=f"{number:032x}",
        size=100 + number,
        mtime_ns=10**18 + number,
        width=640,
        height=480,
        status="ok",
        embedding=np.full(E, number / 1000, np.float16),
    )


def tokens_of(number: int) -> np.ndarray:
    return np.full((K, D), number, np.float32)


def skipped(uri: str) -> ImageRow:
    return ImageRow(uri=uri, id="f" * 32, size=1, mtime_ns=2, status="skipped", error="it is truncated")


def commit(store: IndexStore, *numbers: int) -> None:
    store.commit([picture(n) for n in numbers], {picture(n).id or "": tokens_of(n) for n in numbers})


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore.create(tmp_path / "index", MANIFEST)


def check_whole(store: IndexStore, numbers: set[int]) -> None:
    """Every picture's embedding and tokens are its own."""
    embedded = store.embeddings()
    assert {embedded.row(i)[0] for i in range(len(embedded))} == {f"/photos/{n}.jpg" for n in numbers}
    for i in range(len(embedded)):
        uri, id_, width, height = embedded.row(i)
        number = int(Path(uri).stem)
        assert (id_, width, height) == (f"{number:032x}", 640, 480)
        np.testing.assert_array_equal(embedded.embedding[i], np.full(E, number / 1000, np.float16))
        np.testing.assert_array_equal(store.tokens([id_]), tokens_of(number)[None])


# ---- what was committed is what is read


def test_a_new_index_is_empty_and_whole(store: IndexStore, tmp_path: Path) -> None:
    again = IndexStore.open(tmp_path / "index")
    assert again.manifest == MANIFEST
    assert len(again.known_files()) == 0
    assert len(again.embeddings()) == 0
    assert again.tokens([]).shape == (0, K, D)
    assert IndexStore.exists(tmp_path / "index")


def test_rows_and_tokens_come_back(store: IndexStore) -> None:
    commit(store, 1, 2)
    store.commit([skipped("/photos/bad.jpg")], {})
    check_whole(store, {1, 2})
    known = store.known_files()
    by_uri = {uri: i for i, uri in enumerate(known.uri.to_pylist())}
    i, bad = by_uri["/photos/2.jpg"], by_uri["/photos/bad.jpg"]
    assert (known.size[i], known.mtime_ns[i]) == (102, 10**18 + 2)
    assert (known.id[i].as_py(), known.status[i].as_py()) == (f"{2:032x}", "ok")
    assert (known.status[bad].as_py(), known.error[bad].as_py()) == ("skipped", "it is truncated")
    [row] = store.rows(uris=["/photos/2.jpg", "/photos/never.jpg"])
    assert repr(row) == repr(picture(2))
    assert store.rows(uris=["/photos/bad.jpg"]) == [skipped("/photos/bad.jpg")]


def test_tokens_come_in_the_order_asked_for(store: IndexStore) -> None:
    commit(store, *range(10))
    order = [7, 3, 3, 9, 0]
    read = store.tokens([f"{n:032x}" for n in order])
    np.testing.assert_array_equal(read, np.stack([tokens_of(n) for n in order]))


def test_order_survives_updates_deletions_and_merges(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))
    rng = np.random.default_rng(0)
    alive: set[int] = set()
    for step in range(30):
        numbers = rng.integers(0, 40, size=3).tolist()
        commit(store, *set(numbers))
        alive |= set(numbers)
        if step % 3 == 2:
            gone = rng.choice(sorted(alive), size=2, replace=False).tolist()
            store.remove([f"/photos/{n}.jpg" for n in gone])
            alive -= set(gone)
        if step % 10 == 9:
            store.tidy()
            assert store.stats().pictures == len(alive)
    check_whole(store, alive)
    check_whole(IndexStore.open(store.place.folder), alive)


@pytest.mark.parametrize("name", ["it's.jpg", 'a "b".jpg', "a\\b\n%_.jpg", "ÅΩ猫🐈.jpg", "'); drop--.jpg"])
def test_odd_names_are_names(store: IndexStore, name: str) -> None:
    commit(store, 1)
    store.commit([picture(2, uri=f"/photos/{name}")], {f"{2:032x}": tokens_of(2)})
    assert [row.uri for row in store.rows(uris=[f"/photos/{name}"])] == [f"/photos/{name}"]
    store.remove([f"/photos/{name}"])
    check_whole(store, {1})


def test_files_with_the_same_bytes_share_tokens(store: IndexStore) -> None:
    commit(store, 1)
    store.commit([picture(1, uri="/photos/copy.jpg")], {f"{1:032x}": tokens_of(1)})
    stats = store.stats()
    assert (stats.files, stats.pictures) == (2, 1)
    assert {row.uri for row in store.rows(ids=[f"{1:032x}"])} == {"/photos/1.jpg", "/photos/copy.jpg"}
    store.remove(["/photos/1.jpg"])
    store.tidy()
    np.testing.assert_array_equal(store.tokens([f"{1:032x}"]), tokens_of(1)[None])


def test_a_row_that_comes_to_be_skipped_loses_its_picture(store: IndexStore) -> None:
    commit(store, 1, 2)
    store.commit([skipped("/photos/1.jpg")], {})
    store.tidy()
    check_whole(store, {2})
    assert store.stats() == replace(store.stats(), files=1, skipped=1, pictures=1)


def test_many_small_commits_do_not_pile_up(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))
    for n in range(20):
        commit(store, n)
    files = sum(1 for p in store.place.folder.rglob("*") if p.is_file())
    store.tidy()
    assert sum(1 for p in store.place.folder.rglob("*") if p.is_file()) < files / 4
    check_whole(store, set(range(20)))


def test_a_reader_sees_commits_and_outlives_a_cleanup(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEEP_VERSIONS", timedelta(0))
    commit(store, 1)
    reader = IndexStore.open(store.place.folder)
    for n in range(2, 14):
        commit(store, n)
    store.tidy()
    check_whole(reader, set(range(1, 14)))


def test_the_version_is_asked_again_once_the_folder_has_changed(store: IndexStore) -> None:
    reader = IndexStore.open(store.place.folder)
    for n in range(5):  # within one tick of the clock, where two versions may have the same time
        before = reader.images_version
        commit(store, n)
        assert reader.images_version > before
    folder = store.place.folder / "images.lance" / "_versions"
    os.utime(folder, (1e9, 1e9))
    latest = reader.images_version
    reader._images = None  # so that asking Lance would fail
    assert reader.images_version == latest
    os.utime(folder, (2e9, 2e9))
    with pytest.raises(IndexCorruptedError):
        _ = reader.images_version


def test_the_folder_is_a_lancedb_database(store: IndexStore) -> None:
    # in a process of its own, that knows lancedb alone
    commit(store, *range(5))
    code = """
import json, sys, lancedb
db = lancedb.connect(sys.argv[1])
nearest = db.open_table("images").search([0.004] * 4).limit(1).to_list()[0]["uri"]
print(json.dumps([nearest, db.open_table("tokens").count_rows()]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(store.place.folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout) == ["/photos/4.jpg", 5]


# ---- crashes


def test_tokens_are_written_before_rows(store: IndexStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_upsert", crash)
    with pytest.raises(KeyboardInterrupt):
        commit(store, 1)
    monkeypatch.undo()
    again = IndexStore.open(store.place.folder)
    assert (again.stats().files, again.stats().pictures) == (0, 1)
    commit(again, 1)
    assert (again.stats().files, again.stats().pictures) == (1, 1)
    check_whole(again, {1})


def test_leftovers_of_a_crash_at_creation_are_no_obstacle(store: IndexStore) -> None:
    (store.place.folder / "manifest.json").unlink()
    (store.place.folder / "manifest.json.tmp").write_text("{")
    with pytest.raises(IndexNotFoundError):
        IndexStore.open(store.place.folder)
    commit(IndexStore.create(store.place.folder, MANIFEST), 1)
    check_whole(IndexStore.open(store.place.folder), {1})


def test_pictures_without_a_manifest_are_not_overwritten(store: IndexStore) -> None:
    commit(store, 1)
    manifest = (store.place.folder / "manifest.json").read_text()
    (store.place.folder / "manifest.json").unlink()
    with pytest.raises(IndexCorruptedError, match=r"lost its manifest\.json"):
        IndexStore.create(store.place.folder, MANIFEST)
    (store.place.folder / "manifest.json").write_text(manifest)
    check_whole(IndexStore.open(store.place.folder), {1})


# ---- damage


def test_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(IndexNotFoundError, match="fwd2bot index"):
            IndexStore.open(path)
        assert not IndexStore.exists(path)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda m: "{", IndexCorruptedError, "not valid JSON"),
        (lambda m: "[]", IndexCorruptedError, "JSON object"),
        (lambda m: json.dumps({**m, "token_dim": 10**9}), IndexCorruptedError, "token_dim"),
        (lambda m: json.dumps({**m, "embedding_dim": E + 1}), IndexCorruptedError, "embedding"),
        (lambda m: json.dumps({**m, "token_dim": D + 1}), IndexCorruptedError, "payload"),
        (lambda m: json.dumps({k: v for k, v in m.items() if k != "codec"}), IndexCorruptedError, "codec"),
        (lambda m: json.dumps({**m, "codec": "int3"}), IndexMismatchError, "int3"),
        (lambda m: json.dumps({**m, "codec": "pq8"}), IndexCorruptedError, r"codec\.safetensors"),
        (lambda m: json.dumps({**m, "codec_sha256": 7}), IndexCorruptedError, "codec_sha256"),
        (lambda m: json.dumps({**m, "format_version": 99}), IndexMismatchError, "Upgrade"),
    ],
)
def test_a_manifest_that_cannot_be_trusted(
    store: IndexStore, change: Callable[[dict[str, object]], str], error: type[Exception], match: str
) -> None:
    path = store.place.folder / "manifest.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(error, match=match):
        IndexStore.open(store.place.folder)


def test_a_manifest_of_random_bytes(store: IndexStore) -> None:
    (store.place.folder / "manifest.json").write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(IndexCorruptedError, match=r"manifest\.json"):
        IndexStore.open(store.place.folder)


@pytest.fixture
def fitted(tmp_path: Path) -> IndexStore:
    rng = np.random.default_rng(0)
    codec = fit_codec("pq16", rng.normal(size=(50, K, D)).astype(np.float32))
    return IndexStore.create(tmp_path / "fitted", replace(MANIFEST, codec="pq16"), codec)


def test_a_fit_is_read_again_with_the_index(fitted: IndexStore) -> None:
    tokens = np.random.default_rng(1).normal(size=(2, K, D)).astype(np.float32)
    for number, store in ((0, fitted), (1, IndexStore.open(fitted.place.folder))):
        store.commit([picture(number)], {picture(number).id or "": tokens[number]})
    ids = [picture(n).id or "" for n in (0, 1)]
    codec = fit_codec("pq16", np.random.default_rng(0).normal(size=(50, K, D)).astype(np.float32))
    expected = codec.decode(codec.encode(tokens), k=K, d=D)
    np.testing.assert_array_equal(IndexStore.open(fitted.place.folder).tokens(ids), expected)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not the file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "is not the file"),
        (lambda path: os.truncate(path, 2**30), "is not the file"),
    ],
)
def test_a_fit_that_is_damaged(fitted: IndexStore, damage: Callable[[Path], object], match: str) -> None:
    damage(fitted.place.folder / "codec.safetensors")
    with pytest.raises(IndexCorruptedError, match=rf"codec\.safetensors {match}"):
        IndexStore.open(fitted.place.folder)


def test_a_fit_for_other_tokens_is_refused(fitted: IndexStore) -> None:
    """Also where manifest and file agree with each other."""
    codec = fit_codec("pq16", np.ones((1, K, D + 1), np.float32))
    raw = fit_to_bytes(codec) or b""
    (fitted.place.folder / "codec.safetensors").write_bytes(raw)
    manifest = replace(fitted.manifest, codec_sha256=hashlib.sha256(raw).hexdigest())
    (fitted.place.folder / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(IndexCorruptedError, match="does not hold a fit for 2 tokens of size 3"):
        IndexStore.open(fitted.place.folder)


def test_a_fit_is_never_given_more_memory_than_its_file_has_bytes(fitted: IndexStore) -> None:
    manifest = replace(fitted.manifest, num_summary_tokens=4096, token_dim=65536)
    (fitted.place.folder / "manifest.json").write_text(manifest.to_json())
    tracemalloc.start()
    try:
        with pytest.raises(IndexCorruptedError, match="does not hold a fit for 4096 tokens of size 65536"):
            IndexStore.open(fitted.place.folder)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_the_fit_of_an_index_that_was_never_finished_goes(fitted: IndexStore) -> None:
    (fitted.place.folder / "manifest.json").unlink()
    IndexStore.create(fitted.place.folder, MANIFEST)
    assert not (fitted.place.folder / "codec.safetensors").exists()


@pytest.mark.parametrize("name", ["images.lance", "tokens.lance"])
def test_a_dataset_that_is_missing(store: IndexStore, name: str) -> None:
    shutil.rmtree(store.place.folder / name)
    with pytest.raises(IndexCorruptedError, match=name):
        IndexStore.open(store.place.folder)


@pytest.mark.parametrize("folder", ["_versions", "data"])
def test_a_dataset_that_is_truncated(store: IndexStore, folder: str) -> None:
    commit(store, 1)
    for path in (store.place.folder / "images.lance" / folder).iterdir():
        os.truncate(path, 20)
    with pytest.raises(IndexCorruptedError, match="index again"):
        IndexStore.open(store.place.folder).embeddings()


def test_tokens_that_are_missing(store: IndexStore) -> None:
    with pytest.raises(InputError, match="picture abc is not in the index"):
        store.tokens(["abc"])
    store.commit([picture(1)], {})
    with pytest.raises(IndexCorruptedError, match=f"no summary tokens for the picture {picture(1).id}"):
        store.tokens([picture(1).id or ""])


def test_an_embedding_that_is_not_a_number(store: IndexStore) -> None:
    store.commit([replace(picture(1), embedding=np.full(E, np.nan, np.float16))], {})
    with pytest.raises(IndexCorruptedError, match="finite"):
        store.embeddings()


# ---- targets that cannot be written


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for attempt in (lambda: IndexStore.create(tmp_path, MANIFEST), lambda: check_target(tmp_path)):
        with pytest.raises(IndexWriteError, match=r"thesis\.txt"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "index"):
        with pytest.raises(IndexWriteError, match=r"(cannot|could not) be written"):
            IndexStore.create(path, MANIFEST)


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write anywhere, so permissions cannot be tried out here
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(IndexWriteError, match="read-only"):
        IndexStore.create(tmp_path / "index", MANIFEST)
    assert not (tmp_path / "index").exists()


def test_an_index_is_never_made_over_another(store: IndexStore) -> None:
    commit(store, 1)
    with pytest.raises(IndexWriteError, match=r"There is an index in .* already"):
        IndexStore.create(store.place, MANIFEST)
    check_whole(store, {1})


def test_a_store_that_is_not_known_is_refused_rather_than_made_a_folder() -> None:
    with pytest.raises(InputError, match="ftp://bucket/index"):
        IndexStore.create("ftp://bucket/index", MANIFEST)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Writes past 512 bytes of a file fail, as on a disk that is full: the system refuses, no patch does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_index_as_it_was(store: IndexStore, request: pytest.FixtureRequest) -> None:
    commit(store, 1, 2)
    request.getfixturevalue("full_disk")
    with pytest.raises(IndexWriteError, match=str(store.place.folder)):
        commit(store, 3)
    check_whole(store, {1, 2})
    check_whole(IndexStore.open(store.place.folder), {1, 2})


@pytest.mark.parametrize(
    ("seam", "write"),
    [
        ("_insert_new", lambda store: commit(store, 2)),
        ("_upsert", lambda store: commit(store, 2)),
        ("_delete", lambda store: store.remove(["/photos/1.jpg"])),
        ("_drop_old_versions", lambda store: store.tidy()),
        ("_compact", lambda store: store.optimize()),
    ],
)
def test_no_space_is_named(
    store: IndexStore, monkeypatch: pytest.MonkeyPatch, seam: str, write: Callable[[IndexStore], None]
) -> None:
    commit(store, 1)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module, seam, no_space)
    with pytest.raises(IndexWriteError, match="No space left on device"):
        write(store)
    monkeypatch.undo()
    check_whole(IndexStore.open(store.place.folder), {1})


def test_creation_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(places, "write_atomically", no_space)
    with pytest.raises(IndexWriteError, match="No space left on device"):
        IndexStore.create(tmp_path / "index", MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_are_not_finite_are_not_written(store: IndexStore) -> None:
    with pytest.raises(ModelError, match="not finite"):
        store.commit([picture(1)], {picture(1).id or "": np.full((K, D), np.nan, np.float32)})
    assert store.stats().files == 0


# ---- one writer at a time


def test_two_writers(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with writing(index):
        commit(IndexStore.create(index, MANIFEST), 1)
        with pytest.raises(IndexWriteError, match="Another process"), writing(index):
            pass
        check_whole(IndexStore.open(index), {1})  # a reader needs no lock
    with writing(index):
        commit(IndexStore.open(index), 2)
    check_whole(IndexStore.open(index), {1, 2})


def test_a_lock_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with writing(tmp_path / "index"):
        pass
    assert list(tmp_path.iterdir()) == []
