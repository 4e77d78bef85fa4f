"""Pictures into an index: what is computed, what is not, and what no accident may lose."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel
from pictures import BLUE, GREEN, RED, encoded, noise, plain, write

from fwd2bot_index import indexing, store, write_buffer
from fwd2bot_index.decoding import content_id
from fwd2bot_index.errors import (
    IndexCorruptedError,
    IndexMismatchError,
    IndexWriteError,
    InputError,
    ModelError,
)
from fwd2bot_index.indexing import Progress, index_images, sample_first
from fwd2bot_index.store import IndexStore
from fwd2bot_index.types import Compressor, ImageInput, IndexReport, ModelIdentity, SummaryTokens
from fwd2bot_index.verifying import verify

IDENTITY = ModelIdentity(name="fake", revision=None, fingerprint="fake-1")


def unwanted() -> Compressor:
    pytest.fail("the model was loaded")


class Corpus:
    """A folder of pictures, its index, and a model that counts what it compresses."""

    def __init__(self, root: Path) -> None:
        self.photos = root / "photos"
        self.photos.mkdir()
        self.index_folder = root / "index"
        self.model = FakeModel()

    def write(self, files: dict[str, bytes]) -> None:
        write(self.photos, files)

    def index(
        self, *paths: Path, model: Compressor | Callable[[], Compressor] | None = None, **options: object
    ) -> IndexReport:
        return index_images(
            paths or [self.photos],
            self.index_folder,
            model or self.model,
            model_identity=IDENTITY,
            **options,  # type: ignore[arg-type]
        )

    @property
    def store(self) -> IndexStore:
        return IndexStore.open(self.index_folder)

    def found(self) -> dict[str, str]:
        """The colour that each indexed file is stored as, by its embedding and by its tokens."""
        embedded = self.store.embeddings()
        colours = {}
        for i in range(len(embedded)):
            uri, id_, _, _ = embedded.row(i)
            by_embedding = int(embedded.embedding[i].argmax())
            assert int(self.store.tokens([id_])[0, 0, :3].argmax()) == by_embedding, uri
            colours[os.path.relpath(uri, self.photos)] = list(FakeModel.COLOURS)[by_embedding]
        return colours


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(tmp_path)
    corpus.write({"red.png": plain(RED), "sub/green.png": plain(GREEN), "blue.png": plain(BLUE)})
    return corpus


def touch(path: Path, seconds: int = 5) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def noisy(seed: int) -> bytes:
    """A picture of its own whose file has the size of all of them."""
    return encoded(noise((8, 8), seed=seed), "BMP")


def counts(report: IndexReport) -> dict[str, int]:
    """What is not zero."""
    fields = ("added", "updated", "renamed", "removed", "unchanged")
    numbers = {name: getattr(report, name) for name in fields} | {"skipped": len(report.skipped)}
    return {name: number for name, number in numbers.items() if number}


# ---- what is computed


def test_every_picture_is_stored_as_what_it_is(corpus: Corpus) -> None:
    assert counts(corpus.index()) == {"added": 3}
    assert corpus.found() == {"red.png": "red", "sub/green.png": "green", "blue.png": "blue"}
    manifest = corpus.store.manifest
    assert (manifest.model, manifest.model_fingerprint, manifest.codec) == ("fake", "fake-1", "pq8")
    assert (manifest.num_summary_tokens, manifest.token_dim, manifest.embedding_dim) == (4, 8, 3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_and_workers_change_nothing(tmp_path: Path, batch_size: int) -> None:
    corpus = Corpus(tmp_path)
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    corpus.write({f"{name}{i}.png": plain(c, (8 + i, 8)) for i in range(8) for name, c in colours.items()})
    assert counts(corpus.index(batch_size=batch_size, workers=2)) == {"added": 24}
    assert corpus.found() == {f"{name}{i}.png": name for i in range(8) for name in colours}


def test_nothing_has_changed(corpus: Corpus) -> None:
    corpus.index()
    before = {p: p.read_bytes() for p in corpus.index_folder.rglob("*") if p.is_file()}
    started = time.process_time()  # not the wall's: the machine may be busy
    assert counts(corpus.index(model=unwanted)) == {"unchanged": 3}
    assert time.process_time() - started < 1
    assert {p: p.read_bytes() for p in corpus.index_folder.rglob("*") if p.is_file()} == before


def test_only_new_and_changed_files_are_computed(corpus: Corpus) -> None:
    corpus.index()
    corpus.write({"red.png": plain(BLUE), "new.png": plain(RED, (5, 5))})
    touch(corpus.photos / "red.png")
    corpus.model.compressed = 0
    # the new red.png has the very bytes of blue.png
    assert counts(corpus.index()) == {"added": 1, "updated": 1, "unchanged": 2}
    assert corpus.model.compressed == 1
    assert corpus.found() == {"red.png": "blue", "sub/green.png": "green", "blue.png": "blue", "new.png": "red"}


def test_the_same_content_at_another_time_is_not_computed(corpus: Corpus) -> None:
    corpus.index()
    touch(corpus.photos / "red.png")
    assert counts(corpus.index(model=unwanted)) == {"unchanged": 3}
    status = (corpus.photos / "red.png").stat()
    [row] = corpus.store.rows(uris=[str(corpus.photos / "red.png")])
    assert row.mtime_ns == status.st_mtime_ns
    assert len(corpus.found()) == 3


def test_names_are_followed_without_the_model(corpus: Corpus) -> None:
    corpus.index()
    (corpus.photos / "red.png").rename(corpus.photos / "rot.png")
    (corpus.photos / "sub").rename(corpus.photos / "folder")
    assert counts(corpus.index(model=unwanted)) == {"renamed": 2, "unchanged": 1}
    assert corpus.found() == {"rot.png": "red", "folder/green.png": "green", "blue.png": "blue"}


def test_copies_are_not_computed(corpus: Corpus) -> None:
    corpus.write({"copy1.png": plain(RED), "copy2.png": plain(RED)})
    assert counts(corpus.index(batch_size=2)) == {"added": 5}
    assert corpus.model.compressed == 3
    corpus.write({"copy3.png": plain(RED)})
    assert counts(corpus.index(model=unwanted)) == {"added": 1, "unchanged": 5}
    stats = corpus.store.stats()
    assert (stats.files, stats.pictures) == (6, 3)
    assert {name for name, colour in corpus.found().items() if colour == "red"} == {
        "red.png", "copy1.png", "copy2.png", "copy3.png"
    }  # fmt: skip


def test_two_files_swap_names(corpus: Corpus) -> None:
    corpus.index()
    red, blue = corpus.photos / "red.png", corpus.photos / "blue.png"
    red.rename(corpus.photos / "x")
    blue.rename(red)
    (corpus.photos / "x").rename(blue)
    touch(red)
    touch(blue, 7)
    corpus.index(model=unwanted)
    assert corpus.found() == {"red.png": "blue", "sub/green.png": "green", "blue.png": "red"}


@pytest.mark.parametrize("commit_seconds", [0.0, 10.0])
def test_files_that_are_numbered_anew(corpus: Corpus, commit_seconds: float) -> None:
    # each takes the name of another, so a commit in between overwrites the row that the next would be a copy of
    corpus.write({f"IMG_{n}.png": plain((20 * n, 9, 200 - 20 * n)) for n in range(6)})
    corpus.index()
    for n in reversed(range(6)):
        (corpus.photos / f"IMG_{n}.png").rename(corpus.photos / f"IMG_{n + 1}.png")
    assert counts(corpus.index(commit_seconds=commit_seconds)) == {
        "updated": 5, "added": 1, "removed": 1, "unchanged": 3,
    }  # fmt: skip
    known = corpus.store.known_files()
    assert dict(zip(known.uri.to_pylist(), known.id.to_pylist(), strict=True)) == {
        str(path): content_id(path.read_bytes()) for path in corpus.photos.rglob("*.png")
    }
    assert verify(corpus.store).whole


def test_new_files_of_a_known_size_are_read_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders read what is new; what is moved is read before, and decoded by none."""
    corpus.write({f"old/{n:03}.bmp": noisy(n) for n in range(120)})
    corpus.index()
    corpus.write({f"new/{n:03}.bmp": noisy(1000 + n) for n in range(120)})
    monkeypatch.setattr(indexing, "CHECKED_AT_LEAST", 10)
    read: list[str] = []
    plainly = indexing.read_file
    monkeypatch.setattr(indexing, "read_file", lambda uri: (read.append(uri), plainly(uri))[1])
    assert corpus.index().added == 120
    assert len(read) == 10
    read.clear()
    (corpus.photos / "old").rename(corpus.photos / "moved")
    assert corpus.index(model=unwanted).renamed == 120
    assert len(read) == 120


