"""Indexes and pictures in an object store: an S3 that the tests start, that goes away, and that says nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel, manifest
from pictures import BLUE, GREEN, RED, plain, write
from s3_server import Bucket, Door, new_bucket, s3_server, use
from stored_rows import E, commit, row

from fwd2bot_index import object_stores, places, searching
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.decoding import read_file
from fwd2bot_index.errors import (
    ImageError,
    IndexBusyError,
    IndexNotFoundError,
    IndexWriteError,
    InputError,
    ObjectStoreError,
)
from fwd2bot_index.indexing import Progress, index_images
from fwd2bot_index.object_stores import ABSENT, Condition, Location, Objects, absolute, joined, parent
from fwd2bot_index.places import Place
from fwd2bot_index.store import IndexStore, writing
from fwd2bot_index.types import IndexReport, ModelIdentity
from fwd2bot_index.verifying import verify

IDENTITY = ModelIdentity(name="fake", revision=None, fingerprint="fake-1")
MANIFEST = manifest(k=1, d=2, e=E)
COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_server() as found:
        yield found


@pytest.fixture
def bucket(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    use(monkeypatch, door)
    door.set("open")
    yield new_bucket(door)
    door.set("open")


def pictures(*names: str) -> dict[str, bytes]:
    return {f"{name}.png": plain(COLOURS[name.split("/")[-1].split("-")[0]], (20 + len(name), 20)) for name in names}


def index(source: str | Path, place: str, model: FakeModel | None = None, **options: object) -> IndexReport:
    return index_images([source], place, model or FakeModel(), model_identity=IDENTITY, **options)  # type: ignore[arg-type]


def uris(place: str) -> list[str]:
    return sorted(hit.uri for hit in Corpus.open(place, model=FakeModel()).search("red", top=100))


# ---- names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("gs://bucket//a///b/", "gs://bucket/a/b"),
        ("az://container/a b#%41é", "az://container/a b#%41é"),
        ("/a/../b", "/b"),
    ],
)
def test_one_name_for_one_place(given: str, name: str) -> None:
    assert absolute(given) == name
    assert str(Place.of(given)) == name


@pytest.mark.parametrize("uri", ["http://host/x", "s4://bucket/x", "file:///tmp/x"])
def test_a_store_that_is_not_known(uri: str) -> None:
    with pytest.raises(InputError, match="s3://, gs://, az://"):
        Place.of(uri)


def test_a_uri_without_a_bucket() -> None:
    with pytest.raises(InputError, match="names no bucket"):
        Location.of("s3:///key")


def test_names_in_a_prefix() -> None:
    assert joined("s3://bucket/photos", "a/b.png") == "s3://bucket/photos/a/b.png"
    assert joined("s3://bucket/photos", "s3://other/b.png") == "s3://other/b.png"
    assert joined("/photos", "a.png") == "/photos/a.png"
    assert joined("/photos", "/a.png") == "/a.png"
    assert parent("s3://bucket/photos/a.png") == "s3://bucket/photos"
    assert parent("/photos/a.png") == "/photos"


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "1e9"])
def test_a_time_that_is_none(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", seconds)
    with pytest.raises(InputError, match="FWD2BOT_STORE_SECONDS"):
        IndexStore.open(f"{bucket.uri}/index")


# ---- an index there


def test_the_life_of_an_index(bucket: Bucket, tmp_path: Path) -> None:
    """The same as a local one says, after every kind of change."""
    remote = IndexStore.create(f"{bucket.uri}/some/index/", MANIFEST)
    local = IndexStore.create(tmp_path / "index", MANIFEST)
    for store in (remote, local):
        with writing(store.place):
            for start in range(0, 40, 4):
                commit(store, *(row(n) for n in range(start, start + 4)))
            store.remove([row(n).uri for n in range(5, 9)])
            commit(store, row(1, "/photos/copy.jpg"))
            store.tidy()
            store.optimize()
    again = IndexStore.open(f"{bucket.uri}/some/index")
    ours, theirs = again.embeddings(), local.embeddings()
    assert ours.rows.sort_by("uri").equals(theirs.rows.sort_by("uri"))
    ids = theirs.rows.column("id").to_pylist()
    np.testing.assert_array_equal(again.tokens(ids), local.tokens(ids))
    stats = again.stats()
    assert (stats.files, stats.pictures, stats.skipped) == (37, 36, 0)
    assert stats.total_bytes > stats.images_bytes + stats.tokens_bytes > 0
    assert verify(again).whole
    assert not {key for key in bucket.keys("") if not key.startswith("some/index/")}
    assert "some/index/.lock" not in bucket.keys("some")


def test_nothing_there(bucket: Bucket) -> None:
    assert not IndexStore.exists(f"{bucket.uri}/index")
    with pytest.raises(IndexNotFoundError, match=f"{bucket.uri}/index"):
        Corpus.open(f"{bucket.uri}/index")


def test_a_prefix_with_other_objects_is_refused_and_left_alone(bucket: Bucket) -> None:
    bucket.put({"thesis/chapter.txt": b"x"})
    with pytest.raises(IndexWriteError, match=r"chapter\.txt"):
        IndexStore.create(f"{bucket.uri}/thesis", MANIFEST)
    assert bucket.keys() == ["thesis/chapter.txt"]


def test_what_a_creation_that_was_killed_left_is_written_over(bucket: Bucket) -> None:
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    bucket.delete("index/manifest.json")
    with pytest.raises(IndexNotFoundError):
        IndexStore.open(store.place)
    commit(IndexStore.create(store.place, MANIFEST), row(1))
    assert IndexStore.open(store.place).stats().files == 1


def test_large_ones_get_lances_own_vector_index(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    commit(store, *(row(n) for n in range(600)))
    assert searching.refresh_vectors(store) is None
    assert searching.plan_of(store).method == "exact"
    monkeypatch.setattr(searching, "FETCHED_BYTES", 600 * E * 2 - 1)
    searching.refresh_vectors(store)
    assert searching.plan_of(store).method.startswith("lance")
    commit(store, row(1000))
    corpus = Corpus.open(store.place, model=FakeModel())
    query = np.asarray(row(1000).embedding, np.float32)
    assert corpus.search_embedding(query / np.linalg.norm(query), top=3)[0].uri == row(1000).uri
    with pytest.raises(InputError, match="Lance's own"):
        searching.build_vectors(store, "ivf")
    searching.build_vectors(store, "exact")
    assert searching.plan_of(store).method == "exact"


# ---- who writes


def test_one_writes_and_the_other_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.5)
    place = f"{bucket.uri}/index"
    assert not Place.of(place).is_being_written()
    with writing(place):
        assert Place.of(place).is_being_written()
        with pytest.raises(IndexBusyError, match=r"Another process \(\S+ \d+\) is writing"):
            with writing(place):
                pytest.fail("both")
    with writing(place):
        pass
    assert bucket.keys() == []


def test_two_that_index_at_once_lose_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """Each again until it gets its turn."""
    folders = [write(tmp_path / name, pictures(*(f"{name}-{i}" for i in range(4)))) for name in COLOURS]

    def run(folder: Path) -> IndexReport:
        while True:
            try:
                return index(folder, f"{bucket.uri}/index", workers=1)
            except IndexBusyError:
                time.sleep(0.05)

    with ThreadPoolExecutor(len(folders)) as threads:
        reports = list(threads.map(run, folders))
    assert [report.added for report in reports] == [4, 4, 4]
    store = IndexStore.open(f"{bucket.uri}/index")
    assert (store.stats().files, verify(store).whole) == (12, True)


def test_the_lease_of_a_dead_process_is_taken_over_by_one(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.1)
    bucket.put({"index/.lock": b'{"owner": "host 1 x", "renewals": 3}'})
    holding, most = [0], [0]

    def run(_: int) -> bool:
        try:
            with writing(f"{bucket.uri}/index"):
                holding[0] += 1
                most[0] = max(most[0], holding[0])
                time.sleep(1.0)
                holding[0] -= 1
        except IndexBusyError:
            return False
        return True

    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(run, range(3)))
    assert most == [1]
    assert sum(done) == 1


def test_a_renewal_whose_answer_is_lost(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written all the same: the lease is still one's own."""
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.1)
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    write, lost = Objects.write, [3]

    def forgetful(self: Objects, name: str, content: bytes, *, only_if: Condition | None = None) -> Condition:
        done = write(self, name, content, only_if=only_if)
        if name == ".lock" and only_if != ABSENT and lost[0]:
            lost[0] -= 1
            raise ObjectStoreError("no answer")
        return done

    monkeypatch.setattr(Objects, "write", forgetful)
    with writing(store.place):
        while lost[0]:
            time.sleep(0.05)
        time.sleep(0.4)
        commit(store, row(1))
    assert "index/.lock" not in bucket.keys("index")
    assert IndexStore.open(store.place).stats().files == 1


