"""From the bytes of an image file to pixels, or a reason why not.

Notable choices:

- Bytes are not trusted: the size is checked from the header before memory is taken for the pixels, only raster formats
  that Pillow decodes by itself are tried (HEIC and JPEG XL by plug-ins, see :mod:`fwd2bot_index.formats`), and whatever
  goes wrong inside a decoder becomes an :class:`ImageError`.
- A truncated file is refused: half a picture is not the picture.
- 16-bit pictures are scaled to 8 bits, not clipped; transparency becomes white; the first frame stands for an
  animation; the EXIF orientation is applied.
- JPEG is decoded at a half, a quarter or an eighth where that still covers ``max_side``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError, features

from fwd2bot_index.archives import read_member, split_uri
from fwd2bot_index.errors import ImageError, InputError, ObjectStoreError
from fwd2bot_index.formats import NO_AVIF, jxl_size, plugin_format
from fwd2bot_index.object_stores import is_uri, read_object

MAX_SIDE: Final = 2048
"""To which pictures are reduced for a model that has no opinion: two million pixels at most."""
MAX_PIXELS: Final = 200_000_000
MAX_FILE_BYTES: Final = 2**30
"""More than any picture within ``MAX_PIXELS`` takes."""

FORMATS: Final = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")

_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_limit = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A picture that can be compressed."""

    image: Image.Image
    """RGB, upright, of no more pixels than the ``max_side`` asked for allows."""
    width: int
    """Of the original, upright, in pixels."""
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of ``image``."""
        return self.image.size


def content_id(data: bytes) -> str:
    """128 bits of BLAKE2b in hex: the same for the same bytes, wherever they lie."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file, of one in an archive (``ARCHIVE!/MEMBER``, see :mod:`fwd2bot_index.archives`), or of
    an object (``s3://BUCKET/KEY``, see :mod:`fwd2bot_index.object_stores`); a pipe, a socket or a device is never
    waited for.

    Raises:
        ImageError: it cannot be read, is no regular file, or is larger than ``MAX_FILE_BYTES``.
    """
    if is_uri(path):
        return _read_object(os.fspath(path))
    try:
        with open(path, "rb", opener=_open_without_waiting) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("it is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(f"it has {status.st_size} bytes; the limit is {MAX_FILE_BYTES}")
            return f.read(MAX_FILE_BYTES)
    except OSError as e:
        if place := split_uri(os.fspath(path)):
            return read_member(*place, max_bytes=MAX_FILE_BYTES)
        raise ImageError(f"it cannot be read: {e.strerror or e}") from e
    except ValueError as e:  # a NUL
        raise ImageError("its name is no path") from e


def _read_object(uri: str) -> bytes:
    try:
        return read_object(uri, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError as e:
        raise ImageError("it cannot be read: there is no such object") from e
    except (ObjectStoreError, InputError, ValueError) as e:
        reason = f"it cannot be read: {str(e).rstrip('.')}"
        raise ImageError(reason, unreachable=isinstance(e, ObjectStoreError)) from e


def decode_image(data: bytes, *, max_side: int | None = None, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """The picture in these bytes, reduced so that its longest side is at most ``max_side`` and its shorter one at most
    half of that (None: as it is).

    What looks at a picture sees a square, or as many pixels as one: a square of half the side is as good as a strip of
    the whole, and takes a fraction of the time to decode and to preprocess.

    Raises:
        ImageError: there is none that could be used; its reason reads on from the name of the file.
    """
    if not data:
        raise ImageError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities; here a picture is used, or refused with a reason
        try:
            with _open(data, max_pixels) as image:
                return _decode(image, max_side, max_pixels)
        except ImageError:
            raise
        except UnidentifiedImageError as e:
            raise ImageError(_unidentified(data)) from e
        except MemoryError as e:
            raise ImageError("there is not enough memory to decode it") from e
        except Exception as e:  # decoders raise nearly everything: SyntaxError, struct.error, IndexError, ...
            raise ImageError(f"it cannot be decoded: {str(e) or type(e).__name__}") from e


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header. Pillow's own limit on pixels lies below ours, and is a global."""
    formats: tuple[str, ...] = FORMATS
    if (kind := plugin_format(data)) is not None:
        if not kind.is_installed():
            raise ImageError(kind.missing)
        if kind.pillow_name == "JXL":  # which is decoded while it is opened
            size = jxl_size(data)
            if size is None:
                raise ImageError(_unidentified(data))
            _check_pixels(*size, max_pixels)
        kind.register()
        formats = (kind.pillow_name,)
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"it has {width} x {height} pixels; the limit is {max_pixels / 1e6:g} million, to keep memory within bounds"
        )


def _decode(image: Image.Image, max_side: int | None, max_pixels: int) -> DecodedImage:
    width, height = image.size
    _check_pixels(width, height, max_pixels)
    if max_side is not None:
        image.draft(None, _reduced(width, height, max_side))
    drafted = image.size
    image.load()
    if image.size != drafted:  # TIFF turns itself upright while loading
        width, height = image.size
    turn = _TURNS.get(_orientation(image))
    picture = as_decoded(image, max_side=max_side, size=(width, height))
    if turn is not None:
        picture = picture.transpose(turn)
        if turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]):
            width, height = height, width
    return DecodedImage(image=picture, width=width, height=height)


def as_decoded(image: Image.Image, *, max_side: int | None, size: tuple[int, int] | None = None) -> Image.Image:
    """RGB as of a file: transparency on white, deep greys scaled, reduced where ``max_side`` says so.

    Args:
        size: width and height that the reduction goes by, where a decoder has reduced the picture already.
    """
    picture = _to_rgb(image)
    if max_side is not None and (reduced := _reduced(*(size or image.size), max_side)) != picture.size:
        picture = picture.resize(reduced, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return picture


def _reduced(width: int, height: int, max_side: int) -> tuple[int, int]:
    share = min(1.0, max_side / max(width, height), max_side / 2 / min(width, height))
    return max(1, round(share * width)), max(1, round(share * height))


def _orientation(image: Image.Image) -> int:
    """1 (upright) also where the EXIF data is damaged: that is no reason to leave a picture out."""
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # its own orientation counts, and was applied; a JPEG in it is as it was before
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits. 32-bit and floating-point pictures have no fixed range: their darkest becomes black
    and their lightest white."""
    import numpy as np  # for these few: it is most of the time that a decoder process takes to start

    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _unidentified(data: bytes) -> str:
    if data[4:12] == b"ftypavif" and not features.check("avif"):
        return NO_AVIF
    return "it is not an image that can be read"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
