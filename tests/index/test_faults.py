"""Accidents while indexing: after each, verification passes, no row is lost, doubled or half-written, and the next run
makes the index what it should be."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel
from pictures import plain, write
from safetensors.numpy import load, save

from fwd2bot_index import first_pictures, indexing, places
from fwd2bot_index import store as store_module
from fwd2bot_index.decoding import content_id
from fwd2bot_index.errors import IndexBusyError, IndexWriteError
from fwd2bot_index.indexing import Progress, index_images
from fwd2bot_index.store import IndexStore
from fwd2bot_index.types import IndexReport
from fwd2bot_index.verifying import verify

KILLS = 20


class Place:
    """A folder of pictures of one colour each, and their index. Every colour is used once, so that tokens and
    embeddings tell which picture they are of."""

    def __init__(self, root: Path) -> None:
        self.photos, self.index_folder = root / "photos", root / "index"
        self.photos.mkdir()
        self._colours = 0
        self.colour_of: dict[str, tuple[int, int, int]] = {}
        """By content id, of all pictures that ever were."""

    def draw(self, name: str) -> None:
        self._colours += 1
        colour = (self._colours % 16 * 16, self._colours // 16 % 16 * 16, self._colours // 256 * 16 + 8)
        data = plain(colour)
        write(self.photos, {name: data})
        self.colour_of[content_id(data)] = colour

    def on_disk(self) -> dict[str, str]:
        return {str(path): content_id(path.read_bytes()) for path in self.photos.rglob("*.png")}

    def index(self, **options: object) -> IndexReport:
        return index_images([self.photos], self.index_folder, FakeModel(), codec="float16", **options)  # type: ignore[arg-type]

    def rows(self) -> dict[str, str]:
        """uri -> id in the index, once all of it is known to be right."""
        if not IndexStore.exists(self.index_folder):
            return {}
        store = IndexStore.open(self.index_folder)
        found = verify(store)
        assert found.problems == []
        known = store.known_files()
        rows = dict(zip(known.uri.to_pylist(), known.id.to_pylist(), strict=True))
        assert len(rows) == len(known)
        tokens = store.tokens(list(rows.values()))
        for id_, token in zip(rows.values(), tokens, strict=True):
            np.testing.assert_allclose(token[:, :3] * 255, [self.colour_of[id_]] * len(token), atol=0.5)
        return rows


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    for i in range(12):
        place.draw(f"{i}.png")
    return place


# ---- kill -9

RUN = """
import sys, time
sys.path[:0] = {path!r}
from contextlib import nullcontext
import numpy as np
from PIL import Image
from fwd2bot_index.indexing import index_images
from fwd2bot_index.types import ModelIdentity

class Array(np.ndarray):
    # what is asked of a tensor, without a second of importing torch
    float = cpu = lambda self: self
    numpy = lambda self: np.asarray(self)

class Summary:
    def __init__(self, tokens, embedding):
        self.tokens, self.embedding = tokens.view(Array), embedding.view(Array)

class Model:
    name, revision, fingerprint, mode = "fake", None, "fake-1", "trained"
    full_fingerprint = "fake-1, all"
    num_summary_tokens, token_dim, embedding_dim, decode_side = 4, 8, 3, None
    embed_text = answer = loglikelihood = answer_together = weigh_together = matching_question = print
    caption_prompt = None
    pads = False

    def merged(self, stage):
        return nullcontext()

    def preprocess(self, images):
        return images

    def compress(self, images):
        time.sleep(0.01)
        means = np.stack([np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) / 255 for image in images])
        tokens = np.zeros((len(images), 4, 8), np.float32)
        tokens[..., :3] = means[:, None]
        means = means + 1e-3
        return Summary(tokens, means / np.linalg.norm(means, axis=-1, keepdims=True))

print("ready", flush=True)
index_images([{photos!r}], {index!r}, Model(), codec="float16", batch_size=2, commit_seconds=0)
print("done", flush=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path: Path) -> None:
    """Pictures come, go, change and move between the runs; each run is killed, with its workers, at a random moment."""
    place, dice = Place(tmp_path), random.Random(0)
    code = RUN.format(path=sys.path, photos=str(place.photos), index=str(place.index_folder))
    names = [f"{i}.png" for i in range(20)]
    for name in names:
        place.draw(name)
    finished = 0
    before: dict[str, str] = {}
    for turn in range(KILLS):
        for name in dice.sample(names, 3):
            path = place.photos / name
            what = dice.choice(["draw", "draw", "delete", "move"])
            if what == "draw" or not path.exists():
                place.draw(name)
            elif what == "delete":
                path.unlink()
            else:
                path.rename(place.photos / dice.choice(names))
        with subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.9))
            os.killpg(run.pid, signal.SIGKILL)
            finished += run.stdout.read() == "done\n"
        assert run.returncode in (0, -signal.SIGKILL), "it failed before it was killed"
        after, disk = place.rows(), place.on_disk()
        for uri, id_ in before.items():
            if disk.get(uri) == id_:
                assert after.get(uri) == id_, f"lost in run {turn}"
        before = after
    assert 0 < finished < KILLS * 0.8, "most runs were to be killed, and not before they had begun"
    place.index()
    assert place.rows() == place.on_disk()
    assert verify(IndexStore.open(place.index_folder)).orphans == 0


