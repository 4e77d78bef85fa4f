"""Small copies of pictures, inside the page that shows them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.errors import ImageError


def thumbnail(path: str | Path, *, side: int = 320, quality: int = 80) -> str | None:
    """A data URI (JPEG), or None where the picture is gone or broken.

    Args:
        path: a file, or ``ARCHIVE!/MEMBER``.
        side: the longest side in pixels; the default is sharp at the width of a card on a screen of twice the density.
    """
    try:
        image = decode_image(read_file(path), max_side=side).image
    except ImageError:
        return None
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
