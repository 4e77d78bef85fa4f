"""HEIC and JPEG XL: what is said without their plug-ins, and what is read with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from archives_made import make_zip
from fakes import FakeModel
from pictures import RED, encoded, left_red_right_blue, plain, write
from PIL import Image, features

from fwd2bot_index import formats
from fwd2bot_index.decoding import decode_image
from fwd2bot_index.errors import ImageError
from fwd2bot_index.formats import NO_AVIF, jxl_size, mended, plugin_format
from fwd2bot_index.indexing import index_images
from fwd2bot_index.types import IndexReport

HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
HEIC = HEAD + plain(RED)
"""As the plug-in of these tests has it: a head, and then a PNG."""
NO_HEIC = "HEIC needs an extra package: pip install 'fwd2bot[formats]', and index again"
NO_JXL = "JPEG XL needs an extra package: pip install 'fwd2bot[formats]', and index again"
STREAM = b"\xff\x0a" + ((49 << 3 | 1) << 6 | 3 << 1 | 1).to_bytes(10, "little")
"""JPEG XL: small (1 bit), a height of 8 x (3 + 1) (5), a ratio of 1:1 (3), and more."""

PLUGIN = """
from io import BytesIO
from PIL import Image, ImageFile

class Fake(ImageFile.ImageFile):
    format = "HEIF"

    def _open(self):
        self._inner = Image.open(BytesIO(self.fp.read()[24:]))
        self._size, self._mode = self._inner.size, self._inner.mode

    def load(self):
        if self._im is None:
            self.im = self._inner.convert("RGB").im
        return super().load()

def register_heif_opener(*, thumbnails, **options):
    assert not thumbnails
    Image.register_open("HEIF", Fake, lambda prefix: prefix[4:8] == b"ftyp")
"""


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)


@pytest.fixture
def fake_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Installs it."""
    (tmp_path / "site").mkdir()

    def install() -> None:
        write(tmp_path / "site", {"pillow_heif.py": PLUGIN.encode()})
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
        monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
        monkeypatch.setattr(Image, "ID", list(Image.ID))
        monkeypatch.setattr(formats, "find_spec", lambda name: find_spec(name) if name == "pillow_heif" else None)

    yield install
    sys.modules.pop("pillow_heif", None)


# ---- without plug-ins


