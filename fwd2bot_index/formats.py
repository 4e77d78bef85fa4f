"""HEIC and JPEG XL, which Pillow reads by plug-ins only: ``pip install 'fwd2bot[formats]'``.

Notable choices:

- A plug-in is imported when the first such file is met: it costs a decoder process nothing otherwise.
- The one for JPEG XL decodes while it opens, so the size is read here, before it is asked.
- Pictures skipped for want of a plug-in carry a reason known here, so that a later run takes them up (:func:`mended`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from PIL import features

NO_AVIF: Final = "this build of Pillow does not read AVIF; pip install --upgrade pillow"
"""Why such a picture is skipped where Pillow was built without it."""
_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevm", b"hevs", b"hevx"})
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_JXL_STREAM: Final = b"\xff\x0a"
_JXL_BOXES: Final = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_SIDE_BITS: Final = (9, 13, 18, 30)
_JXL_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True, kw_only=True)
class PluginFormat:
    """A format that Pillow reads with the help of another package."""

    name: str
    """What people call it."""
    pillow_name: str
    module: str
    register: Callable[[], None]
    """Makes Pillow know it; may be called again."""

    @property
    def missing(self) -> str:
        """Why a picture is skipped without the plug-in."""
        return f"{self.name} needs an extra package: pip install 'fwd2bot[formats]', and index again"

    def is_installed(self) -> bool:
        return find_spec(self.module) is not None


def plugin_format(data: bytes) -> PluginFormat | None:
    """The format of these bytes, where it is one that needs a plug-in."""
    if data.startswith((_JXL_STREAM, _JXL_BOXES)):
        return _JXL
    if data[4:8] == b"ftyp":
        length = min(int.from_bytes(data[:4], "big"), 1024)
        brands = {data[i : i + 4] for i in (8, *range(16, length, 4))}
        if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS:
            return _HEIC
    return None


def mended() -> list[str]:
    """The reasons for which pictures were skipped that are none any more, since the plug-in, or a Pillow with AVIF, is
    there."""
    reasons = [kind.missing for kind in (_HEIC, _JXL) if kind.is_installed()]
    return [*reasons, NO_AVIF] if features.check("avif") else reasons


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, as the stream of a JPEG XL file says at its beginning (ISO/IEC 18181-1, SizeHeader),
    before it is turned upright; None where there is no such stream."""
    stream = data if data.startswith(_JXL_STREAM) else _jxl_stream(data)
    if not stream.startswith(_JXL_STREAM):
        return None
    bits = int.from_bytes(stream[2:12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(_JXL_SIDE_BITS[take(2)])

    small = take(1)
    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    above, below = _JXL_RATIOS[ratio - 1]
    return height * above // below, height


def _jxl_stream(data: bytes) -> bytes:
    """The beginning of the stream in a file of boxes."""
    at = 0
    while at + 8 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)  # parts are numbered
            return data[start : start + 64]
        if length < head:  # 0: it goes on to the end
            break
        at += length
    return b""


def _register_heif() -> None:
    # A thumbnail is another picture, and the other processes want their processors too.
    importlib.import_module("pillow_heif").register_heif_opener(
        thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
    )


def _register_jxl() -> None:
    importlib.import_module("pillow_jxl")


_HEIC: Final = PluginFormat(name="HEIC", pillow_name="HEIF", module="pillow_heif", register=_register_heif)
_JXL: Final = PluginFormat(name="JPEG XL", pillow_name="JXL", module="pillow_jxl", register=_register_jxl)
