"""Pictures in zip, tar and Parquet files, read one by one without unpacking.

A picture in an archive is called ``ARCHIVE!/MEMBER`` wherever a path is wanted: ``/data/a.zip!/x/y.jpg``; in a Parquet
file by column and row, ``/data/part.parquet!/image/12``.

Notable choices:

- Only what is read in place: a compressed tar would have to be unpacked from its beginning for each picture.
- Archives are not trusted: sizes are checked before memory is taken, and a zip may be stored or deflated only, which
  Python unpacks no further than to the size that was checked.
- Names are normalised (``./x``, ``/x`` and ``a/../x`` are ``x``); of two members of one name the later counts, as in
  unpacking.
- A zip knows the CRC of its members, which stands in the fraction of a second that its times do not have: in an archive
  that was written anew, only what differs is read. A tar and a Parquet file know nothing of their contents, so the time
  of the file is that of every picture in it.
- Parquet files are read as streams: memory holds a few pictures, not a row group.
- The archives used last stay open, for as long as their files do not change.
"""

from __future__ import annotations

import calendar
import io
import json
import os
import posixpath
import stat
import tarfile
import threading
import zipfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol

from fwd2bot_index.errors import ImageError
from fwd2bot_index.object_stores import is_uri

ARCHIVE_EXTENSIONS: Final = frozenset({".zip", ".tar", ".parquet"})
COMPRESSED_TARS: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
IMAGE_COLUMNS: Final = frozenset({"image", "image_bytes", "img", "jpeg", "jpg", "photo", "picture", "png", "webp"})
"""A Parquet column of plain bytes holds pictures if it has one of these names."""

_MARK: Final = "!/"
_OPEN_ARCHIVES: Final = 4
_ROWS_AT_ONCE: Final = 8
_RUN: Final = 100
"""Rows of a group, as Hugging Face writes pictures."""
_READ_BUFFER: Final = 2**20
_MAX_HEADER: Final = 2**20
"""Bytes of the names and attributes that a tar keeps of one member."""


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    mtime_ns: int


class Span(NamedTuple):
    """Where the bytes of a file lie in a tar."""

    start: int
    size: int


def member_uri(archive: str, name: str) -> str:
    """What a member is called among files."""
    return archive + _MARK + name


def split_uri(uri: str) -> tuple[str, str] | None:
    """The archive and the member that a uri names; None where no part of it is an archive that exists."""
    at = uri.find(_MARK)
    while at >= 0:
        if is_archive(uri[:at]) and os.path.isfile(uri[:at]):
            return uri[:at], uri[at + len(_MARK) :]
        at = uri.find(_MARK, at + 1)
    return None


def archives_in(uri: str) -> Iterator[str]:
    """What could be the archive of this uri, by its name alone, the shortest first."""
    at = uri.find(_MARK)
    while at >= 0:
        yield uri[:at]
        at = uri.find(_MARK, at + 1)


def is_archive(path: str) -> bool:
    """Whether a file of this name is looked into."""
    return os.path.splitext(path)[1].lower() in ARCHIVE_EXTENSIONS


def in_runs(uris: Iterable[str]) -> Iterator[list[str]]:
    """The same files, those together that one reader had better read: neighbours in a Parquet file come as a stream."""
    run: list[str] = []
    last = ""
    for uri in uris:
        file, mark, _ = uri.partition(".parquet" + _MARK)
        if run and (file != last or len(run) == _RUN or not mark):
            yield run
            run = []
        if not mark:
            yield [uri]
            continue
        run.append(uri)
        last = file
    if run:
        yield run