def test_what_is_in_a_lock_is_not_trusted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.1)
    for content in (b"", b"\xff" * 10, b"[1]", b"x" * 10_000):
        bucket.put({"index/.lock": content})
        with writing(f"{bucket.uri}/index"):
            pass


def test_a_writer_that_was_cut_off_commits_nothing_more(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.2)
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    with writing(store.place):
        commit(store, row(1))
        bucket.door.set("silent")
        time.sleep(1.5)
        bucket.door.set("open")
        with pytest.raises(IndexBusyError, match="could not be renewed"):
            commit(store, row(2))
    assert IndexStore.open(store.place).stats().files == 1


def test_a_writer_whose_lease_was_taken_commits_nothing_more(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.1)
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    with writing(store.place):
        bucket.put({"index/.lock": b'{"owner": "host 2 y", "renewals": 1}'})
        time.sleep(0.5)
        with pytest.raises(IndexBusyError):
            commit(store, row(2))
    assert "index/.lock" in bucket.keys("index")  # the other's


def test_searches_go_on_while_it_is_rewritten(bucket: Bucket) -> None:
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    commit(store, *(row(n) for n in range(20)))
    wanted = np.asarray(row(7).embedding, np.float32)
    corpus = Corpus.open(store.place, model=FakeModel())
    done = threading.Event()
    searches = 0

    def write() -> None:
        with writing(store.place):
            for start in range(100, 140, 10):
                commit(store, *(row(n) for n in range(start, start + 10)))
                store.optimize()
        done.set()

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        while not done.is_set() and not writer.done():
            hits = corpus.search_embedding(wanted / np.linalg.norm(wanted), top=2)
            assert hits[0].uri == row(7).uri
            assert corpus.tokens(hits).shape == (2, 1, 2)
            searches += 1
        writer.result()
    assert searches > 1
    assert len(corpus) == 60


