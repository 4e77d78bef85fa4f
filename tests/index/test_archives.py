"""Pictures in archives: what is read, what is refused, and what need not be opened again."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives_made import IMAGE, make_parquet, make_tar, make_zip
from fakes import FakeModel
from pictures import BLUE, GREEN, RED, plain, write

from fwd2bot_index import archives, listing
from fwd2bot_index.archives import close_archives, in_runs, list_members, picture_exists, read_member, split_uri
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.decoding import MAX_FILE_BYTES, read_file
from fwd2bot_index.errors import ImageError, InputError, NothingToIndexError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.listing import list_files
from fwd2bot_index.patterns import Patterns
from fwd2bot_index.store import IndexStore
from fwd2bot_index.types import Compressor, IndexReport, ModelIdentity

FILES = {"a.png": plain(RED), "deep/er/b c.png": plain(GREEN), "notes.txt": b"x"}
PICTURES = [plain(RED), plain(GREEN), plain(BLUE)]


def unwanted() -> Compressor:
    pytest.fail("the model was loaded")


def index(root: Path, *paths: Path, model: object = None, **options: object) -> IndexReport:
    return index_images(
        paths or [root / "data"],
        root / "index",
        model or FakeModel(),  # type: ignore[arg-type]
        model_identity=ModelIdentity(name="fake", revision=None, fingerprint="fake-1"),
        **options,  # type: ignore[arg-type]
    )


def found(root: Path) -> dict[str, str]:
    """Path below ``data`` -> the colour it is stored as."""
    rows = IndexStore.open(root / "index").embeddings()
    names = list(FakeModel.COLOURS)
    return {os.path.relpath(rows.row(i)[0], root / "data"): names[rows.embedding[i].argmax()] for i in range(len(rows))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def reason(uri: Path | str) -> str:
    with pytest.raises(ImageError) as raised:
        read_file(uri)
    return raised.value.reason


# ---- reading


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_members_are_read_by_their_uri(data: Path, make: object) -> None:
    path = data / ("x.zip" if make is make_zip else "x.tar")
    make(path, FILES)  # type: ignore[operator]
    for name, content in FILES.items():
        assert read_file(f"{path}!/{name}") == content
        assert read_file(Path(f"{path}!/{name}")) == content
    assert picture_exists(f"{path}!/a.png")
    assert not picture_exists(f"{path}.gone!/a.png")
    assert reason(f"{path}!/none.png") == f"it is not in {path.name}"
    assert reason(data / "gone.zip!" / "a.png") == "it cannot be read: No such file or directory"


def test_compressed_members_are_read(data: Path) -> None:
    path = make_zip(data / "x.ZIP", FILES, method=zipfile.ZIP_DEFLATED)
    assert read_file(f"{path}!/a.png") == FILES["a.png"]


def test_parquet_rows_are_read_in_any_order(data: Path) -> None:
    path = make_parquet(data / "x.parquet", [*PICTURES, None, *PICTURES], rows_per_group=3)
    for row in (5, 0, 6, 2, 1, 4):
        assert read_file(f"{path}!/image/{row}") == [*PICTURES, None, *PICTURES][row]
    assert reason(f"{path}!/image/3") == "there are no bytes in this row"
    for name in ("image/7", "image/-1", "image/x", "other/0", "image"):
        assert reason(f"{path}!/{name}") == "it is not in x.parquet"


def test_plain_bytes_under_the_name_of_an_image_are_read(data: Path) -> None:
    pq.write_table(pa.table({"jpg": PICTURES, "blob": PICTURES, "text": ["a", "b", "c"]}), data / "x.parquet")
    assert [m.name for m in list_members(str(data / "x.parquet"))] == ["jpg/0", "jpg/1", "jpg/2"]
    assert read_file(data / "x.parquet!" / "jpg" / "1") == PICTURES[1]


def test_a_sound_is_no_picture(data: Path) -> None:
    sound = pa.array([{"bytes": b"beep", "path": None}], IMAGE)
    path = make_parquet(data / "x.parquet", PICTURES[:1], sound=sound)
    assert [m.name for m in list_members(str(path))] == ["image/0"]


def test_a_group_of_rows_is_a_stream(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_parquet(data / "x.parquet", PICTURES * 20, rows_per_group=100)
    streams: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(file: pq.ParquetFile, *arguments: object, **options: object) -> object:
        streams.append(1)
        return iter_batches(file, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for row in range(60):
        assert read_file(f"{path}!/image/{row}") == PICTURES[row % 3]
    assert len(streams) == 1
    largest = archives._archives[next(reversed(archives._archives))]._stream._batch  # type: ignore[attr-defined]
    assert len(largest) <= archives._ROWS_AT_ONCE


def test_neighbours_in_parquet_go_to_one_reader() -> None:
    rows = [f"/x.parquet!/image/{i}" for i in range(250)]
    others = ["/a.jpg", "/b.jpg", "/x.zip!/a.jpg", "/x.zip!/b.jpg"]
    runs = list(in_runs([*others[:2], *rows, *others[2:]]))
    assert [uri for run in runs for uri in run] == [*others[:2], *rows, *others[2:]]
    assert [len(run) for run in runs] == [1, 1, 100, 100, 50, 1, 1]


# ---- names


def test_odd_names(data: Path) -> None:
    files = {"./a.png": b"1", "/b.png": b"2", "x/../../c.png": b"3", "d!/e.png": b"4", "ü\n'.png": b"5"}
    folder = data / "odd!" / "x.zip!"
    folder.mkdir(parents=True)
    for path in (make_zip(folder / "x.zip", files), make_tar(folder / "x.tar", files)):
        names = {m.name: read_file(f"{path}!/{m.name}") for m in list_members(str(path))}
        assert names == {"a.png": b"1", "b.png": b"2", "c.png": b"3", "d!/e.png": b"4", "ü\n'.png": b"5"}
    write(folder, {"real.png": b"6"})
    assert read_file(folder / "real.png") == b"6"
    assert split_uri(str(folder / "gone.png")) is None


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_the_later_counts(data: Path) -> None:
    with zipfile.ZipFile(data / "x.zip", "w") as archive:
        for content in (b"1", b"2"):
            archive.writestr("a.png", content)
    make_tar(data / "x.tar", {"a.png": b"1", "./a.png": b"2"})
    for path in (data / "x.zip", data / "x.tar"):
        assert [m.name for m in list_members(str(path))] == ["a.png"]
        assert read_file(f"{path}!/a.png") == b"2"


def test_names_that_are_no_text_are_reported(data: Path) -> None:
    with tarfile.open(data / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("caf\udce9.png"))
    assert [file.reason for file in list_files([data]).unlisted] == [
        "its name is not valid UTF-8, or has a NUL; rename it"
    ]


def test_a_name_with_a_nul_is_reported(tmp_path: Path, data: Path) -> None:
    write(data, {"b.png": FILES["a.png"]})
    index(tmp_path)
    odd = tarfile.TarInfo("x.png")
    odd.pax_headers = {"path": "a\0b.png"}
    odd.size = len(FILES["a.png"])  # so that its content may be known, and is looked at
    with tarfile.open(data / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(odd, BytesIO(FILES["a.png"]))
    [skipped] = index(tmp_path, model=unwanted).skipped
    assert skipped.uri == f"{data}/x.tar!/a\\0b.png"
    assert "or has a NUL" in skipped.reason
    assert reason(f"{data}/a\0b.png") == "its name is no path"


# ---- what cannot be used


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_a_tar_takes_no_memory_by_its_word(data: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type = kind
    header.size = 2**36
    with open(data / "x.tar", "wb") as f:
        f.write(header.tobuf(tarfile.GNU_FORMAT))
        f.truncate(2**36 + 4096)  # sparse
    reasons = [file.reason for file in list_files([data]).unlisted]
    assert reasons == ["it has a header of 68719476736 bytes; unpack it first"]


def test_headers_that_make_no_sense(data: Path) -> None:
    odd = tarfile.TarInfo("a.png")
    odd.pax_headers = {"GNU.sparse.size": "x"}
    with tarfile.open(data / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(odd)
    with tarfile.open(data / "y.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for _ in range(2000):  # each of which is read by the one before
            nested = tarfile.TarInfo("x")
            nested.type = tarfile.XHDTYPE
            archive.addfile(nested)
    reasons = [file.reason for file in list_files([data]).unlisted]
    assert len(reasons) == 2
    assert all("damaged after its beginning" in text for text in reasons)


def test_links_and_devices_in_a_tar_are_no_pictures(data: Path) -> None:
    with tarfile.open(data / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    assert list_files([data]).uris == []


def test_an_encrypted_member(data: Path) -> None:
    path = make_zip(data / "x.zip", FILES)
    raw = path.read_bytes()
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = raw.index(signature) + offset
        raw = raw[:at] + b"\1\0" + raw[at + 2 :]
    path.write_bytes(raw)
    assert reason(f"{path}!/a.png") == "it is encrypted; unpack it first"
    assert read_file(f"{path}!/deep/er/b c.png") == FILES["deep/er/b c.png"]


def test_a_member_that_is_packed_otherwise(data: Path) -> None:
    path = make_zip(data / "x.zip", FILES, method=zipfile.ZIP_BZIP2)  # which Python would unpack without a bound
    assert "neither stored nor deflated" in reason(f"{path}!/a.png")


def test_a_member_that_is_too_big_is_not_unpacked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytes(2**20)
    packed = make_zip(data / "x.zip", {"a.png": bomb}, method=zipfile.ZIP_DEFLATED)
    paths = [packed, make_tar(data / "x.tar", {"a.png": bomb})]
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    for path in paths:
        with pytest.raises(ImageError, match="1048576 bytes; the limit is 1000000"):
            read_member(str(path), "a.png", max_bytes=10**6)
    row = make_parquet(data / "x.parquet", [bomb])
    with pytest.raises(ImageError, match="the limit is 1000000"):
        read_member(str(row), "image/0", max_bytes=10**6)
    assert MAX_FILE_BYTES < 2**31


def test_a_bomb_that_lies_about_its_size_is_cut(data: Path) -> None:
    path = make_zip(data / "x.zip", {"a.png": bytes(2**20)}, method=zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.index(b"PK\1\2") + 24, 100)
    path.write_bytes(raw)
    assert "Bad CRC-32" in reason(f"{path}!/a.png")


def test_damaged_contents(data: Path) -> None:
    path = make_zip(data / "x.zip", FILES)
    raw = path.read_bytes()
    at = raw.index(FILES["a.png"]) + 20
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
    assert "damaged in the zip file: Bad CRC-32" in reason(f"{path}!/a.png")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.parquet"])
def test_an_archive_that_is_cut_short(tmp_path: Path, data: Path, name: str) -> None:
    write(data, {"plain.png": plain(BLUE)})
    path = data / name
    make_zip(path, FILES) if name == "x.zip" else (
        make_tar(path, FILES) if name == "x.tar" else make_parquet(path, PICTURES)
    )
    assert index(tmp_path).added >= 3
    before = found(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(PICTURES[1]) + 30])
    report = index(tmp_path, model=unwanted)
    [skipped] = report.skipped
    assert skipped.uri == str(path)
    assert "copy it again" in skipped.reason
    assert report.removed == 0
    assert found(tmp_path) == before  # it may be copied just now
    with pytest.raises(InputError, match=rf"{name} cannot be indexed: it is .*copy it again"):
        index(tmp_path, path)
    write(data, {name: b""})
    assert len(index(tmp_path, model=unwanted).skipped) == 1


def test_a_compressed_tar_in_a_folder_is_told_of(tmp_path: Path) -> None:
    write(tmp_path / "photos", {"a.jpg": b"x", "b/Old.TAR.GZ": b"x", "c.tgz": b"x", "notes.txt.gz": b"x"})
    found = list_files([tmp_path / "photos"])
    assert [file.uri for file in found.unlisted] == [str(tmp_path / "photos" / n) for n in ("c.tgz", "b/Old.TAR.GZ")]
    assert all("decompress it" in file.reason for file in found.unlisted)
    assert not list_files([tmp_path / "photos"], archives=False).unlisted
    chosen = list_files([tmp_path / "photos"], patterns=Patterns(exclude=["*.tgz", "b/"]))
    assert not chosen.unlisted


def test_a_compressed_tar_is_refused_where_it_is_named(tmp_path: Path, data: Path) -> None:
    make_tar(data / "x.tar.gz", FILES, "w:gz")
    make_tar(data / "disguised.tar", FILES, "w:gz")
    with pytest.raises(InputError, match=r"x\.tar\.gz cannot be indexed: it is a compressed tar"):
        index(tmp_path, data / "x.tar.gz")
    with pytest.raises(InputError, match=r"disguised\.tar cannot be indexed: it is not an uncompressed tar"):
        index(tmp_path, data / "disguised.tar")


def test_a_parquet_file_of_something_else(tmp_path: Path, data: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "embedding": [b"123"]}), data / "x.parquet")
    with pytest.raises(InputError, match=r"no column of pictures.*its columns are text, embedding"):
        index(tmp_path, data / "x.parquet")
    write(data, {"a.png": plain(RED)})
    assert index(tmp_path).skipped == ()


# ---- in the index


def test_pictures_in_archives_are_indexed_and_found(tmp_path: Path, data: Path) -> None:
    make_zip(data / "x.zip", {**FILES, ".hidden.png": b"x", "__MACOSX/._a.png": b"x"})
    make_tar(data / "x.tar", {"000.png": plain(BLUE), "000.txt": b"a caption", "000.json": b"{}"})
    make_parquet(data / "x.parquet", PICTURES)
    report = index(tmp_path)
    assert (report.added, report.skipped) == (6, ())
    assert found(tmp_path) == {
        "x.zip!/a.png": "red",
        "x.zip!/deep/er/b c.png": "green",
        "x.tar!/000.png": "blue",
        "x.parquet!/image/0": "red",
        "x.parquet!/image/1": "green",
        "x.parquet!/image/2": "blue",
    }
    opened = Corpus.open(tmp_path / "index", model=FakeModel())
    hit = opened.find(data / "x.zip!" / "a.png")
    assert hit is not None
    assert hit.uri == str(data / "x.zip!" / "a.png")
    best = opened.search(image=f"{data}/x.tar!/000.png", top=2)
    assert {h.uri for h in best} == {f"{data}/x.tar!/000.png", f"{data}/x.parquet!/image/2"}
    elsewhere = make_zip(tmp_path / "copy.zip", {"other.png": plain(RED)})
    by_content = opened.find(f"{elsewhere}!/other.png")
    assert by_content is not None
    assert by_content.id == hit.id


def test_an_archive_that_is_named(tmp_path: Path, data: Path) -> None:
    path = make_zip(data / "x.zip", FILES)
    assert index(tmp_path, path).added == 2
    make_zip(path, {"a.png": plain(RED)})
    assert index(tmp_path, path, model=unwanted).removed == 1
    make_zip(path, {"notes.txt": b"x"})
    with pytest.raises(NothingToIndexError):
        index(tmp_path, path, model=unwanted)
    assert found(tmp_path) == {"x.zip!/a.png": "red"}  # as of a folder that was emptied


def test_an_archive_without_pictures_is_nothing(tmp_path: Path, data: Path) -> None:
    make_zip(data / "x.zip", {"notes.txt": b"x"})
    with pytest.raises(NothingToIndexError):
        index(tmp_path)


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    close_archives()
    monkeypatch.setattr(listing, "list_members", lambda path: pytest.fail(f"{path} was opened"))


def test_unchanged_archives_are_not_opened(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_zip(data / "x.zip", {**FILES, "bad.png": b"bad"})
    make_tar(data / "x.tar", {"a.png": plain(BLUE)})
    make_parquet(data / "x.parquet", PICTURES)
    make_zip(data / "empty.zip", {"notes.txt": b"x"})
    first = index(tmp_path)
    assert (first.added, len(first.skipped)) == (6, 1)
    before = {p: p.read_bytes() for p in (tmp_path / "index").rglob("*") if p.is_file()}
    request.getfixturevalue("never_opened")
    again = index(tmp_path, model=unwanted)
    assert (again.unchanged, again.removed, again.skipped) == (6, 0, first.skipped)
    assert {p: p.read_bytes() for p in (tmp_path / "index").rglob("*") if p.is_file()} == before
    stats = IndexStore.open(tmp_path / "index").stats()
    assert (stats.files, stats.skipped) == (6, 1)
    only = index(tmp_path, data / "x.zip", model=unwanted)
    assert (only.unchanged, only.removed) == (2, 0)


def test_a_run_that_was_interrupted_does_not_pass_for_done(tmp_path: Path, data: Path) -> None:
    make_tar(data / "x.tar", {f"{i}.png": plain(RED, (8 + i, 8)) for i in range(6)})

    def interrupt(progress: object) -> None:
        if progress.phase == "compressing" and progress.done >= 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    report = index(tmp_path, batch_size=1, workers=1, progress=interrupt)
    assert (report.interrupted, report.added) == (True, 2)
    assert index(tmp_path).added == 4


def test_a_zip_written_anew_is_compared_by_its_directory(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One time, one size: only the CRC tells the new picture from the old.
    kinds = {name: plain(colour, (8, 8), "BMP") for name, colour in (("a", RED), ("b", GREEN), ("c", BLUE))}
    make_zip(data / "x.zip", {"same.bmp": kinds["a"], "other.bmp": kinds["b"]})
    index(tmp_path)
    make_zip(data / "x.zip", {"same.bmp": kinds["a"], "other.bmp": kinds["c"]})
    os.utime(data / "x.zip", ns=(10**18, 10**18))
    report = index(tmp_path)
    assert (report.unchanged, report.updated) == (1, 1)
    assert found(tmp_path) == {"x.zip!/same.bmp": "red", "x.zip!/other.bmp": "blue"}


@pytest.mark.parametrize("make", [make_tar, make_parquet])
def test_other_archives_written_anew_are_read_again(tmp_path: Path, data: Path, make: object) -> None:
    old, new = plain(RED, (8, 8), "BMP"), plain(BLUE, (8, 8), "BMP")
    if make is make_tar:
        make_tar(data / "x.tar", {"a.bmp": old})
    else:
        make_parquet(data / "x.parquet", [old])
    [path] = data.iterdir()
    size = path.stat().st_size
    index(tmp_path)
    if make is make_tar:
        make_tar(path, {"a.bmp": new})
    else:
        make_parquet(path, [new])
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_size == size
    assert index(tmp_path).updated == 1
    assert list(found(tmp_path).values()) == ["blue"]
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert index(tmp_path, model=unwanted).unchanged == 1


def test_unpacking_computes_nothing(tmp_path: Path, data: Path) -> None:
    make_zip(data / "x.zip", FILES)
    index(tmp_path)
    with zipfile.ZipFile(data / "x.zip") as archive:
        archive.extractall(data)
    (data / "x.zip").unlink()
    report = index(tmp_path, model=unwanted)
    assert (report.renamed, report.removed) == (2, 0)
    assert set(found(tmp_path)) == {"a.png", "deep/er/b c.png"}
    known = IndexStore.open(tmp_path / "index").known_files()
    assert known.archives() == {}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.parquet"])
def test_an_archive_that_was_moved_computes_nothing(tmp_path: Path, data: Path, name: str) -> None:
    path = data / name
    if name == "x.parquet":
        make_parquet(path, PICTURES[:2])
    else:
        (make_zip if name == "x.zip" else make_tar)(path, FILES)
    index(tmp_path)
    (data / "deeper").mkdir()
    moved = path.rename(data / "deeper" / f"moved-{name}")
    report = index(tmp_path, model=unwanted)
    assert (report.renamed, report.removed, report.added) == (2, 0, 0)
    assert {uri.partition("!/")[0] for uri in found(tmp_path)} == {f"deeper/moved-{name}"}
    assert set(IndexStore.open(tmp_path / "index").known_files().archives()) == {str(moved)}


def test_an_archive_that_changes_while_it_is_read(tmp_path: Path, data: Path) -> None:
    make_zip(data / "x.zip", {"a.png": plain(RED), "b.png": plain(GREEN)})

    def replace(progress: object) -> None:
        if progress.phase == "loading":  # type: ignore[attr-defined]
            make_zip(data / "new", {"a.png": plain(RED, (3, 3))})
            (data / "new").rename(data / "x.zip")

    report = index(tmp_path, progress=replace)
    assert [file.reason for file in report.skipped] == ["it is not in x.zip"]
    report = index(tmp_path)
    assert (report.removed, report.skipped) == (1, ())
    assert found(tmp_path) == {"x.zip!/a.png": "red"}