@pytest.mark.parametrize(
    ("data", "reason"), [(HEIC, NO_HEIC), (STREAM, NO_JXL), (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), NO_JXL)]
)
@pytest.mark.usefixtures("without_plugins")
def test_the_reason_names_the_extra(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode_image(data)
    assert raised.value.reason == reason
    assert reason not in mended()


def test_avif_is_not_taken_for_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin_format(encoded(left_red_right_blue(), "AVIF")) is None
    assert plugin_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifheic") is None
    assert plugin_format(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic") is not None
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match="this build of Pillow does not read AVIF"):
        decode_image(b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf")


# ---- with a plug-in


def test_a_picture_is_read_by_a_plugin(fake_plugin: Callable[[], None]) -> None:
    fake_plugin()
    decoded = decode_image(HEIC, max_side=16)
    assert (decoded.width, decoded.height, decoded.image.size) == (32, 24, (11, 8))
    assert decoded.image.getpixel((0, 0)) == RED
    with pytest.raises(ImageError, match="32 x 24 pixels; the limit"):
        decode_image(HEIC, max_pixels=100)


@pytest.mark.parametrize("archived", [False, True])
def test_what_was_skipped_is_taken_up_when_the_plugin_is_there(
    tmp_path: Path, fake_plugin: Callable[[], None], monkeypatch: pytest.MonkeyPatch, archived: bool
) -> None:
    files = {"a.png": plain(RED, (5, 5)), "b.heic": HEIC, "c.jxl": STREAM}
    write(tmp_path / "photos", {} if archived else files)
    if archived:
        (tmp_path / "photos").mkdir()
        make_zip(tmp_path / "photos" / "x.zip", files)
    if find_spec("pillow_heif") or find_spec("pillow_jxl"):
        pytest.skip("the worker processes would find the real plug-ins")
    monkeypatch.setattr(formats, "find_spec", lambda name: None)

    def run() -> IndexReport:
        return index_images([tmp_path / "photos"], tmp_path / "index", FakeModel(), workers=1)

    assert [file.reason for file in run().skipped] == [NO_HEIC, NO_JXL]
    again = run()
    assert (again.updated, len(again.skipped)) == (0, 2)
    fake_plugin()
    report = run()
    assert (report.updated, report.unchanged) == (1, 1)
    assert [file.reason for file in report.skipped] == [NO_JXL]
    assert run().unchanged == 2


# ---- JPEG XL


@pytest.mark.parametrize(
    ("bits", "size"),
    [
        ([(1, 1), (3, 5), (0, 3), (7, 5)], (64, 32)),
        ([(0, 1), (0, 2), (89, 9), (5, 3)], (160, 90)),
        ([(0, 1), (1, 2), (4999, 13), (0, 3), (2, 2), (69999, 18)], (70000, 5000)),
        ([(0, 1), (3, 2), (2**30 - 1, 30), (1, 3)], (2**30, 2**30)),
    ],
)
def test_the_size_of_a_stream(bits: list[tuple[int, int]], size: tuple[int, int]) -> None:
    number = at = 0
    for value, count in bits:
        number, at = number | value << at, at + count
    stream = b"\xff\x0a" + number.to_bytes(60, "little")
    assert jxl_size(stream) == size
    boxes = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    assert jxl_size(boxes + b"\0\0\0\0jxlc" + stream) == size
    assert jxl_size(boxes + b"\0\0\0\x0cjxll\x0a\0\0\0" + b"\0\0\1\0jxlp\0\0\0\0" + stream) == size


@pytest.mark.parametrize(
    "rest", [b"", b"\0\0\0\0free", b"\0\0\0\x01free", b"\0\0\0\x01free" + bytes(8), b"\0\0\0\x08jxlc"]
)
def test_no_stream(rest: bytes) -> None:
    assert jxl_size(b"\0\0\0\x0cJXL \r\n\x87\n" + rest) is None


def test_a_stream_that_is_too_large_is_not_given_to_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: True)
    monkeypatch.setattr(formats.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    huge = b"\xff\x0a" + ((1 << 33) | (2**30 - 1) << 3 | 3 << 1).to_bytes(10, "little")
    with pytest.raises(ImageError, match="1073741824 x 1073741824 pixels; the limit"):
        decode_image(huge)
    with pytest.raises(ImageError, match="not an image that can be read"):
        decode_image(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(8))


# ---- the plug-ins themselves, where they are installed


@pytest.mark.parametrize(("module", "format"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_real_pictures(module: str, format: str) -> None:
    plugin = pytest.importorskip(module)
    if format == "HEIF":
        plugin.register_heif_opener()
    data = encoded(left_red_right_blue((64, 32)), format)
    decoded = decode_image(data)
    assert (decoded.width, decoded.height) == (64, 32)
    difference = np.asarray(decoded.image, np.int16) - np.asarray(left_red_right_blue((64, 32)), np.int16)
    assert np.abs(difference).mean() < 8
    for cut in (len(data) // 2, len(data) - 3, 40):
        with pytest.raises(ImageError):
            decode_image(data[:cut])


def test_a_jpeg_in_jpeg_xl_is_turned_upright_once(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(left_red_right_blue((64, 32)), "JPEG", exif=exif))
    with Image.open(tmp_path / "a.jpg") as image:
        inside = encoded(image, "JXL", lossless_jpeg=True)
    assert decode_image(inside).image.size == (32, 64)
    own = encoded(left_red_right_blue((64, 32)), "JXL", exif=exif.tobytes())
    assert decode_image(own).image.size == (64, 32)


def test_avif_is_tried_again_once_pillow_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(formats.features, "check", lambda name, there=there: there)
        assert (NO_AVIF in mended()) == there