# ---- pictures there


def test_objects_are_files(bucket: Bucket) -> None:
    bucket.put(pictures("in/red", "in/deep/er/green", "in/ä b#1%41/blue", "out/red"))
    bucket.put({"in/folder/": b"", "in/.hidden/red.png": b"x", "in/.hidden/b.zip": b"x", "in/notes.txt": b"x"})
    bucket.put({"in/a.zip": b"x", "in/raw/c.tar.gz": b"x"})
    bucket.put({"in/broken.png": b"no picture", "in/empty.jpg": b""})
    place = f"{bucket.uri}/index"
    model = FakeModel()
    report = index(f"{bucket.uri}/in/", place, model, exclude=["raw/"])
    assert report.added == 3
    told = "archives in an object store are not looked into: index a copy on a disk"
    assert [(s.uri, s.reason) for s in report.skipped] == [
        (f"{bucket.uri}/in/a.zip", told),
        (f"{bucket.uri}/in/broken.png", "it is not an image that can be read"),
        (f"{bucket.uri}/in/empty.jpg", "it is empty"),
    ]
    assert uris(place) == [f"{bucket.uri}/in/{n}.png" for n in ("deep/er/green", "red", "ä b#1%41/blue")]
    corpus = Corpus.open(place, model=model)
    assert corpus.search("green", top=1)[0].uri.endswith("deep/er/green.png")
    like = corpus.search(image=f"{bucket.uri}/in/red.png", top=1)
    assert like[0].uri == f"{bucket.uri}/in/red.png"
    found = corpus.find(f"{bucket.uri}/out/red.png")  # the same colour, but of another size
    assert found is None

    bucket.put(pictures("in/blue"))
    bucket.put({"in/broken.png": plain(GREEN, (9, 9))})
    bucket.delete("in/red.png")
    again = index(f"{bucket.uri}/in", place, model)
    assert (again.added, again.updated, again.removed, again.unchanged) == (1, 1, 1, 2)
    assert model.compressed == 6  # the query too