# ---- what is gone


def test_deleted_files_are_dropped_with_their_tokens(corpus: Corpus) -> None:
    corpus.index()
    (corpus.photos / "red.png").unlink()
    assert counts(corpus.index(model=unwanted)) == {"removed": 1, "unchanged": 2}
    assert corpus.found() == {"sub/green.png": "green", "blue.png": "blue"}
    assert corpus.store.stats().pictures == 2


def test_what_lies_elsewhere_stays(corpus: Corpus) -> None:
    corpus.index()
    (corpus.photos / "red.png").unlink()
    assert counts(corpus.index(corpus.photos / "sub", model=unwanted)) == {"unchanged": 1}
    assert set(corpus.found()) == {"red.png", "sub/green.png", "blue.png"}


def test_a_missing_or_emptied_folder_drops_nothing(corpus: Corpus, tmp_path: Path) -> None:
    corpus.index()
    shutil.move(corpus.photos, tmp_path / "unplugged")
    with pytest.raises(InputError, match="photos cannot be indexed: No such file"):
        corpus.index(model=unwanted)
    corpus.photos.mkdir()  # a mount point without its disk
    with pytest.raises(InputError, match="it is empty, but the index has 3 files from there"):
        corpus.index(model=unwanted)
    write(tmp_path / "other", {"a.png": plain(RED, (3, 3))})
    report = corpus.index(tmp_path / "other", corpus.photos)
    assert counts(report) == {"added": 1, "skipped": 1}
    assert len(corpus.store.embeddings()) == 4