class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal 9."""


def kill_after(count: int) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done >= count:
            raise Killed

    return tell


def first_run(place: Place, model: FakeModel, **options: object) -> IndexReport:
    """With a codec that waits for 256 pictures before it makes an index."""
    return index_images([place.photos], place.index_folder, model, batch_size=1, commit_seconds=0, **options)  # type: ignore[arg-type]


def test_killed_before_there_is_an_index(place: Place) -> None:
    other_folder = place.photos.parent / "other"
    other_folder.mkdir()
    undisturbed = Place(other_folder)
    for i in range(12):
        undisturbed.draw(f"{i}.png")
    first_run(undisturbed, FakeModel())
    for count in (4, 9):
        with pytest.raises(Killed):
            first_run(place, FakeModel(), progress=kill_after(count))
        assert not IndexStore.exists(place.index_folder)
    place.draw("0.png")  # changed meanwhile
    model = FakeModel()
    report = first_run(place, model)
    assert (report.added, model.compressed) == (12, 4)
    store = IndexStore.open(place.index_folder)
    assert verify(store).problems == []
    known = store.known_files()
    assert dict(zip(known.uri.to_pylist(), known.id.to_pylist(), strict=True)) == place.on_disk()
    assert not (place.index_folder / "first.safetensors").exists()
    same = [id_ for id_ in known.id.to_pylist() if id_ in undisturbed.colour_of]
    assert len(same) == 11
    embedding = {store.embeddings().row(i)[1]: store.embeddings().embedding[i] for i in range(12)}
    other = IndexStore.open(undisturbed.index_folder).embeddings()
    for i in range(12):
        if (id_ := other.row(i)[1]) in same:
            np.testing.assert_array_equal(embedding[id_], other.embedding[i])


def test_what_was_computed_is_not_forgotten_before_it_is_in_the_index(place: Place) -> None:
    """Neither by a second run that is killed early, nor by one that Ctrl-C ends early."""
    with pytest.raises(Killed):
        first_run(place, FakeModel(), progress=kill_after(9))
    # a second killed run that wrote the file again after one new picture
    place.draw("00.png")  # computed before most of the others are taken up again
    with pytest.raises(Killed):
        first_run(place, FakeModel(), workers=1, progress=kill_after(1))

    def interrupt(progress: Progress) -> None:
        if progress.phase == "compressing" and progress.done >= 2:
            raise KeyboardInterrupt

    assert first_run(place, FakeModel(), workers=1, progress=interrupt).interrupted
    model = FakeModel()
    first_run(place, model)
    assert model.compressed <= 4
    assert verify(IndexStore.open(place.index_folder)).problems == []
    assert not (place.index_folder / "first.safetensors").exists()


@pytest.mark.parametrize("what", ["other model", "truncated", "not finite", "empty", "too large"])
def test_first_pictures_of_no_use(place: Place, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    with pytest.raises(Killed):
        first_run(place, FakeModel(), progress=kill_after(6))
    path = place.index_folder / "first.safetensors"
    model = FakeModel()
    if what == "other model":
        model.fingerprint = "fake-2"
    elif what == "truncated":
        os.truncate(path, path.stat().st_size - 8)
    elif what == "not finite":
        content = load(path.read_bytes())
        content["tokens"][2, 1, 0] = np.nan
        path.write_bytes(save(content))
    elif what == "empty":
        path.write_bytes(b"")
    else:
        monkeypatch.setattr(first_pictures, "LARGEST", 100)
    first_run(place, model)
    assert model.compressed == 12
    assert verify(IndexStore.open(place.index_folder)).problems == []
    assert not path.exists()


def test_no_room_for_the_first_pictures(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(places, "write_atomically", no_space)
    with pytest.raises(IndexWriteError, match="No space left"):
        first_run(place, FakeModel())
    monkeypatch.undo()
    assert first_run(place, FakeModel()).added == 12


# ---- disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("seam", ["_insert_new", "_upsert", "_delete", "_compact", "_drop_old_versions"])
def test_the_disk_fails_in_the_middle(place: Place, monkeypatch: pytest.MonkeyPatch, seam: str, number: int) -> None:
    """Full, or its permission is gone, from the second commit of a run on."""
    place.index()
    monkeypatch.setattr(store_module, "SMALL_FRAGMENTS", 0)
    (place.photos / "0.png").unlink()
    for i in range(5, 15):
        place.draw(f"{i}.png")
    real, calls = getattr(store_module, seam), []

    def fail(*args: object, **options: object) -> None:
        calls.append(seam)
        if len(calls) > (seam in ("_insert_new", "_upsert")):
            raise OSError(number, os.strerror(number))
        real(*args, **options)

    monkeypatch.setattr(store_module, seam, fail)
    with pytest.raises(IndexWriteError, match=os.strerror(number)):
        place.index(batch_size=2, commit_seconds=0)
    assert calls
    monkeypatch.setattr(store_module, seam, real)
    rows = place.rows()
    assert set(rows.values()) <= set(place.colour_of)
    assert {str(place.photos / f"{i}.png") for i in range(1, 5)} <= set(rows)
    place.index()
    assert place.rows() == place.on_disk()


def test_the_folder_becomes_unwritable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every file may be written, so it is the folder that goes, as with a disk that is unplugged."""
    place.index()
    place.draw("new.png")
    away = place.index_folder.with_name("away")

    def unplug(progress: Progress) -> None:
        if progress.phase == "compressing" and place.index_folder.exists():
            place.index_folder.rename(away)
            place.index_folder.write_text("a file in the way")

    with pytest.raises(IndexWriteError, match="could not be written"):
        place.index(progress=unplug)
    place.index_folder.unlink()
    away.rename(place.index_folder)
    assert len(place.rows()) == 12
    place.index()
    assert place.rows() == place.on_disk()