def test_one_object_and_patterns(bucket: Bucket) -> None:
    bucket.put(pictures("a/red", "a/raw/green", "b/blue"))
    place = f"{bucket.uri}/index"
    assert index(f"{bucket.uri}/b/blue.png", place).added == 1
    assert index(f"{bucket.uri}/a", place, exclude=["raw/"]).added == 1
    assert uris(place) == [f"{bucket.uri}/a/red.png", f"{bucket.uri}/b/blue.png"]


@pytest.mark.parametrize("second", ["a", "a/red.png"])
def test_prefixes_that_lie_in_each_other(bucket: Bucket, second: str) -> None:
    bucket.put(pictures("a/red", "a/green", "b/blue"))
    place = f"{bucket.uri}/index"
    for first in range(2):
        roots = [f"{bucket.uri}/{second}", bucket.uri]
        report = index_images(roots[::-1] if first else roots, place, FakeModel(), model_identity=IDENTITY)
        assert (report.added, report.unchanged) == ((0, 3) if first else (3, 0))


def test_the_index_is_no_picture_of_itself(bucket: Bucket) -> None:
    bucket.put(pictures("red"))
    place = f"{bucket.uri}/.fwd2bot"
    index(bucket.uri, place)
    bucket.put({".fwd2bot/faiss/x.png": b"x", "index/x.png": b"x"})
    assert index(bucket.uri, place).unchanged == 1
    report = index(bucket.uri, f"{bucket.uri}/index2", exclude=["index/"])
    assert (report.added, report.skipped) == (1, ())


