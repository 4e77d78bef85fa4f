"""Small copies of pictures, for pages that show them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.errors import ImageError


def small_jpeg(data: bytes, *, side: int, quality: int = 80) -> bytes:
    """A JPEG of the picture in the bytes of an image file, its longest side at most ``side`` pixels.

    Raises:
        ImageError: there is no picture in them that could be used.
    """
    file = BytesIO()
    image = decode_image(data, max_side=2 * side).image  # a square one then has the whole side
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def thumbnail(path: str | Path, *, side: int = 320, quality: int = 80) -> str | None:
    """A data URI (JPEG), or None where the picture is gone or broken.

    Args:
        path: a file, or ``ARCHIVE!/MEMBER``.
        side: the longest side in pixels; the default is sharp at the width of a card on a screen of twice the density.
    """
    try:
        jpeg = small_jpeg(read_file(path), side=side, quality=quality)
    except ImageError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
