"""The pictures of an index, as they are and small.

A client names a picture by its content id and nothing else; the path comes from the index, and what lies there now is
given out only if it still has that id. So no file that was not indexed can be read, whatever has become of the folder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from fwd2bot_index.corpus import Corpus
from fwd2bot_index.decoding import content_id, read_file
from fwd2bot_index.errors import ImageError
from fwd2bot_index.thumbnails import small_jpeg
from fwd2bot_serve.batching import current_scope
from fwd2bot_serve.failures import CancelledError, NotFoundError


class Side(IntEnum):
    """The longest side of a small copy, in pixels."""

    TINY = 160
    SMALL = 320
    MIDDLE = 640
    LARGE = 1280


DEFAULT_SIDE: Final = Side.SMALL
CACHE_BYTES: Final = 64 * 2**20
DECODED_AT_ONCE: Final = 2
"""Each may take as much memory as a picture has pixels."""

_BEGINNINGS: Final = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftypavif", "image/avif"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)

_decoding: Final = threading.BoundedSemaphore(DECODED_AT_ONCE)


@contextmanager
def decoding() -> Iterator[None]:
    """Around every picture that is decoded for a client.

    Raises:
        CancelledError: the client has gone while others' were decoded.
    """
    with _decoding:
        if current_scope().is_cancelled:
            raise CancelledError
        yield


def media_type(data: bytes) -> str:
    """Of a kind that browsers show, else bytes: never text, and never anything that could run."""
    found = (kind for start, beginning, kind in _BEGINNINGS if data[start : start + len(beginning)] == beginning)
    return next(found, "application/octet-stream")


def original(corpus: Corpus, id_: str) -> bytes:
    """The bytes of the file of a picture.

    Raises:
        NotFoundError: the index has no such picture, or its files are gone or have changed.
    """
    files = corpus.files(id_)
    if not files:
        raise NotFoundError(f"The index holds no picture with the id {id_[:64]!r}.")
    for file in files:
        try:
            data = read_file(file.uri)
        except ImageError:
            continue
        if content_id(data) == id_:
            return data
    raise NotFoundError(
        f"{files[0].uri} is gone or has changed since it was indexed. "
        "Its summary tokens can still be searched and asked."
    )


class Thumbnails:
    """Small JPEGs; those looked at last are kept."""

    def __init__(self, *, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, corpus: Corpus, id_: str, side: Side) -> bytes:
        """
        Raises:
            NotFoundError: as :func:`original`.
        """
        key = (id_, side)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is not None and corpus.files(id_):
            return kept
        with decoding():
            data = original(corpus, id_)
            try:
                jpeg = small_jpeg(data, side=side)
            except ImageError as e:
                raise NotFoundError(f"The picture {id_} cannot be shown: {e.reason}.") from e
        with self._lock:
            if key not in self._kept:
                self._kept[key] = jpeg
                self._bytes += len(jpeg)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return jpeg