def test_metadata_of_objects(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(pictures("a/red", "a/blue"))
    table = tmp_path / "table.csv"
    table.write_text(f"path,year\nred.png,1999\n{bucket.uri}/a/blue.png,2020\n")
    place = f"{bucket.uri}/index"
    assert index(f"{bucket.uri}/a", place, metadata=table).described == 2
    hits = Corpus.open(place, model=FakeModel()).search("red", where="year < 2000")
    assert [hit.uri for hit in hits] == [f"{bucket.uri}/a/red.png"]


def test_an_object_that_cannot_be_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(pictures("red"))
    with pytest.raises(ImageError, match="there is no such object"):
        read_file(f"{bucket.uri}/blue.png")
    with pytest.raises(ImageError, match="there is no bucket nowhere"):
        read_file("s3://nowhere/blue.png")
    with pytest.raises(ImageError, match="no object"):
        read_file(bucket.uri)
    monkeypatch.setattr("fwd2bot_index.decoding.MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match="the limit is 10"):
        read_file(f"{bucket.uri}/red.png")


def test_no_pictures_there(bucket: Bucket) -> None:
    with pytest.raises(InputError, match=f"no picture in {bucket.uri}/none"):
        index(f"{bucket.uri}/none", f"{bucket.uri}/index")
    with pytest.raises(ObjectStoreError, match="there is no bucket nowhere"):
        index("s3://nowhere/x", f"{bucket.uri}/index")
    assert bucket.keys() == []


# ---- a store that fails


def test_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # as on a machine that is no cloud's
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for attempt in (IndexStore.open, IndexStore.exists, lambda path: index("s3://pictures/x", path)):
        with pytest.raises(ObjectStoreError, match="no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            attempt(f"{bucket.uri}/index")


def test_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ObjectStoreError, match="no credentials: set AZURE_STORAGE_ACCOUNT_NAME"):
        IndexStore.exists("az://container/index")


def test_credentials_in_a_profile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[other]\naws_access_key_id = me\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "other")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    commit(IndexStore.create(f"{bucket.uri}/index", MANIFEST), row(1))
    assert IndexStore.open(f"{bucket.uri}/index").stats().files == 1


def test_a_bucket_that_does_not_exist(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, pictures("red"))
    for attempt in (lambda: Corpus.open("s3://nowhere/index"), lambda: index(tmp_path, "s3://nowhere/index")):
        with pytest.raises(ObjectStoreError, match="there is no bucket nowhere"):
            attempt()


def pieces_sent(bucket: Bucket, folder: Path) -> int:
    """What one whole run sends."""
    bucket.door.set("open")
    index(folder, f"{bucket.uri}/measured", commit_seconds=0, batch_size=1, workers=1)
    return bucket.door.requests


@pytest.mark.parametrize(("state", "shares"), [("down", (0.6,)), ("silent", (0.5,))])
def test_an_endpoint_that_goes_away_in_the_middle(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, shares: tuple[float, ...]
) -> None:
    """Wherever that is: a clear error in bounded time, and the next run finishes what is left."""
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", "0.5")
    monkeypatch.setattr(places, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(places, "RENEW_SECONDS", 0.25)
    folder = write(tmp_path, pictures(*(f"red-{i}" for i in range(4))))
    whole = pieces_sent(bucket, folder)
    for i, share in enumerate(shares):
        place = f"{bucket.uri}/index-{i}"
        bucket.door.set(state, after=int(share * whole))  # type: ignore[arg-type]
        started = time.monotonic()
        with pytest.raises((IndexWriteError, ObjectStoreError), match="bucket-"):
            index(folder, place, commit_seconds=0, batch_size=1, workers=1)
        assert time.monotonic() - started < 60
        bucket.door.set("open")
        index(folder, place, workers=1)
        store = IndexStore.open(place)
        assert (store.stats().files, verify(store).whole) == (4, True)


def test_pictures_that_go_away_in_the_middle(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a few the others are not waited for, and none of them is taken for a bad one."""
    bucket.put(pictures(*(f"in/red-{'x' * i}" for i in range(20))))
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", "0.2")

    def cut(progress: Progress) -> None:
        if progress.done == 3:
            bucket.door.set("down")

    with pytest.raises(ObjectStoreError, match="5 pictures in a row could not be read"):
        index(f"{bucket.uri}/in", str(tmp_path / "index"), progress=cut, batch_size=1, workers=1)
    bucket.door.set("open")
    report = index(f"{bucket.uri}/in", str(tmp_path / "index"), workers=1)
    assert (report.skipped, IndexStore.open(tmp_path / "index").stats().files) == ((), 20)


def test_an_endpoint_that_is_not_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = IndexStore.create(f"{bucket.uri}/index", MANIFEST)
    commit(store, row(1))
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", "0.5")
    bucket.door.set("down")
    for attempt in (lambda: IndexStore.open(f"{bucket.uri}/index"), store.embeddings):
        with pytest.raises(ObjectStoreError, match=f"{bucket.uri}/index.*does not answer"):
            attempt()
    with pytest.raises(IndexWriteError, match="does not answer"):
        commit(store, row(2))


def test_an_endpoint_that_says_nothing_about_a_picture(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put(pictures("red"))
    read_file(f"{bucket.uri}/red.png")
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", "0.3")
    monkeypatch.setattr(object_stores, "_opened", {})
    bucket.door.set("silent")
    with pytest.raises(ImageError, match=r"it cannot be read: .* does not answer"):
        read_file(f"{bucket.uri}/red.png")
