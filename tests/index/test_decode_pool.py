"""Decoders in other processes: the right pixels, and no file that stops or hangs the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, left_red_right_blue, noise, plain, write
from PIL import Image

from fwd2bot_index import decode_pool
from fwd2bot_index.decode_pool import Decoded, DecodePool, Outcome, Undecodable
from fwd2bot_index.decoding import content_id, decode_image
from fwd2bot_index.errors import Fwd2BotError

# A decoder in which some names kill the process, or hold it for ever, between reading the file and decoding it.
DANGEROUS = """
import os, sys, time
from fwd2bot_index import decode_worker
decode = decode_worker.decode_image
def dangerous(data, **options):
    once = os.environ.get("KILLED_ONCE")
    if once and not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), 9)
    if data == b"killer": os.kill(os.getpid(), 9)
    if data == b"holder": time.sleep(1000)
    return decode(data, **options)
decode_worker.decode_image = dangerous
decode_worker.main()
"""


@pytest.fixture
def dangerous_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "decoder.py"
    script.write_text(DANGEROUS)
    start = subprocess.Popen

    def start_dangerous(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return start([command[0], str(script)], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(decode_pool.subprocess, "Popen", start_dangerous)


def outcomes(folder: Path, *, workers: int = 1, max_side: int | None = None, seconds: float = 60) -> dict[str, Outcome]:
    uris = sorted(str(path) for path in folder.iterdir())
    with DecodePool(workers, ahead=4, seconds_per_file=seconds) as pool:
        found = {Path(outcome.uri).name: outcome for outcome in pool.decode(uris, max_side=max_side)}
    assert sorted(found) == sorted(Path(uri).name for uri in uris)
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_are_those_of_decoding_here(tmp_path: Path, workers: int) -> None:
    files = {f"{i}.png": encoded(noise((40 + i, 30), seed=i), "PNG") for i in range(12)}
    found = outcomes(write(tmp_path, files), workers=workers, max_side=32)
    for name, data in files.items():
        outcome, expected = found[name], decode_image(data, max_side=32)
        assert isinstance(outcome, Decoded)
        assert outcome.id == content_id(data)
        assert (outcome.picture.width, outcome.picture.height) == (expected.width, expected.height)
        np.testing.assert_array_equal(np.asarray(outcome.picture.image), np.asarray(expected.image))


def test_reasons_come_back_with_the_id_where_the_file_was_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": b"", "b.png": encoded(left_red_right_blue(), "PNG")[:60]})
    (tmp_path / "c.png").symlink_to(tmp_path / "gone")
    found = outcomes(tmp_path)
    assert found["a.png"] == Undecodable(uri=str(tmp_path / "a.png"), id=content_id(b""), reason="it is empty")
    assert isinstance(found["b.png"], Undecodable)
    assert found["b.png"].id is not None
    assert found["c.png"].id is None


@pytest.mark.usefixtures("dangerous_decoder")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_kills_or_holds_its_decoder(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "photos"
    write(folder, {"a.png": plain((1, 2, 3)), "b.png": b"killer", "c.png": b"holder", "d.png": plain((4, 5, 6))})
    started = time.perf_counter()
    found = outcomes(folder, workers=workers, seconds=3)
    assert time.perf_counter() - started < 100
    assert isinstance(found["a.png"], Decoded)
    assert isinstance(found["d.png"], Decoded)
    assert found["b.png"] == Undecodable(
        uri=str(folder / "b.png"), id=content_id(b"killer"), reason="it killed the decoder (-9)"
    )
    assert found["c.png"] == Undecodable(
        uri=str(folder / "c.png"), id=content_id(b"holder"), reason="it took more than 3 s to decode"
    )


@pytest.mark.usefixtures("dangerous_decoder")
def test_a_file_whose_decoder_was_ended_by_others_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"
    monkeypatch.setenv("KILLED_ONCE", str(killed))
    folder = write(tmp_path / "photos", {"a.png": plain((1, 2, 3)), "b.png": plain((4, 5, 6))})
    found = outcomes(folder)
    assert killed.exists()
    assert all(isinstance(outcome, Decoded) for outcome in found.values())


@pytest.mark.usefixtures("dangerous_decoder")
def test_closing_does_not_wait_for_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", {"a.png": plain((1, 2, 3)), "b.png": b"holder"})
    started = time.perf_counter()
    with DecodePool(1, ahead=4) as pool:
        for outcome in pool.decode([str(folder / "a.png"), str(folder / "b.png")], max_side=None):
            assert outcome.uri.endswith("a.png")
            break
    assert time.perf_counter() - started < 100


def test_no_more_than_asked_for_is_decoded_ahead(tmp_path: Path) -> None:
    write(tmp_path, {f"{i}.png": plain((i, 0, 0)) for i in range(20)})
    taken: list[str] = []

    def uris() -> list[str]:
        return sorted(str(path) for path in tmp_path.iterdir())

    def watched() -> object:
        for uri in uris():
            taken.append(uri)
            yield uri

    with DecodePool(1, ahead=3) as pool:
        decoded = pool.decode(watched(), max_side=None)  # type: ignore[arg-type]
        next(decoded)
        while len(taken) < 4:
            time.sleep(0.01)
        time.sleep(0.3)  # long enough for more, if more were taken
        assert len(taken) == 4
        assert sum(1 for _ in decoded) == 19


def test_a_decoder_that_cannot_start_is_an_error_not_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with DecodePool(1, ahead=1) as pool, pytest.raises(Fwd2BotError, match="could not be started"):
        list(pool.decode(["a.png"], max_side=None))


def test_the_decoder_imports_neither_torch_nor_transformers() -> None:
    code = "import json, sys, fwd2bot_index.decode_worker; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True, timeout=300)
    modules = json.loads(done.stdout)
    assert "PIL.Image" in modules
    assert not {"torch", "transformers", "peft", "lance", "pyarrow", "faiss", "numpy"} & set(modules)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": plain((1, 2, 3))})
    with DecodePool(2, ahead=2) as pool:
        list(pool.decode([str(tmp_path / "a.png")], max_side=None))
        pids = [worker._process.pid for worker in pool._workers]
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_picture_from_the_pool_can_be_changed(tmp_path: Path) -> None:
    """Its pixels lie in a buffer of bytes; a preprocessor that draws on it must not fail."""
    outcome = outcomes(write(tmp_path, {"a.png": plain((1, 2, 3))}))["a.png"]
    assert isinstance(outcome, Decoded)
    image = outcome.picture.image
    image.putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (9, 9, 9)
    assert isinstance(image, Image.Image)