# ---- sources


def when(phase: str, do: Callable[[], None]) -> Callable[[Progress], None]:
    """``do`` once, at the start of a phase."""
    done = []

    def tell(progress: Progress) -> None:
        if progress.phase == phase and not done:
            done.append(phase)
            do()

    return tell


def test_a_file_vanishes_before_it_is_read(place: Place) -> None:
    place.index()
    place.draw("new.png")
    place.draw("5.png")
    report = place.index(progress=when("checking", lambda: [(place.photos / n).unlink() for n in ("new.png", "5.png")]))
    assert sorted(Path(file.uri).name for file in report.skipped) == ["5.png", "new.png"]
    assert verify(IndexStore.open(place.index_folder)).whole
    place.index()
    assert place.rows() == place.on_disk()


def test_a_file_changes_before_it_is_read(place: Place) -> None:
    place.index()
    place.draw("5.png")
    place.index(progress=when("checking", lambda: place.draw("5.png")))
    assert place.rows()[str(place.photos / "5.png")] in place.colour_of
    place.index()
    assert place.rows() == place.on_disk()


def test_a_file_is_half_written_when_it_is_read(place: Place) -> None:
    place.index()
    path = place.photos / "5.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    report = place.index()
    assert [Path(file.uri).name for file in report.skipped] == ["5.png"]
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    place.index()
    assert place.rows() == place.on_disk()


# ---- processes and clocks


def test_two_runs_at_once(place: Place) -> None:
    """One of them is told so at once, and nothing is done twice."""
    results: list[object] = []
    inside, over = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        if progress.phase == "compressing":
            inside.set()
            assert over.wait(60)

    first = threading.Thread(target=lambda: results.append(place.index(progress=hold)))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(IndexBusyError, match="Another process"):
            place.index()
    finally:
        over.set()
        first.join()
    [report] = results
    assert isinstance(report, IndexReport)
    assert report.added == 12
    assert place.rows() == place.on_disk()


def test_another_run_makes_the_index_first(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the start of a run and its turn to write: what the other wrote stays."""
    others = write(tmp_path / "others", {"other.png": plain((1, 2, 3))})
    real = indexing.writing

    def late(path: object) -> AbstractContextManager[None]:
        monkeypatch.undo()
        index_images([others], place.index_folder, FakeModel(), codec="float16")
        return real(path)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "writing", late)
    assert place.index().added == 12
    assert set(IndexStore.open(place.index_folder).known_files().uri.to_pylist()) == {
        *place.on_disk(),
        str(others / "other.png"),
    }


@pytest.mark.parametrize("years", [-10, 10])
def test_the_clock_is_wrong(place: Place, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    """It went back between two runs, or ran ahead: files are told apart by size and time, not by which is later."""
    place.index()
    shift = years * 365 * 86_400
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    monkeypatch.setattr(time, "time_ns", lambda: int((now() + shift) * 1e9))
    place.draw("5.png")
    place.draw("new.png")
    for name in ("5.png", "new.png", "6.png"):
        os.utime(place.photos / name, (now() + shift, now() + shift))
    report = place.index()
    assert (report.added, report.updated, report.unchanged) == (1, 1, 11)
    assert place.rows() == place.on_disk()
    monkeypatch.undo()
    assert place.index().unchanged == 13
    IndexStore.open(place.index_folder).optimize()
    assert place.rows() == place.on_disk()