def picture_exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file of that name, or an archive to look for it in; of objects, reading them will tell."""
    return is_uri(path) or os.path.exists(path) or split_uri(os.fspath(path)) is not None


def list_members(path: str) -> list[Member]:
    """Every file in an archive, in the order in which they are best read; of Parquet files, every picture.

    Raises:
        ImageError: it cannot be read; the reason reads on from its name.
    """
    with _lock:
        return _opened(path).members()


def read_member(path: str, name: str, *, max_bytes: int) -> bytes:
    """The bytes of a file in an archive.

    Raises:
        ImageError: it is not there, cannot be read, or has more bytes than that.
    """
    with _lock:
        archive = _opened(path)
        try:
            return archive.read(name, max_bytes)
        except KeyError as e:
            raise ImageError(f"it is not in {os.path.basename(path)}") from e
        except OSError as e:
            raise ImageError(f"it cannot be read: {e.strerror or e}") from e


def close_archives() -> None:
    """Let go of the files of the archives used last."""
    with _lock:
        while _archives:
            _archives.popitem()[1].close()


def tar_spans(path: str | os.PathLike[str]) -> Iterator[tuple[str, Span | None]]:
    """The regular files in a tar, by their names as written, in order; None for one whose bytes do not lie together.

    Raises:
        ImageError: it is compressed, cut short or no tar; raised at the end, where it is cut.
        OSError: it cannot be read.
    """
    last = "its beginning"
    try:
        size = os.stat(path).st_size
        with _TarFile(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
                last = member.name
                if member.isreg():
                    yield member.name, None if member.issparse() else Span(member.offset_data, member.size)
            end = tar.offset
        # tarfile takes a damaged header, and none, for the end
        with open(path, "rb") as f:
            f.seek(end)
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.TarError as e:
        if "end of data" in str(e):
            raise ImageError(f"it is cut short or damaged after {last}; copy it again") from e
        raise ImageError(f"it is not an uncompressed tar ({e}); decompress it first") from e
    except (OSError, ImageError):
        raise
    except Exception as e:  # ValueError, IndexError, RecursionError, ...: of headers that make no sense
        raise ImageError(f"it is damaged after {last} ({_one_line(e)}); copy it again") from e


class _TarFile(io.FileIO):
    """A tar whose headers are read only as far as memory is worth it: their sizes are whatever the file says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_HEADER:
            raise ImageError(f"it has a header of {size} bytes; unpack it first")
        return super().read(-1 if size is None else size) or b""


# ---- the kinds of archives


class _Archive(Protocol):
    def members(self) -> list[Member]: ...

    def read(self, name: str, max_bytes: int) -> bytes:
        """
        Raises:
            KeyError: there is no such member.
            ImageError: it cannot be used.
        """
        ...

    def close(self) -> None: ...


class _Zip:
    def __init__(self, path: str, mtime_ns: int) -> None:
        try:
            self._file = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as e:  # BadZipFile, NotImplementedError, ValueError, struct.error, ...
            raise ImageError(f"it is not a whole zip file ({_one_line(e)}); copy it again") from e
        self._infos = {_clean(info.filename): info for info in self._file.infolist() if not info.is_dir()}

    def members(self) -> list[Member]:
        return [Member(name, info.file_size, _zip_time(info)) for name, info in self._infos.items()]

    def read(self, name: str, max_bytes: int) -> bytes:
        info = self._infos[name]
        if info.flag_bits & 0x1:
            raise ImageError("it is encrypted; unpack it first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError("it is neither stored nor deflated; unpack it first")
        _check_size(info.file_size, max_bytes)
        try:
            return self._file.read(info)
        except OSError:
            raise
        except Exception as e:  # BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ...
            raise ImageError(f"it is damaged in the zip file: {str(e) or type(e).__name__}") from e

    def close(self) -> None:
        self._file.close()


class _Tar:
    def __init__(self, path: str, mtime_ns: int) -> None:
        self._path = path
        self._mtime_ns = mtime_ns
        self._spans = {_clean(name): span for name, span in tar_spans(path)}

    def members(self) -> list[Member]:
        return [Member(name, span.size if span else 0, self._mtime_ns) for name, span in self._spans.items()]

    def read(self, name: str, max_bytes: int) -> bytes:
        span = self._spans[name]
        if span is None:
            raise ImageError("it is stored with holes; unpack it first")
        _check_size(span.size, max_bytes)
        with open(self._path, "rb") as f:
            f.seek(span.start)
            data = f.read(span.size)
        if len(data) < span.size:
            raise ImageError("the tar is shorter than it was")
        return data

    def close(self) -> None:
        pass


class _Parquet:
    """The picture read last, and those after it, cost least: the rows of a group come as a stream."""

    def __init__(self, path: str, mtime_ns: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._mtime_ns = mtime_ns
        self._size = os.stat(path).st_size
        self._arrow_error = pa.ArrowException
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BUFFER)
            schema = self._file.schema_arrow
            groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        except (pa.ArrowException, OSError) as e:
            raise ImageError(f"it is not a whole Parquet file ({_one_line(e)}); copy it again") from e
        self._starts = [0, *accumulate(groups)]
        self._leaves = dict(_image_columns(schema))
        if not self._leaves:
            names = ", ".join(schema.names)
            raise NoImageColumn(
                "it has no column of pictures: a struct with bytes, as of Hugging Face, or bytes under the name image; "
                f"its columns are {names}"
            )
        self._stream: _RowStream | None = None

    def members(self) -> list[Member]:
        return [
            Member(f"{column}/{row}", self._size, self._mtime_ns)
            for column in self._leaves
            for row in range(self._starts[-1])
        ]

    def read(self, name: str, max_bytes: int) -> bytes:
        column, _, number = name.rpartition("/")
        if column not in self._leaves or not (number.isascii() and number.isdigit()):
            raise KeyError(name)
        row = int(number)
        if row >= self._starts[-1]:
            raise KeyError(name)
        group = bisect_right(self._starts, row) - 1
        if self._stream is None or not self._stream.leads_to(column, group, row):
            leaf = self._leaves[column]
            batches = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[leaf])
            self._stream = _RowStream(column, group, self._starts[group], batches, nested=leaf != column)
        try:
            cell = self._stream.cell(row)
        except (self._arrow_error, StopIteration) as e:
            self._stream = None
            raise ImageError(f"it is damaged in the Parquet file: {_one_line(e)}") from e
        if not cell.is_valid:
            raise ImageError("there are no bytes in this row")
        data = cell.as_buffer()
        _check_size(data.size, max_bytes)
        return bytes(data)

    def close(self) -> None:
        self._stream = None
        self._file.close()