# ---- files that cannot be used


def bad_files() -> dict[str, bytes]:
    return {"empty.jpg": b"", "half.png": encoded(noise(), "PNG")[:2000], "text.jpg": b"not an image at all"}


def test_bad_files_are_recorded_with_their_reasons(corpus: Corpus) -> None:
    corpus.write({**bad_files(), "notes.txt": b"nobody's business"})
    report = corpus.index(batch_size=2)
    assert counts(report) == {"added": 3, "skipped": 3}
    reasons = {Path(file.uri).name: file.reason for file in report.skipped}
    assert reasons["empty.jpg"] == "it is empty"
    assert "truncated" in reasons["half.png"]
    assert reasons["text.jpg"] == "it is not an image that can be read"
    assert len(corpus.found()) == 3
    assert corpus.store.stats().skipped == 3


def test_bad_files_are_tried_again_only_when_they_change(corpus: Corpus) -> None:
    corpus.write(bad_files())
    first = corpus.index()
    again = corpus.index(model=unwanted)
    assert again.skipped == first.skipped
    assert counts(again) == {"unchanged": 3, "skipped": 3}
    corpus.write({"half.png": encoded(noise(), "PNG")})
    assert counts(corpus.index()) == {"updated": 1, "unchanged": 3, "skipped": 2}
    (corpus.photos / "empty.jpg").unlink()
    assert counts(corpus.index(model=unwanted)) == {"removed": 1, "unchanged": 4, "skipped": 1}


