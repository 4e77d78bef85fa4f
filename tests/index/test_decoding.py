"""Every kind of file that a folder of pictures may hold becomes the right pixels, or a reason."""

from __future__ import annotations

import os
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pictures import BLUE, RED, encoded, left_red_right_blue, noise, plain
from PIL import Image, ImageFile

from fwd2bot_index.decoding import content_id, decode_image, read_file
from fwd2bot_index.errors import ImageError

WHITE = (255, 255, 255)


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    image = decode_image(data).image
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# ---- what is decoded


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "PPM", "TIFF", "QOI", "ICO"])
def test_lossless_formats_come_back_as_they_were(format: str) -> None:
    decoded = decode_image(encoded(left_red_right_blue((64, 64)), format))
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(left_red_right_blue((64, 64))))
    assert (decoded.width, decoded.height) == (64, 64)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_come_back_about_as_they_were(format: str) -> None:
    decoded = decode_image(encoded(left_red_right_blue(), format))
    difference = np.asarray(decoded.image, np.int16) - np.asarray(left_red_right_blue(), np.int16)
    assert np.abs(difference).mean() < 8


def test_one_pixel_is_a_picture() -> None:
    decoded = decode_image(plain(RED, (1, 1)), max_side=64)
    assert (decoded.image.size, decoded.width, decoded.height) == ((1, 1), 1, 1)
    assert decoded.image.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("dtype", "format"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")]
)
def test_deep_pictures_are_scaled_not_clipped(dtype: type, format: str) -> None:
    values = np.array([[0, 16384, 32768, 65535]], dtype)
    grey = np.asarray(decode_image(encoded(Image.fromarray(values), format)).image)[0, :, 0]
    np.testing.assert_allclose(grey, [0, 64, 128, 255], atol=1)


def test_a_dark_16_bit_picture_stays_dark() -> None:
    values = np.full((4, 4), 2570, np.uint16)  # 10 of 255
    assert pixel(encoded(Image.fromarray(values), "PNG")) == (10, 10, 10)


def test_floats_that_are_not_numbers_do_no_harm() -> None:
    values = np.array([[np.nan, 0.0, np.inf, 1.0]], np.float32)
    grey = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")).image)[0, :, 0]
    assert grey.tolist() == [0, 0, 0, 255]


def test_cmyk() -> None:
    r, g, b = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert r > 240
    assert max(g, b) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    if mode == "P":
        data = encoded(image.convert("P"), "PNG", transparency=image.convert("P").getpixel((0, 0)))
    elif mode == "PA":
        data = encoded(image, "GIF")
    else:
        data = encoded(image.convert(mode), "PNG")
    assert pixel(data) == WHITE
    assert pixel(data, 6, 6) == (0, 0, 0)


def test_half_transparency_is_half_white() -> None:
    r, g, b = pixel(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"))
    assert (r, abs(g - 127) <= 1, abs(b - 127) <= 1) == (255, True, True)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours(mode: str) -> None:
    assert pixel(encoded(Image.new("RGB", (8, 8), WHITE).convert(mode), "PNG")) == WHITE


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    assert pixel(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)) == RED


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side", [None, 32])
def test_orientation_is_applied(format: str, orientation: int, max_side: int | None) -> None:
    upright = Image.new("RGB", (96, 64), WHITE)
    upright.paste(RED, (0, 0, 48, 32))
    upright.paste(BLUE, (48, 32, 96, 64))
    # how a camera held in that way stores the scene: the inverse of what a viewer has to do
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, format, exif=exif), max_side=max_side)
    assert (decoded.width, decoded.height) == (96, 64)
    assert decoded.image.size == ((96, 64) if max_side is None else (24, 16))
    w, h = decoded.image.size
    for x, y, colour in ((w // 8, h // 8, RED), (w * 7 // 8, h * 7 // 8, BLUE), (w * 7 // 8, h // 8, WHITE)):
        found = decoded.image.getpixel((x, y))
        np.testing.assert_allclose(found, colour, atol=12)


def test_damaged_exif_is_no_reason_to_leave_a_picture_out() -> None:
    assert pixel(encoded(Image.new("RGB", (8, 8), WHITE), "JPEG", exif=b"Exif\0\0II*\0garbage!")) == WHITE


# ---- how large


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((400, 300), 100, (67, 50)),
        ((300, 400), 64, (32, 43)),
        ((400, 400), 100, (50, 50)),
        ((400, 100), 100, (100, 25)),
        ((40, 30), 100, (40, 30)),
        ((3000, 2), 10, (10, 1)),
    ],
)
def test_both_sides_are_bounded(format: str, size: tuple[int, int], max_side: int, expected: tuple[int, int]) -> None:
    decoded = decode_image(plain(RED, size, format), max_side=max_side)
    assert decoded.image.size == expected
    assert (decoded.width, decoded.height) == size


def test_reducing_averages() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = np.asarray(decode_image(encoded(Image.fromarray(stripes), "PNG"), max_side=32).image)
    np.testing.assert_allclose(reduced[4:-4, 4:-4], 128, atol=4)


def test_pixels_are_counted_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    small = plain(RED, (100, 11))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="100000 x 100000 pixels; the limit is 200 million"):
        decode_image(png_header(100_000, 100_000))
    with pytest.raises(ImageError, match=r"limit is 0\.001 million"):
        decode_image(small, max_pixels=1000)


def test_the_limit_is_ours_and_pillows_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    # 196 million pixels: an error to Pillow; to us, a picture that breaks off
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(png_header(14_000, 14_000), max_side=64)
    assert before == Image.MAX_IMAGE_PIXELS


# ---- what is refused


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.9])
def test_half_a_picture_is_not_the_picture(format: str, part: float) -> None:
    data = encoded(noise(), format)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * part)])


def test_a_truncated_progressive_jpeg() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[: len(data) // 2], max_side=16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"hello, world\n" * 100, "it is not an image that can be read"),
        (b"\0" * 4096, "it is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "it is not an image that can be read"),
    ],
)
def test_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{re.escape(reason)}$"):
        decode_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_flipped_bytes_give_a_picture_or_a_reason(format: str) -> None:
    original = encoded(noise(), format)
    rng = np.random.default_rng(0)
    for _ in range(30):
        data = bytearray(original)
        for place in rng.integers(0, len(data), 5):
            data[place] = rng.integers(0, 256)
        with suppress(ImageError):
            assert decode_image(bytes(data), max_side=32, max_pixels=10_000_000).image.mode == "RGB"


# ---- reading


def test_the_same_bytes_have_the_same_id() -> None:
    assert content_id(b"a") == content_id(b"a") != content_id(b"b")
    assert re.fullmatch("[0-9a-f]{32}", content_id(b""))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_file(tmp_path / "pipe.jpg")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_file(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match=r"directory|regular file"):
        read_file(tmp_path)


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.jpg", "wb") as f:
        f.truncate(2**40)  # sparse
    with pytest.raises(ImageError, match="limit"):
        read_file(tmp_path / "a.jpg")