class NoImageColumn(ImageError):
    """A Parquet file of something else than pictures."""


class _RowStream:
    """The cells of one column of one row group, forwards."""

    def __init__(self, column: str, group: int, first: int, batches: Iterator[Any], *, nested: bool) -> None:
        self._place = (column, group)
        self._nested = nested
        self._first = first
        """Row of the first cell in the batch."""
        self._batches = batches
        self._batch: Any = None

    def leads_to(self, column: str, group: int, row: int) -> bool:
        return (column, group) == self._place and row >= self._first

    def cell(self, row: int) -> Any:
        """
        Raises:
            StopIteration: the group has fewer rows than its file says.
        """
        while self._batch is None or row >= self._first + len(self._batch):
            self._first += len(self._batch) if self._batch is not None else 0
            self._batch = next(self._batches).column(0)
        cell = self._batch[row - self._first]
        return cell["bytes"] if cell.is_valid and self._nested else cell


def _image_columns(schema: Any) -> Iterator[tuple[str, str]]:
    """The columns with pictures, and what to read of each."""
    import pyarrow as pa

    features = _hugging_face_features(schema.metadata or {})
    for column in schema:
        kind = features.get(column.name, {})
        if isinstance(kind, dict) and kind.get("_type", "Image") != "Image":
            continue
        if pa.types.is_struct(column.type):
            inner = column.type.get_field_index("bytes")
            if inner >= 0 and _is_binary(column.type.field(inner).type):
                yield column.name, f"{column.name}.bytes"
        elif _is_binary(column.type) and (column.name in features or column.name.lower() in IMAGE_COLUMNS):
            yield column.name, column.name


def _hugging_face_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


# ---- the archives that are open

_lock = threading.Lock()
_archives: OrderedDict[tuple[str, int, int, int], _Archive] = OrderedDict()
"""By path, inode, size and time: an archive that was written anew is another."""


def _opened(path: str) -> _Archive:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is not a regular file")
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        archive = _archives.get(key)
        if archive is None:
            archive = _KINDS[os.path.splitext(path)[1].lower()](path, status.st_mtime_ns)
            _archives[key] = archive
            while len(_archives) > _OPEN_ARCHIVES:
                _archives.popitem(last=False)[1].close()
        _archives.move_to_end(key)
    except OSError as e:
        raise ImageError(f"it cannot be read: {e.strerror or e}") from e
    return archive


_KINDS: Final[dict[str, Callable[[str, int], _Archive]]] = {".zip": _Zip, ".tar": _Tar, ".parquet": _Parquet}


# ---- helpers


def _clean(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


def _zip_time(info: zipfile.ZipInfo) -> int:
    """Nanoseconds; zip counts in steps of two seconds, within which the CRC has its place."""
    try:
        seconds = calendar.timegm((*info.date_time, 0, 0, 0))
    except ValueError:  # a date that does not exist
        seconds = 0
    return seconds * 10**9 + (info.CRC * 2 * 10**9 >> 32)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(f"it has {size} bytes; the limit is {max_bytes}")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