def test_a_picture_that_goes_bad_is_found_no_more(corpus: Corpus) -> None:
    corpus.index()
    corpus.write({"red.png": b"garbage"})
    assert counts(corpus.index()) == {"unchanged": 2, "skipped": 1}
    assert set(corpus.found()) == {"sub/green.png", "blue.png"}
    assert corpus.store.stats().pictures == 2


def test_a_folder_whose_name_ends_like_that_of_an_archive_in_a_uri(corpus: Corpus) -> None:
    corpus.write({"Party/a.png": plain(RED, (9, 9)), "Party!/b.png": plain(BLUE, (9, 9))})
    corpus.index()
    assert counts(corpus.index(corpus.photos / "Party", model=unwanted)) == {"unchanged": 1}
    assert {"Party/a.png", "Party!/b.png"} <= set(corpus.found())


def test_a_file_that_could_not_be_read_is_tried_again(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.index()
    link = corpus.photos / "late.png"
    # root may read everything, so a file that vanishes between listing and reading plays the unreadable one
    link.write_bytes(plain(RED, (9, 9)))
    listed = indexing.list_files

    def then_vanish(paths: Sequence[str | Path], **options: object) -> object:
        listing = listed(paths, **options)  # type: ignore[arg-type]
        link.rename(corpus.photos / "late.hidden")
        return listing

    monkeypatch.setattr(indexing, "list_files", then_vanish)
    report = corpus.index()
    assert [file.reason for file in report.skipped] == ["it cannot be read: No such file or directory"]
    monkeypatch.undo()
    (corpus.photos / "late.hidden").rename(link)
    assert counts(corpus.index()) == {"updated": 1, "unchanged": 3}


def test_no_file_can_be_used(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.write(bad_files())
    with pytest.raises(InputError, match="None of the 3 files"):
        corpus.index()
    assert not corpus.index_folder.exists()


def test_an_index_in_use_takes_note_of_a_folder_of_bad_files(corpus: Corpus, tmp_path: Path) -> None:
    corpus.index()
    write(tmp_path / "bad", bad_files())
    assert counts(corpus.index(tmp_path / "bad")) == {"skipped": 3}
    assert len(corpus.found()) == 3


def test_nothing_to_index(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    with pytest.raises(InputError, match="There is no picture in"):
        corpus.index(model=unwanted)
    corpus.write({"notes.txt": b"x"})
    with pytest.raises(InputError, match="extension"):
        corpus.index(model=unwanted)
    with pytest.raises(InputError, match="nowhere"):
        corpus.index(tmp_path / "nowhere", model=unwanted)
    assert not corpus.index_folder.exists()


# ---- models that fail


class PickyModel(FakeModel):
    """Fails on, or gives nonsense for, a batch with a picture that is mostly of one colour."""

    def __init__(self, hates: Sequence[int] = (1,), *, nonsense: bool = False) -> None:
        super().__init__()
        self.hates = hates
        self.nonsense = nonsense

    def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
        summary = super().compress(images)
        hated = torch.tensor([int(row.argmax()) in self.hates for row in summary.embedding])
        if self.nonsense:
            summary.tokens[hated, 0, 0] = torch.nan
        elif hated.any():
            raise RuntimeError("I do not like green\nand here is a long explanation")
        return summary


@pytest.mark.parametrize("nonsense", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_picture_that_the_model_fails_on_is_left_out_alone(corpus: Corpus, nonsense: bool, batch_size: int) -> None:
    corpus.write({"a.png": plain(RED, (7, 7)), "copy.png": plain(GREEN)})
    report = corpus.index(model=PickyModel(nonsense=nonsense), batch_size=batch_size)
    assert counts(report) == {"added": 3, "skipped": 2}
    assert corpus.found() == {"a.png": "red", "blue.png": "blue", "red.png": "red"}
    reason = "its summary tokens are not finite" if nonsense else "I do not like green"
    assert {file.reason for file in report.skipped} == {f"the model could not compress it: {reason}"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_picture_that_there_was_no_memory_for_is_tried_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    model = PickyModel()
    compress = PickyModel.compress

    def without_memory(self: PickyModel, images: Sequence[ImageInput]) -> SummaryTokens:
        try:
            return compress(self, images)
        except RuntimeError as e:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate") from e

    monkeypatch.setattr(PickyModel, "compress", without_memory)
    corpus.write({"a.png": plain(RED, (7, 7))})
    assert counts(corpus.index(model=model, batch_size=batch_size)) == {"added": 3, "skipped": 1}
    model.hates = ()
    assert counts(corpus.index(model=model, batch_size=batch_size)) == {"updated": 1, "unchanged": 3}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_picture_is_blamed_for_a_device_that_failed(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    corpus.write({f"{i}.png": plain(GREEN, (10 + i, 9)) for i in range(4)})

    def broken(images: Sequence[ImageInput]) -> SummaryTokens:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model = PickyModel(hates=())

    def break_later(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done >= 2:
            monkeypatch.setattr(model, "compress", broken)

    with pytest.raises(ModelError, match="The device failed: CUDA error"):
        corpus.index(model=model, batch_size=batch_size, progress=break_later)
    report = corpus.index()
    assert (len(corpus.found()), len(report.skipped)) == (7, 0)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_model_that_fails_on_everything_is_to_blame_itself(corpus: Corpus, batch_size: int) -> None:
    with pytest.raises(ModelError, match=r"fake fails on every picture.*do not like green") as raised:
        corpus.index(model=PickyModel(hates=(0, 1, 2)), batch_size=batch_size)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert not corpus.index_folder.exists()


def test_what_was_done_before_the_model_failed_is_kept(corpus: Corpus) -> None:
    corpus.write({f"{i}.png": plain(RED, (10 + i, 9)) for i in range(4)})
    model = PickyModel(hates=())

    def break_later(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done >= 4:
            model.hates = (0, 1, 2)

    with pytest.raises(ModelError):
        corpus.index(model=model, batch_size=2, progress=break_later)
    assert len(corpus.found()) == 4
    assert counts(corpus.index()) == {"added": 3, "unchanged": 4}


# ---- other models, other codecs, damage


def test_another_model_is_refused(corpus: Corpus) -> None:
    corpus.index()
    other = ModelIdentity(name="other", revision=None, fingerprint="other-1")
    with pytest.raises(IndexMismatchError, match="made by fake, not by other: index with --model fake"):
        index_images([corpus.photos], corpus.index_folder, unwanted, model_identity=other)
    with pytest.raises(IndexMismatchError, match="other weights or settings"):
        index_images([corpus.photos], corpus.index_folder, FakeModel(fingerprint="fake-2"))
    assert len(corpus.found()) == 3


def test_another_codec_is_refused(corpus: Corpus) -> None:
    corpus.index(codec="float16")
    assert len(corpus.found()) == 3
    with pytest.raises(IndexMismatchError, match="--codec float16"):
        corpus.index(codec="int8")
    with pytest.raises(InputError, match="'int3'"):
        corpus.index(codec="int3")


def test_a_codec_is_fitted_once(corpus: Corpus) -> None:
    """To the pictures of the first commit; what comes later is written and read with the same."""
    corpus.write({f"{i}.png": plain((5 * i, 0, 250 - 5 * i), (20 + i, 20)) for i in range(40)})
    corpus.index(codec="pq8")
    fit = (corpus.index_folder / "codec.safetensors").read_bytes()
    rows = corpus.store.embeddings()
    ids = [rows.row(i)[1] for i in range(len(rows))]
    before = corpus.store.tokens(ids)
    corpus.write({f"later {i}.png": plain((0, 5 * i, 250 - 5 * i), (20 + i, 20)) for i in range(40)})
    assert counts(corpus.index(codec="pq8")) == {"added": 40, "unchanged": 43}
    assert (corpus.index_folder / "codec.safetensors").read_bytes() == fit
    np.testing.assert_array_equal(corpus.store.tokens(ids), before)
    rows = corpus.store.embeddings()
    for i in range(len(rows)):  # also of colours that the fit has not seen
        uri, id_, _, _ = rows.row(i)
        [told] = corpus.store.tokens([id_])
        made = FakeModel().compress([Path(uri).read_bytes()]).tokens[0].numpy()
        assert np.linalg.norm(told - made) < 0.4 * np.linalg.norm(made), uri


def test_no_file_for_a_codec_that_learns_nothing(corpus: Corpus) -> None:
    corpus.index(codec="int4")
    assert not (corpus.index_folder / "codec.safetensors").exists()


def test_the_first_pictures_come_from_everywhere(corpus: Corpus) -> None:
    uris = [f"{i:03}" for i in range(100)]
    assert sample_first(uris, 10)[:10] == [f"{i:03}" for i in range(0, 100, 10)]
    assert sorted(sample_first(uris, 10)) == uris
    assert sample_first(uris, 99)[:99] == [u for u in uris if u != "099"]
    assert sample_first(uris, 100) == sample_first(uris, 500) == uris

    corpus.write({f"{i:03}.png": plain(RED, (10 + i, 9)) for i in range(300)})
    found = {}
    for codec in ("pq8", "int4"):
        corpus.index(codec=codec)
        rows = corpus.store.embeddings()
        found[codec] = [rows.row(i)[0] for i in range(len(rows))]
        shutil.rmtree(corpus.index_folder)
    assert found["pq8"] == sample_first(found["int4"])
    assert found["int4"] == sorted(found["int4"]) != found["pq8"], "nothing to learn: no reason for another order"


def test_a_corrupted_manifest_is_refused(corpus: Corpus) -> None:
    corpus.index()
    (corpus.index_folder / "manifest.json").write_text("{")
    with pytest.raises(IndexCorruptedError, match=r"manifest\.json"):
        corpus.index(model=unwanted)


def test_a_foreign_folder_is_refused(corpus: Corpus) -> None:
    write(corpus.index_folder, {"thesis.txt": b"x"})
    with pytest.raises(IndexWriteError, match=r"thesis\.txt"):
        corpus.index(model=unwanted)
    assert [p.name for p in corpus.index_folder.iterdir()] == ["thesis.txt"]


def test_options_are_checked(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="batch size"):
        corpus.index(batch_size=0)
    with pytest.raises(InputError, match="worker"):
        corpus.index(workers=0)


def test_a_full_disk_leaves_the_index_as_it_was(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.index()
    corpus.write({"new.png": plain(RED, (5, 5))})
    (corpus.photos / "blue.png").unlink()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_upsert", no_space)
    with pytest.raises(IndexWriteError, match="No space left on device"):
        corpus.index()
    monkeypatch.undo()
    assert set(corpus.found()) == {"red.png", "sub/green.png", "blue.png"}
    assert counts(corpus.index()) == {"added": 1, "removed": 1, "unchanged": 2}


# ---- interruptions and crashes


def test_ctrl_c_keeps_what_is_done(corpus: Corpus) -> None:
    corpus.write({f"{i}.png": plain(RED, (10 + i, 9)) for i in range(8)})
    (corpus.photos / "blue.png").rename(corpus.photos / "blau.png")

    def interrupt(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done >= 4:
            raise KeyboardInterrupt

    report = corpus.index(batch_size=2, progress=interrupt)
    assert report.interrupted
    assert report.added == len(corpus.found()) == 4
    assert counts(corpus.index()) == {"added": 7, "unchanged": 4}
    assert len(corpus.found()) == 11


def test_ctrl_c_before_anything_is_done(corpus: Corpus) -> None:
    def interrupt() -> Compressor:
        raise KeyboardInterrupt

    assert corpus.index(model=interrupt).interrupted
    assert not corpus.index_folder.exists()


def test_ctrl_c_drops_nothing(corpus: Corpus) -> None:
    corpus.index()
    (corpus.photos / "red.png").unlink()
    corpus.write({"new.png": plain(RED, (5, 5))})

    def interrupt() -> Compressor:
        raise KeyboardInterrupt

    report = corpus.index(model=interrupt)
    assert (report.interrupted, report.removed) == (True, 0)
    assert set(corpus.found()) == {"red.png", "sub/green.png", "blue.png"}


SLOW_RUN = """
import sys, time
sys.path[:0] = {path!r}
from fakes import FakeModel
from fwd2bot_index.indexing import index_images

class Slow(FakeModel):
    def compress(self, images):
        time.sleep(0.05)
        return super().compress(images)

def tell(progress):
    print(progress.done, flush=True)

report = index_images([{photos!r}], {index!r}, Slow(), codec="int8", batch_size=1, commit_seconds=0, progress=tell)
print("interrupted" if report.interrupted else "finished")
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside_is_continued(tmp_path: Path, signal_number: int) -> None:
    corpus = Corpus(tmp_path)
    corpus.write({f"{i}.png": plain(RED, (10 + i, 9)) for i in range(60)})
    code = SLOW_RUN.format(path=sys.path, photos=str(corpus.photos), index=str(corpus.index_folder))
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) >= 5:
                break
        os.killpg(run.pid, signal_number)  # as a terminal does: the whole group
        rest = run.stdout.read()
    if signal_number == signal.SIGINT:
        assert rest.endswith("interrupted\n")
    done = len(corpus.found())
    assert 4 <= done < 60
    report = corpus.index(codec="int8")
    assert counts(report) == {"added": 60 - done, "unchanged": done}
    assert corpus.model.compressed == 60 - done
    assert len(corpus.found()) == 60


def test_work_is_committed_by_time(corpus: Corpus) -> None:
    corpus.write({f"{i}.png": plain(RED, (10 + i, 9)) for i in range(4)})
    committed = []

    def look(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done:
            committed.append(len(corpus.store.embeddings()))

    corpus.index(codec="int8", batch_size=1, commit_seconds=0, progress=look)
    assert committed == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("codec", "patience", "expected"),
    [("pq8", 300.0, [0, 0, 3, 4, 5]), ("pq8", 0.0, [1, 2, 3, 4, 5]), ("int4", 300.0, [1, 2, 3, 4, 5])],
)
def test_a_codec_is_fitted_when_there_is_something_to_learn_from(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, codec: str, patience: float, expected: list[int]
) -> None:
    """The fit is for ever; but nobody should lose hours of work for it."""
    corpus.write({f"{i}.png": plain(RED, (10 + i, 9)) for i in range(2)})
    monkeypatch.setattr(indexing, "FIT_SAMPLE", 3)
    monkeypatch.setattr(write_buffer, "FIRST_SECONDS", patience)
    committed = []

    def look(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done:
            committed.append(len(corpus.store.embeddings()) if IndexStore.exists(corpus.index_folder) else 0)

    corpus.index(batch_size=1, commit_seconds=0, codec=codec, progress=look)
    assert committed == expected


def test_work_is_committed_by_size(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_buffer, "COMMIT_BYTES", 2 * 4 * 8 * 4)  # two pictures
    sizes = []

    def look(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done:
            sizes.append(len(corpus.store.embeddings()) if IndexStore.exists(corpus.index_folder) else 0)

    corpus.index(batch_size=1, progress=look)
    assert sizes == [0, 2, 2]


# ---- the model and the progress


def test_the_model_is_asked_for_its_identity_where_none_is_given(corpus: Corpus) -> None:
    loads: list[int] = []

    def load() -> Compressor:
        loads.append(1)
        return FakeModel()

    index_images([corpus.photos], corpus.index_folder, load)
    report = index_images([corpus.photos], corpus.index_folder, load)
    assert (report.unchanged, len(loads)) == (3, 2)


@pytest.mark.parametrize(("decode_side", "seen"), [(None, (2048, 1024)), (200, (200, 100)), (100, (100, 50))])
def test_pictures_are_decoded_no_larger_than_the_model_wants(
    tmp_path: Path, decode_side: int | None, seen: tuple[int, int]
) -> None:
    corpus = Corpus(tmp_path)
    corpus.write({"a.png": plain(RED, (4096, 2048))})
    sizes = []

    class Watching(FakeModel):
        def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
            sizes.extend(image.size for image in images)  # type: ignore[union-attr]
            return super().compress(images)

    model = Watching()
    model.decode_side = decode_side
    corpus.index(model=model)
    assert sizes == [seen]
    [row] = corpus.store.rows(uris=[str(corpus.photos / "a.png")])
    assert (row.width, row.height) == (4096, 2048)


def test_progress_goes_from_nothing_to_all(corpus: Corpus) -> None:
    corpus.write(bad_files())
    told: list[Progress] = []
    corpus.index(batch_size=2, progress=told.append)
    assert list(dict.fromkeys(p.phase for p in told)) == [
        "listing", "checking", "loading", "compressing", "finishing"
    ]  # fmt: skip
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].done, told[-1].total, told[-1].skipped) == (6, 6, 3)


def test_times_are_told_apart(corpus: Corpus) -> None:
    class Slow(FakeModel):
        def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
            time.sleep(0.05)
            return super().compress(images)

    def load() -> Compressor:
        time.sleep(0.1)
        return Slow()

    report = corpus.index(model=load, batch_size=1)
    assert report.loading_seconds >= 0.1
    assert report.model_seconds >= 0.15
    assert report.loading_seconds + report.model_seconds <= report.seconds


def test_indexing_works_outside_the_main_thread(corpus: Corpus) -> None:
    reports: list[IndexReport] = []
    thread = threading.Thread(target=lambda: reports.append(corpus.index()))
    thread.start()
    thread.join()
    assert counts(reports[0]) == {"added": 3}


def test_embeddings_keep_their_length(corpus: Corpus) -> None:
    corpus.index()
    lengths = np.linalg.norm(corpus.store.embeddings().embedding.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)


def test_pictures_of_like_size_go_together_where_the_model_pads(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.write({f"{i:02}.png": plain(RED, (20 + i, 20) if i % 2 else (200 + i, 200)) for i in range(32)})
    padding = {}
    for pads in (False, True):
        wasted = []

        class Padding(FakeModel):
            def compress(self, images: Sequence[ImageInput], wasted: list[int] = wasted) -> SummaryTokens:
                areas = [image.size[0] * image.size[1] for image in images]  # type: ignore[union-attr]
                wasted.append(max(areas) * len(areas) - sum(areas))
                return super().compress(images)

        model = Padding()
        model.pads = pads
        index_images([corpus.photos], tmp_path / f"index-{pads}", model, batch_size=4, workers=1)
        assert model.compressed == 32
        padding[pads] = sum(wasted)
    assert padding[True] < padding[False] / 5


def test_the_next_batch_is_preprocessed_while_the_model_is_at_work(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.write({f"{i}.png": plain(RED, (20 + i, 20)) for i in range(6)})
    began: list[threading.Event] = [threading.Event() for _ in range(3)]
    threads = set()

    class Watching(FakeModel):
        batches = 0

        def preprocess(self, images: Sequence[ImageInput]) -> Sequence[ImageInput]:
            threads.add(threading.current_thread())
            began[self.batches].set()
            self.batches += 1
            return images

        def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
            assert self.compressed == 4 or began[self.compressed // 2 + 1].wait(10), "the next one waits"
            return super().compress(images)

    model = Watching()
    corpus.index(model=model, batch_size=2)
    assert (model.compressed, model.batches) == (6, 3)
    assert threading.main_thread() not in threads


def test_a_picture_that_cannot_be_preprocessed_is_left_out_alone(corpus: Corpus) -> None:
    class Picky(FakeModel):
        def preprocess(self, images: Sequence[ImageInput]) -> Sequence[ImageInput]:
            if any(int(self._mean(image).argmax()) == 1 for image in images):
                raise RuntimeError("too green")
            return images

        def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
            return super().compress(self.preprocess(images))

    report = corpus.index(model=Picky(), batch_size=3)
    assert counts(report) == {"added": 2, "skipped": 1}
    assert {file.reason for file in report.skipped} == {"the model could not compress it: too green"}
