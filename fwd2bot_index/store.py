"""An index on disk: what is known of every file, and the summary tokens of every picture.

::

    INDEX/
      manifest.json   the model, K, D, E and the codec; written last when an index is created
      codec.safetensors   what a fitted codec learned from the first pictures; the manifest has its checksum
      images.lance    one row per file: uri (the key), id, size, mtime_ns, width, height, status, error, embedding,
                      checksum; and the user's own columns
      tokens.lance    one row per picture: id (the key), payload, checksum
      faiss/          the trained vector index of a large corpus, see :mod:`fwd2bot_index.vector_files`
      annotations.json   what `fwd2bot annotate` asked in which column
      first.safetensors   only until the first commit: what was computed before there was an index to put it into
      .lock           held by the process that writes

The index is in a local folder or in an object store: see :mod:`fwd2bot_index.places`.

Notable choices:

- ``id`` is the hash of the file's bytes. Files with the same bytes share one row of tokens; each has a row of its own.
- The manifest is written once, atomically, when both datasets exist and are still empty: from then on the index is
  whole after every commit, and a crash in the middle of the first run loses nothing that was committed. A folder
  without a manifest never held a picture, so creating an index over the leftovers of a crash is safe.
- Tokens are committed before rows: a crash between the two leaves tokens without a row, which the next run writes anew
  or :meth:`IndexStore.tidy` sweeps, and never a row without its tokens.
- Lance does not notice a byte that has changed on disk, so every payload and every embedding has its CRC-32 beside it:
  payloads are compared whenever they are read, all of it by :mod:`fwd2bot_index.verifying`.
- The embedding is float16: it has unit length, so rounding moves a cosine by less than 0.001 at half the bytes.
- Readers follow the latest version, and old versions are kept for ``KEEP_VERSIONS``, so that a search under way is not
  cut off by an indexing run that ends.
- Both datasets are plain LanceDB tables: ``lancedb.connect(INDEX).open_table("images")``.

This is the only module that imports lance; it never imports torch. Shapes: N rows, K summary tokens, D hidden size, E
embedding size.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial, reduce
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index.codec import Codec, codec_from_fit, fit_to_bytes, get_codec, is_fitted, payload_bytes
from fwd2bot_index.config import Manifest
from fwd2bot_index.errors import (
    Fwd2BotError,
    IndexCorruptedError,
    IndexError_,
    IndexNotFoundError,
    IndexWriteError,
    InputError,
    ObjectStoreError,
)
from fwd2bot_index.keys import is_among, is_text, keys_of
from fwd2bot_index.payloads import Bytes, Float32
from fwd2bot_index.places import LOCK, MANIFEST, Mark, Place
from fwd2bot_index.product_codec import largest_file
from fwd2bot_index.timing import timed
from fwd2bot_index.types import SkippedFile

Float16: TypeAlias = npt.NDArray[np.float16]
Status: TypeAlias = Literal["ok", "skipped", "archive"]
"""``archive``: a file whose pictures all have rows of their own, so that it need not be opened again."""
T = TypeVar("T")

KEEP_VERSIONS: Final = timedelta(minutes=10)
IMAGE_ROWS_PER_FRAGMENT: Final = 65_536
TOKEN_BYTES_PER_FRAGMENT: Final = 64 * 2**20
"""Compaction rewrites whole fragments: this bounds what one new picture can cause to be rewritten."""
SMALL_FRAGMENTS: Final = 8
"""As many small fragments are left as they are; more are merged at the end of a run."""
_MOST_SAID: Final = 16 * 2**20
"""Bytes of a file of JSON; more than was ever written is not read."""
KEYS_PER_FILTER: Final = 1000
BATCH_BYTES: Final = 16 * 2**20
"""Of payloads or embeddings in memory at a time, where all are read or rewritten."""
INDEXED_ROWS: Final = 10_000
"""With fewer rows, finding some by their key is as fast without an index of the keys."""

_TICK_NS: Final = 2 * 10**9
"""Longer than between two ticks of any clock that files get their times from."""
_IMAGES: Final = "images.lance"
_TOKENS: Final = "tokens.lance"
_FIT: Final = "codec.safetensors"
_ANNOTATIONS: Final = "annotations.json"
FIRST: Final = "first.safetensors"
"""See :mod:`fwd2bot_index.first_pictures`."""
_OWN_NAMES: Final = frozenset(
    {
        _IMAGES,
        _TOKENS,
        LOCK,
        "faiss",
        *(name + end for name in (MANIFEST, _FIT, FIRST, _ANNOTATIONS) for end in ("", ".tmp")),
    }
)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One file. A skipped one has an ``error`` and no picture; one that was never read has no ``id`` either; an archive
    has nothing but its size and its time."""

    uri: str
    id: str | None
    size: int
    mtime_ns: int
    width: int | None = None
    height: int | None = None
    status: Status
    error: str | None = None
    embedding: Float16 | None = None
    """[E]"""

    def __post_init__(self) -> None:
        if self.status == "ok":
            assert None not in (self.id, self.width, self.height), self.uri
            assert self.embedding is not None, self.uri
            assert self.error is None, self.uri
        else:
            assert (self.error is None) == (self.status == "archive"), self.uri
            assert self.embedding is None, self.uri


@dataclass(frozen=True, kw_only=True)
class KnownFiles:
    """All rows, as Arrow's columns (a million strings of Python would take a second), without the embeddings: what
    deciding about changed files takes."""

    uri: Any
    """Strings, as are ``id`` (or null), ``status`` and ``error`` (or null)."""
    id: Any
    size: npt.NDArray[np.int64]
    mtime_ns: npt.NDArray[np.int64]
    status: Any
    error: Any

    def __len__(self) -> int:
        return len(self.uri)

    def skipped(self) -> list[SkippedFile]:
        """The files that could not be used, with the reasons."""
        chosen = pc.equal(self.status, "skipped")
        pairs = zip(self.uri.filter(chosen).to_pylist(), self.error.filter(chosen).to_pylist(), strict=True)
        return [SkippedFile(uri=uri, reason=reason) for uri, reason in pairs]

    def archives(self) -> dict[str, tuple[int, int]]:
        """uri -> size and mtime_ns of the archives that are known whole."""
        chosen = pc.equal(self.status, "archive").to_numpy(zero_copy_only=False).astype(bool)
        values = zip(self.size[chosen].tolist(), self.mtime_ns[chosen].tolist(), strict=True)
        return dict(zip(self.uri.filter(pa.array(chosen)).to_pylist(), values, strict=True))

    @classmethod
    def none(cls) -> Self:
        """What is known where there is no index."""
        numbers, strings = np.zeros(0, np.int64), pa.chunked_array([], pa.string())
        return cls(uri=strings, id=strings, size=numbers, mtime_ns=numbers, status=strings, error=strings)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What was asked about the pictures, whose answers are a column."""

    question: str
    choices: tuple[str, ...] | None
    model: str
    model_fingerprint: str
    """Of all that it answers with (:attr:`Compressor.full_fingerprint`)."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        choices = fields["choices"]
        said = {name: str(fields[name]) for name in ("question", "model", "model_fingerprint")}
        return cls(choices=choices and tuple(choices), **said)


def confidence_column(column: str) -> str:
    """Where the confidence of the answers in ``column`` is."""
    return f"{column}_confidence"


class EmbeddedRows:
    """The embeddings of all pictures and, in the same order, the rows that they belong to."""

    def __init__(self, rows: Any, embedding: Float16) -> None:
        assert rows.num_rows == len(embedding)
        self.rows = rows
        """Arrow's columns uri, id, size, mtime_ns, width and height, for who wants them all."""
        self.embedding = embedding
        """[N, E]"""

    def __len__(self) -> int:
        return len(self.embedding)

    def row(self, i: int) -> tuple[str, str, int, int]:
        """uri, id, width and height of the picture whose embedding is the ``i``-th."""
        uri, id_, width, height = (self.rows.column(name)[i].as_py() for name in ("uri", "id", "width", "height"))
        return uri, id_, width, height


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    files: int
    """Files that can be found by a search."""
    skipped: int
    pictures: int
    """Distinct pictures: files with the same bytes count once."""
    images_bytes: int
    """On disk, old versions included."""
    tokens_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    orphans: int
    """Tokens without a row, removed."""
    bytes_before: int
    bytes_after: int
    """Both on disk. Versions younger than ``KEEP_VERSIONS`` stay for those who read them, so a run just after another
    may leave more than there was."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Rows that lie in one file."""

    place: Place
    file: str
    """Its name in the index."""
    columns: Sequence[str]
    row_bytes: int
    fragment: Any
    dataset: Any

    @property
    def is_current(self) -> bool:
        """Whether the latest version of the table has it still: another process may rewrite it and sweep."""
        or_corrupted(self.place, self.dataset.checkout_latest)
        return any(self.file.endswith(f"/{f.data_files()[0].path}") for f in self.dataset.get_fragments())

    @property
    def rows(self) -> int:
        return int(self.fragment.count_rows())

    def batches(self) -> Iterator[Any]:
        """Arrow's record batches of about ``BATCH_BYTES`` or less.

        Raises:
            IndexCorruptedError: the file is gone, or is not what was written.
        """
        rows = max(1, min(65_536, BATCH_BYTES // self.row_bytes))
        batches = self.fragment.to_batches(columns=list(self.columns), batch_size=rows, batch_readahead=1)
        while (batch := or_corrupted(self.place, lambda: next(batches, None))) is not None:
            yield batch


class IndexStore:
    """An index that is open. Every read sees the latest commit of whichever process.

    Make one by :meth:`create` or :meth:`open`. Writers hold :func:`writing` around whatever they read and write.
    Threads may read at once; a thread that writes has an open index of its own.
    """

    def __init__(self, place: Place, manifest: Manifest, codec: Codec, images: Any, tokens: Any) -> None:
        self.place = place
        self.manifest = manifest
        self._images = images
        self._tokens = tokens
        self._codec = codec
        self._known_version: tuple[Mark | None, int] = (None, 0)
        self._known_columns: tuple[int, dict[str, Any]] = (0, {})
        self._moving = threading.Lock()
        """Around whatever moves a dataset to its latest version: Lance refuses any other use of it meanwhile."""

    @staticmethod
    def exists(path: str | Path | Place) -> bool:
        """Whether there is an index, whole or not.

        Raises:
            InputError, ObjectStoreError: it is in a store that is not known, or cannot be reached.
        """
        return Place.of(path).has(MANIFEST)

    @classmethod
    def create(cls, path: str | Path | Place, manifest: Manifest, codec: Codec | None = None) -> Self:
        """A new, empty index. ``codec``: the manifest's, where that is a fitted one.

        Raises:
            IndexWriteError: it cannot be written, or holds something else, such as an index.
            IndexCorruptedError: it holds pictures, but has lost its manifest.
        """
        place = Place.of(path)
        check_target(place)
        if place.has(MANIFEST):
            raise IndexWriteError(f"There is an index in {place} already.")
        codec = codec or get_codec(manifest.codec)
        assert codec.name == manifest.codec, codec.name
        fit = fit_to_bytes(codec)
        manifest = replace(manifest, codec_sha256=None if fit is None else hashlib.sha256(fit).hexdigest())
        size = codec.payload_bytes(manifest.num_summary_tokens, manifest.token_dim)
        existed = True

        def write() -> None:
            nonlocal existed
            existed = place.prepare()
            for name, schema in (
                (_IMAGES, _images_schema(manifest.embedding_dim)),
                (_TOKENS, _tokens_schema(size)),
            ):
                place.delete(name)
                lance.write_dataset(schema.empty_table(), place.table(name), storage_options=place.table_options)
            if fit is None:
                place.delete(_FIT)
            else:
                place.write(_FIT, fit)
            place.write(MANIFEST, manifest.to_json().encode())

        try:
            or_write_error(place, write)
        except IndexWriteError:
            for name in (_IMAGES, _TOKENS, MANIFEST + ".tmp", _FIT, _FIT + ".tmp"):
                with suppress(OSError, ObjectStoreError):
                    place.delete(name)
            if place.folder is not None and not existed:
                with suppress(OSError):
                    place.folder.rmdir()
            raise
        return cls.open(place)

    @classmethod
    def open(cls, path: str | Path | Place) -> Self:
        """The index in that folder.

        Raises:
            IndexNotFoundError: there is none.
            IndexCorruptedError: its manifest or its data cannot be trusted.
            IndexMismatchError: it was written by a newer version of fwd2bot.
        """
        place = Place.of(path)
        try:
            raw = place.read(MANIFEST, max_bytes=_MOST_SAID).decode()
        except (FileNotFoundError, NotADirectoryError):
            if place.folder is None:
                place.names()  # a bucket that is not there is another matter
            raise IndexNotFoundError(f"There is no index in {place}: make one with `fwd2bot index FOLDER`.") from None
        except PermissionError as e:
            raise IndexError_(f"The index in {place} cannot be read: {e.strerror}.") from e
        except (OSError, ValueError) as e:
            raise corrupted(place, f"{place}/{MANIFEST} cannot be read: {e}") from e
        try:
            manifest = Manifest.from_json(raw, f"{place}/{MANIFEST}")
        except IndexCorruptedError as e:
            raise corrupted(place, f"in its {MANIFEST}, {str(e).rstrip('.')}") from e
        size = payload_bytes(manifest.codec, manifest.num_summary_tokens, manifest.token_dim)
        codec = _fitted_codec(place, manifest) if is_fitted(manifest.codec) else get_codec(manifest.codec)
        datasets = []
        for name, expected in (
            (_IMAGES, _images_schema(manifest.embedding_dim)),
            (_TOKENS, _tokens_schema(size)),
        ):
            dataset = or_corrupted(place, partial(_table, place, name))
            for field in expected:
                if field.name not in dataset.schema.names or dataset.schema.field(field.name).type != field.type:
                    raise corrupted(place, f"{name} does not have the column {field.name}: {field.type}")
            datasets.append(dataset)
        return cls(place, manifest, codec, *datasets)

    # ---- reading

    def known_files(self) -> KnownFiles:
        """What is known of every file."""
        table = self._scan(self._images, columns=["uri", "id", "size", "mtime_ns", "status", "error"])
        return KnownFiles(
            uri=table.column("uri"),
            id=table.column("id"),
            size=table.column("size").to_numpy(),
            mtime_ns=table.column("mtime_ns").to_numpy(),
            status=table.column("status"),
            error=table.column("error"),
        )

    def embeddings(self) -> EmbeddedRows:
        """The embeddings of all pictures, with their rows, from one version of the index."""
        columns = ["uri", "id", "size", "mtime_ns", "width", "height", "embedding"]
        table = self._scan(self._images, columns=columns, filter="status = 'ok'")
        embedding = _embedding_matrix(table.column("embedding"), self.manifest.embedding_dim)
        if embedding is None or not np.isfinite(embedding).all():
            raise corrupted(self.place, "an embedding is missing or not finite")
        return EmbeddedRows(table.drop_columns(["embedding"]), embedding)

    def tokens(self, ids: Sequence[str]) -> Float32:
        """[n, K, D]: the summary tokens of these pictures, in the order of ``ids``.

        Raises:
            InputError: one of them is in the index no more.
            IndexCorruptedError: there are none for one that is, or their checksum does not match.
        """
        k, d = self.manifest.num_summary_tokens, self.manifest.token_dim
        wanted = list(dict.fromkeys(ids))
        payloads: dict[str, bytes] = {}
        for chunk in _chunks(wanted):
            table = self._scan(self._tokens, columns=["id", "payload", "checksum"], filter=_is_in("id", chunk))
            for id_, payload, checksum in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if zlib.crc32(payload) != checksum:
                    raise corrupted(self.place, f"the summary tokens of the picture {id_} are not what was written")
                payloads[id_] = payload
        if missing := [id_ for id_ in wanted if id_ not in payloads]:
            if not self.rows(ids=missing[:1]):
                raise InputError(
                    f"The picture {missing[0]} is not in the index in {self.place} any more: search again."
                )
            raise corrupted(self.place, f"there are no summary tokens for the picture {missing[0]}")
        raw = np.frombuffer(b"".join(payloads[id_] for id_ in ids), np.uint8)
        return self._codec.decode(raw.reshape(len(ids), self._codec.payload_bytes(k, d)), k=k, d=d)

    def rows(self, *, uris: Sequence[str] = (), ids: Sequence[str] = ()) -> list[ImageRow]:
        """The rows with one of these uris or ids, in no particular order; those that are not there are left out."""
        found: list[ImageRow] = []
        for column, keys in (("uri", uris), ("id", ids)):
            for chunk in _chunks([key for key in dict.fromkeys(keys) if is_text(key)]):
                found += self._image_rows(self._scan(self._images, filter=_is_in(column, chunk)))
        return found

    def rows_by_id(self, beginning: str) -> list[ImageRow]:
        """The rows whose id begins with these hexadecimal digits."""
        return self._image_rows(self._scan(self._images, filter=f"starts_with(id, '{beginning}')"))

    def stats(self) -> StoreStats:
        """Counts, and bytes on disk."""

        def count() -> tuple[int, int, int]:
            with self._moving:
                self._images.checkout_latest()
                self._tokens.checkout_latest()
                ok = self._images.count_rows(filter="status = 'ok'")
                return ok, self._images.count_rows(filter="status = 'skipped'"), self._tokens.count_rows()

        files, skipped, pictures = or_corrupted(self.place, count)
        return StoreStats(
            files=files,
            skipped=skipped,
            pictures=pictures,
            images_bytes=self.place.size(_IMAGES),
            tokens_bytes=self.place.size(_TOKENS),
            total_bytes=self.place.size(),
        )

    def pinned_images(self) -> Any:
        """images.lance as it is now, whatever is written later."""

        def pin() -> Any:
            with self._moving:
                self._images.checkout_latest()
                return _table(self.place, _IMAGES, version=self._images.version)

        return or_corrupted(self.place, pin)

    @property
    def images_version(self) -> int:
        """The latest version of images.lance.

        Lance lists a folder for it in a thread of its own, for up to a millisecond: it is asked again once the folder
        has changed.
        """
        mark = self._versions_mark()
        if mark is None or mark != self._known_version[0]:
            with self._moving:
                version = int(or_corrupted(self.place, lambda: self._images.latest_version))
            self._known_version = (mark, version)
        return self._known_version[1]

    def _versions_mark(self) -> Mark | None:
        """Changes with every version of images.lance; None: nothing that can be seen without asking Lance does. Two
        changes may share the time of one tick of the clock, so a folder that has just changed has none."""
        if self.place.folder is None:
            return None
        try:
            mark = self.place.mark(f"{_IMAGES}/_versions")
        except OSError:
            return None
        return mark if abs(time.time_ns() - mark[1]) > _TICK_NS else None

    def image_fragments(self, columns: Sequence[str]) -> Iterator[Fragment]:
        """The latest version of images.lance, piece by piece."""
        return self._fragments(self._images, _IMAGES, columns, 2 * self.manifest.embedding_dim)

    def token_fragments(self, columns: Sequence[str]) -> Iterator[Fragment]:
        """The latest version of tokens.lance, piece by piece."""
        return self._fragments(self._tokens, _TOKENS, columns, self._payload_bytes)

    def decoded(self, batch: Any) -> Float32:
        """[n, K, D]: of Arrow's columns id, payload and checksum of n pictures.

        Raises:
            IndexCorruptedError: a checksum does not match.
        """
        payload = np.frombuffer(b"".join(batch.column("payload").to_pylist()), np.uint8)
        payload = payload.reshape(batch.num_rows, self._payload_bytes)
        wrong = np.flatnonzero(checksums(payload) != batch.column("checksum").to_numpy())
        if len(wrong):
            id_ = batch.column("id")[int(wrong[0])]
            raise corrupted(self.place, f"the summary tokens of the picture {id_} are not what was written")
        return self.decode(payload)

    def decode(self, payload: Bytes) -> Float32:
        """[n, payload bytes] -> [n, K, D].

        Raises:
            IndexCorruptedError: no encoder wrote that.
        """
        return self._codec.decode(payload, k=self.manifest.num_summary_tokens, d=self.manifest.token_dim)

    def user_columns(self) -> dict[str, Any]:
        """Name -> Arrow's type of each column that is not the index's own."""
        version = self.images_version
        if version != self._known_columns[0]:
            with self._moving:
                or_corrupted(self.place, self._images.checkout_latest)
                schema = self._images.schema
            self._known_columns = (version, {f.name: f.type for f in schema if f.name not in OWN_COLUMNS})
        return dict(self._known_columns[1])

    def user_values(self, uris: Sequence[str]) -> list[dict[str, Any]]:
        """What the user's own columns say of each of these files; None where they say nothing."""
        names = list(self.user_columns())
        found: dict[str, dict[str, Any]] = {}
        for chunk in _chunks(list(dict.fromkeys(uris))) if names else ():
            table = self._scan(self._images, columns=["uri", *names], filter=_is_in("uri", chunk))
            for values in table.to_pylist():
                found[values.pop("uri")] = values
        return [found.get(uri, dict.fromkeys(names)) for uri in uris]

    # ---- writing

    def fitting(self, columns: Any) -> Any:
        """A table of user columns, with the types of those that the index has already.

        Raises:
            InputError: a type does not fit.
        """
        existing = self.user_columns()
        fields = [pa.field(f.name, existing.get(f.name, f.type)) for f in columns.schema]
        for field in columns.schema:
            try:
                columns.column(field.name).cast(existing.get(field.name, field.type))
            except pa.ArrowException as e:
                raise InputError(
                    f"The column {field.name} is {existing[field.name]} in the index and {field.type} in the new "
                    f"table: {reason_of(e)}."
                ) from e
        return columns.cast(pa.schema(fields))

    def set_columns(self, uris: Sequence[str], columns: Any) -> int:
        """Set user columns (an Arrow table with a row for each uri) of files in the index; other columns and files keep
        what they have. Returns for how many files something changed: where nothing does, nothing is written.

        Raises:
            InputError: a type does not fit what the index has.
            IndexWriteError: nothing was changed, but for new columns without values.
        """
        columns = self.fitting(columns)
        if new := [field for field in columns.schema if field.name not in self.user_columns()]:
            or_write_error(self.place, lambda: _add_columns(self._images, pa.schema(new)))
        now = self._scan(self._images, columns=["uri", *columns.column_names])
        row = pc.index_in(pa.array(uris, pa.string()), value_set=now.column("uri"))
        assert row.null_count == 0, "the files of set_columns must be in the index"
        differs = np.zeros(len(uris), bool)
        for name in columns.column_names:
            old, value = now.column(name).take(row), columns.column(name)
            same = pc.or_(pc.equal(old, value).fill_null(False), pc.and_(pc.is_null(old), pc.is_null(value)))
            differs |= ~same.to_numpy(zero_copy_only=False).astype(bool)
        if differs.any():
            chosen = pa.array(differs)
            self.write_columns(pa.array(uris, pa.string()).filter(chosen), columns.filter(chosen))
        return int(differs.sum())

    def write_columns(self, uris: Any, columns: Any) -> None:
        """Set columns that are there (an Arrow table with a row for each uri), without looking at what they hold.

        Raises:
            IndexWriteError: nothing was changed.
        """
        changed = columns.append_column(pa.field("uri", pa.string(), nullable=False), uris)
        or_write_error(self.place, lambda: _update(self._images, changed))

    def hand_on(self, uris: Sequence[str]) -> None:
        """Before these files are removed: what the user's columns say of one goes to a file of the same content of
        which they say nothing, as its new name is, or have nothing but answers to questions asked since. Where there is
        none, or it is done already, nothing is written.

        Raises:
            IndexWriteError: nothing was changed.
        """
        names = list(self.user_columns())
        if not uris or not names:
            return
        known = self.known_files()
        goes = pc.is_in(known.uri, value_set=pa.array(uris, pa.string()))
        stays = pc.and_(pc.invert(goes), pc.is_in(known.id, value_set=known.id.filter(goes).drop_null()))
        goes = pc.and_(goes, pc.is_in(known.id, value_set=known.id.filter(stays)))
        if not pc.any(goes).as_py():
            return
        answers = self._answer_columns()
        said = self._user_rows(known.uri.filter(goes), names)
        heirs = self._user_rows(known.uri.filter(stays), names)
        said = said.filter(_any_valid(said, names))
        heirs = heirs.filter(pc.invert(_any_valid(heirs, [name for name in names if name not in answers])))
        of: dict[str, list[int]] = {}
        for row, id_ in enumerate(said.column("id").to_pylist()):
            of.setdefault(id_, []).append(row)
        left = [of.get(id_) for id_ in heirs.column("id").to_pylist()]
        rows = pa.array([rows and (rows.pop(0) if len(rows) > 1 else rows[0]) for rows in left], pa.int64())
        heirs, left_to = heirs.filter(rows.is_valid()), said.take(rows.drop_null())
        now = {name: pc.coalesce(heirs.column(name), left_to.column(name)) for name in names}
        gains = reduce(pc.or_, [pc.and_(heirs.column(name).is_null(), now[name].is_valid()) for name in names])
        if pc.any(gains).as_py():
            self.write_columns(heirs.column("uri").filter(gains), pa.table(now).filter(gains))

    def _user_rows(self, uris: Any, names: Sequence[str]) -> Any:
        """The uri, id and user columns of these files, by name."""
        chunks = _chunks(uris.to_pylist())
        scans = [self._scan(self._images, columns=["uri", "id", *names], filter=_is_in("uri", c)) for c in chunks]
        return pa.concat_tables(scans).sort_by("uri")

    def annotations(self) -> dict[str, Annotation]:
        """What is asked in which column.

        Raises:
            IndexCorruptedError: the file that says so cannot be read.
        """
        try:
            raw = self.place.read(_ANNOTATIONS, max_bytes=_MOST_SAID).decode()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            raise corrupted(self.place, f"{_ANNOTATIONS} cannot be read: {e}") from e
        try:
            return {name: Annotation.of(fields) for name, fields in json.loads(raw).items()}
        except (ValueError, TypeError, AttributeError, KeyError) as e:
            raise corrupted(self.place, f"{_ANNOTATIONS} cannot be understood: {e}") from e

    def begin_annotation(self, column: str, annotation: Annotation, kind: Any, *, again: bool) -> None:
        """See that there is a column for the answers, of that Arrow type, and one for their confidence; ``again``: with
        nothing in them.

        Raises:
            IndexWriteError: it could not be written.
        """
        names = [column, confidence_column(column)]
        there = [name for name in names if name in self.user_columns()]
        known = {**self.annotations(), column: annotation}

        def write() -> None:
            self._images.checkout_latest()
            if again and there:
                self._images.drop_columns(there)
            missing = [
                pa.field(name, type_)
                for name, type_ in zip(names, (kind, pa.float32()), strict=True)
                if again or name not in there
            ]
            # the file first: a column that nobody knows of would be nobody's to fill
            said = json.dumps({n: asdict(a) for n, a in known.items()}, indent=2)
            self.place.write(_ANNOTATIONS, said.encode())
            if missing:
                _add_columns(self._images, pa.schema(missing))

        or_write_error(self.place, write)

    @property
    def codec(self) -> Codec:
        """How tokens are written."""
        return self._codec

    def commit(self, rows: Sequence[ImageRow], tokens: Mapping[str, Float32 | Bytes]) -> None:
        """Insert or replace the rows of these files, after the tokens of the pictures that are new: [K, D] by id, or
        what :attr:`codec` made of them ([bytes]).

        Raises:
            IndexWriteError: nothing of the rows was written; the index is as it was.
            ModelError: the tokens are not finite.
        """
        if tokens:
            with timed("codec"):
                payload = self._encoded(list(tokens.values()))
            table = _tokens_table(list(tokens), payload)
            or_write_error(self.place, lambda: _insert_new(self._tokens, table))
        if rows:
            images = _images_table(rows, self.manifest.embedding_dim)
            changed = self._changed(rows)
            if changed.any():  # answers about the picture that was there before
                empty = images.filter(pa.array(changed))
                for name, kind in self.user_columns().items():
                    if name in self._answer_columns():
                        empty = empty.append_column(name, pa.nulls(empty.num_rows, kind))
                or_write_error(self.place, lambda: _upsert(self._images, empty))
                images = images.filter(pa.array(~changed))
            if images.num_rows:
                or_write_error(self.place, lambda: _upsert(self._images, images))

    def _encoded(self, tokens: Sequence[Float32 | Bytes]) -> Bytes:
        """[n, payload bytes]"""
        k, d = self.manifest.num_summary_tokens, self.manifest.token_dim
        payload = np.zeros((len(tokens), self._payload_bytes), np.uint8)
        raw = [i for i, each in enumerate(tokens) if each.dtype != np.uint8]
        if raw:
            stacked = np.stack([tokens[i] for i in raw]).astype(np.float32, copy=False)
            payload[raw] = self._codec.encode(stacked.reshape(len(raw), k, d))
        for i in set(range(len(tokens))).difference(raw):
            payload[i] = tokens[i]
        return payload

    def _changed(self, rows: Sequence[ImageRow]) -> npt.NDArray[np.bool_]:
        """[n]: which of these files held another picture before, where that has been asked about."""
        if not self._answer_columns():
            return np.zeros(len(rows), np.bool_)
        before: dict[str, str | None] = {}
        for chunk in _chunks([row.uri for row in rows]):
            table = self._scan(self._images, columns=["uri", "id"], filter=_is_in("uri", chunk))
            before |= dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
        return np.array([row.uri in before and before[row.uri] != row.id for row in rows], np.bool_)

    def _answer_columns(self) -> set[str]:
        return {name for column in self.annotations() for name in (column, confidence_column(column))}

    def remove(self, uris: Sequence[str]) -> None:
        """Drop the rows of these files. Tokens that no row needs any more go with :meth:`tidy`.

        Raises:
            IndexWriteError: they could not be dropped.
        """
        for chunk in _chunks(list(uris)):
            or_write_error(self.place, partial(_delete, self._images, _is_in("uri", chunk)))

    def tidy(self) -> None:
        """What ends a run that wrote: sweep tokens without a row, merge small fragments, drop versions that are old.

        Raises:
            IndexWriteError: some of it could not be done; the index is whole, only larger than it need be.
        """
        self._sweep()

        def write() -> None:
            for dataset, rows_per_fragment, row_bytes in self._datasets():
                if _is_scattered(dataset, rows_per_fragment):
                    _compact(dataset, rows_per_fragment, row_bytes)
                _drop_old_versions(dataset)

        or_write_error(self.place, write)

    def optimize(self) -> OptimizeReport:
        """Everything that makes an index smaller and faster: as :meth:`tidy`, but merging all that can be merged;
        indexes of the keys, made or brought up to date; and what killed processes left removed. Readers go on reading.

        Memory: 8 bytes for each row, the ids of what is swept, and what Lance takes to rewrite a piece, some hundred
        MiB (docs/storage.md).

        Raises:
            IndexWriteError: some of it could not be done; the index is whole, only larger than it need be.
        """
        before = self.place.size()
        orphans = self._sweep()

        def write() -> None:
            for dataset, rows_per_fragment, row_bytes in self._datasets():
                _compact(dataset, rows_per_fragment, row_bytes)
                for key in ("uri", "id"):
                    if key in dataset.schema.names:
                        _index_key(dataset, key)
                dataset.optimize.optimize_indices()
                # nobody else writes (``writing``), so what no version knows of is a dead process's
                _drop_old_versions(dataset, unverified=True)
            self.place.sweep()

        or_write_error(self.place, write)
        return OptimizeReport(orphans=orphans, bytes_before=before, bytes_after=self.place.size())

    def index_vectors(self) -> None:
        """Train Lance's own index of the embeddings: the one for object stores, where a search reads what it needs.

        Raises:
            IndexWriteError: it could not be trained.
        """

        def write() -> None:
            self._images.checkout_latest()
            if self.manifest.embedding_dim % 8:  # which IVF_RQ cannot take
                self._images.create_index("embedding", "IVF_FLAT", metric="dot", replace=True)
            else:
                self._images.create_index("embedding", "IVF_RQ", metric="dot", num_bits=4, replace=True)

        or_write_error(self.place, write)

    def drop_vector_index(self) -> None:
        """Take Lance's own index of the embeddings away."""

        def write() -> None:
            self._images.checkout_latest()
            for index in self._images.describe_indices():
                if "embedding" in index.field_names:
                    self._images.drop_index(index.name)

        or_write_error(self.place, write)

    def _sweep(self) -> int:
        """Delete tokens that no row needs; how many there were."""
        used = [
            keys_of(batch.column("id")) for fragment in self.image_fragments(["id"]) for batch in fragment.batches()
        ]
        in_use = np.unique(np.concatenate([*used, np.zeros(0, np.uint64)]))
        orphans: list[str] = []
        for fragment in self.token_fragments(["id"]):
            for batch in fragment.batches():
                unused = ~is_among(keys_of(batch.column("id")), in_use)
                orphans += batch.column("id").filter(pa.array(unused)).to_pylist()
        for chunk in _chunks(orphans):
            or_write_error(self.place, partial(_delete, self._tokens, _is_in("id", chunk)))
        return len(orphans)

    def _datasets(self) -> list[tuple[Any, int, int]]:
        """Each with the rows of a full fragment, and the bytes of a row's largest column."""
        tokens_per_fragment = max(1, TOKEN_BYTES_PER_FRAGMENT // self._payload_bytes)
        return [
            (self._images, IMAGE_ROWS_PER_FRAGMENT, 2 * self.manifest.embedding_dim),
            (self._tokens, tokens_per_fragment, self._payload_bytes),
        ]

    # ---- helpers

    @property
    def _payload_bytes(self) -> int:
        return self._codec.payload_bytes(self.manifest.num_summary_tokens, self.manifest.token_dim)

    def _fragments(self, dataset: Any, name: str, columns: Sequence[str], row_bytes: int) -> Iterator[Fragment]:
        or_corrupted(self.place, dataset.checkout_latest)
        for fragment in or_corrupted(self.place, dataset.get_fragments):
            file = f"{name}/data/{fragment.data_files()[0].path}"
            yield Fragment(
                place=self.place, file=file, columns=columns, row_bytes=row_bytes, fragment=fragment, dataset=dataset
            )

    def _scan(self, dataset: Any, *, columns: list[str] | None = None, filter: str | None = None) -> Any:
        def read() -> Any:
            with self._moving:
                dataset.checkout_latest()
                scanner = dataset.scanner(columns=columns, filter=filter)  # of this version, wherever others move on to
            return scanner.to_table()

        return or_corrupted(self.place, read)

    def _image_rows(self, table: Any) -> list[ImageRow]:
        names = [name for name in ImageRow.__dataclass_fields__ if name != "embedding"]
        rows = []
        for i, values in enumerate(table.select(names).to_pylist()):
            cell = table.column("embedding")[i]
            embedding = np.asarray(cell.values) if cell.is_valid else None
            rows.append(ImageRow(**values, embedding=embedding))
        return rows


@contextmanager
def writing(path: str | Path | Place) -> Iterator[None]:
    """Hold the right to write to the index there; a folder is made if need be, and left only if it is used.

    Indexing reads what is known and then writes; two at once would do the same work twice, and one could sweep tokens
    whose rows the other is about to write. See :mod:`fwd2bot_index.places`. (Windows: no lock of folders.)

    Raises:
        IndexBusyError: another process holds it.
        IndexWriteError, ObjectStoreError: nothing can be written there, or it holds something else.
    """
    place = Place.of(path)
    check_target(place)
    with place.writing():
        yield


def check_target(path: str | Path | Place) -> None:
    """See that an index is, or can be made, there, before any work is done for it.

    Raises:
        InputError: the path names neither a local folder nor a store that is known.
        IndexWriteError: it is a file, holds something else, or cannot be written.
        IndexCorruptedError: it holds pictures, but has lost its manifest.
        ObjectStoreError: it cannot be reached.
    """
    place = Place.of(path)
    names = place.names()
    if MANIFEST not in names:
        if foreign := sorted(names - _OWN_NAMES):
            raise IndexWriteError(
                f"{place} holds other files ({foreign[0]}) and no index: give an empty or a new folder to --index."
            )
        if any(place.holds_data(name) for name in (_IMAGES, _TOKENS)):
            raise IndexCorruptedError(
                f"{place} has lost its {MANIFEST}, or is no index: put the manifest back from a copy, or give "
                "another folder to --index."
            )
    place.check_writable()


def _table(place: Place, name: str, *, version: int | None = None) -> Any:
    return lance.dataset(place.table(name), version=version, storage_options=place.table_options)


def _fitted_codec(place: Place, manifest: Manifest) -> Codec:
    k, d = manifest.num_summary_tokens, manifest.token_dim
    try:
        raw = place.read(_FIT, max_bytes=largest_file(k, d))
    except OSError as e:
        raise corrupted(place, f"{place}/{_FIT} cannot be read: {e.strerror or e}") from e
    except ValueError:
        raw = b""  # more than create wrote
    if hashlib.sha256(raw).hexdigest() != manifest.codec_sha256:
        raise corrupted(place, f"{place}/{_FIT} is not the file that its {MANIFEST} speaks of")
    try:
        return codec_from_fit(manifest.codec, raw, k=k, d=d)
    except IndexCorruptedError as e:
        raise corrupted(place, f"{place}/{_FIT} cannot be used: {e}") from e


def _images_schema(embedding_dim: int) -> Any:
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("embedding", pa.list_(pa.float16(), embedding_dim)),
            pa.field("checksum", pa.uint32()),
        ]
    )


def _tokens_schema(payload_bytes: int) -> Any:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("payload", pa.binary(payload_bytes), nullable=False),
            pa.field("checksum", pa.uint32(), nullable=False),
        ]
    )


def checksums(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """[n]: the CRC-32 of the bytes of each of n rows."""
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(rows)], np.uint32)


def _images_table(rows: Sequence[ImageRow], embedding_dim: int) -> Any:
    assert {row.status for row in rows} <= set(get_args(Status))
    assert len({row.uri for row in rows}) == len(rows), "one row per file"
    schema = _images_schema(embedding_dim)
    matrix = np.zeros((len(rows), embedding_dim), np.float16)
    for i, row in enumerate(rows):
        if row.embedding is not None:
            matrix[i] = row.embedding
    missing = pa.array([row.embedding is None for row in rows])
    *plain, _, _ = schema  # all but the embedding and its checksum
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in plain]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), embedding_dim, mask=missing))
    columns.append(pa.array(checksums(matrix), mask=missing.to_numpy(zero_copy_only=False)))
    return pa.table(columns, schema=schema)


def _tokens_table(ids: Sequence[str], payload: npt.NDArray[np.uint8]) -> Any:
    """``payload``: [n, bytes]."""
    schema = _tokens_schema(payload.shape[1])
    buffers = [None, pa.py_buffer(np.ascontiguousarray(payload))]
    cells = pa.FixedSizeBinaryArray.from_buffers(schema.field("payload").type, len(ids), buffers)
    return pa.table([pa.array(ids, pa.string()), cells, pa.array(checksums(payload))], schema=schema)


def _embedding_matrix(column: Any, embedding_dim: int) -> Float16 | None:
    """[N, E] of a column of lists; None where a list is missing."""
    if column.null_count:
        return None
    values = column.combine_chunks().flatten()
    matrix: Float16 = values.to_numpy(zero_copy_only=False).reshape(-1, embedding_dim)
    return matrix


OWN_COLUMNS: Final = frozenset(_images_schema(1).names)

# The ways of writing to a dataset: each is one atomic commit.


def _insert_new(dataset: Any, table: Any) -> None:
    dataset.checkout_latest()
    dataset.merge_insert("id").when_not_matched_insert_all().execute(table)


def _upsert(dataset: Any, table: Any) -> None:
    dataset.checkout_latest()
    dataset.merge_insert("uri").when_matched_update_all().when_not_matched_insert_all().execute(table)


def _update(dataset: Any, table: Any) -> None:
    dataset.checkout_latest()
    dataset.merge_insert("uri").when_matched_update_all().execute(table)


def _add_columns(dataset: Any, schema: Any) -> None:
    dataset.checkout_latest()
    dataset.add_columns(schema)


def _delete(dataset: Any, condition: str) -> None:
    dataset.checkout_latest()
    dataset.delete(condition)


def _is_scattered(dataset: Any, rows_per_fragment: int) -> bool:
    dataset.checkout_latest()
    fragments = dataset.get_fragments()
    small = sum(f.physical_rows < rows_per_fragment for f in fragments)
    deleted = sum(f.num_deletions for f in fragments)
    return small > SMALL_FRAGMENTS or deleted * 10 > sum(f.physical_rows for f in fragments)


def _compact(dataset: Any, rows_per_fragment: int, row_bytes: int) -> None:
    dataset.checkout_latest()
    batch = max(1, min(rows_per_fragment, BATCH_BYTES // row_bytes))
    dataset.optimize.compact_files(target_rows_per_fragment=rows_per_fragment, batch_size=batch)


def _index_key(dataset: Any, column: str) -> None:
    """An index of the values of ``column``, where there is none and enough rows."""
    dataset.checkout_latest()
    if dataset.count_rows() >= INDEXED_ROWS and not any(column in i.field_names for i in dataset.describe_indices()):
        dataset.create_scalar_index(column, "BTREE")


def _drop_old_versions(dataset: Any, *, unverified: bool = False) -> None:
    dataset.checkout_latest()
    dataset.cleanup_old_versions(older_than=KEEP_VERSIONS, delete_unverified=unverified)


def _any_valid(table: Any, names: Sequence[str]) -> Any:
    """A mask of the rows that have something in one of these columns."""
    nothing = pa.chunked_array([pa.array(np.zeros(len(table), bool))])
    return reduce(pc.or_, [pc.is_valid(table.column(name)) for name in names], nothing)


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), KEYS_PER_FILTER):
        yield keys[start : start + KEYS_PER_FILTER]


def _is_in(column: str, keys: Sequence[str]) -> str:
    """A condition in SQL, where a quote inside a string is doubled and nothing else is special."""
    return f"{column} IN ({', '.join(chr(39) + key.replace(chr(39), chr(39) * 2) + chr(39) for key in keys)})"


def reason_of(error: BaseException) -> str:
    """What lance says, without the Rust source line that it says it from."""
    return str(error).split(", /")[0].strip().rstrip(".")


def corrupted(place: Place, what: str) -> IndexCorruptedError:
    return IndexCorruptedError(f"The index in {place} is damaged: {what}. Delete the folder and index again.")


_IN_CONDITION: Final = "Error applying filter expression"
"""What Lance says of a division by 0, say, which it finds out about while it reads."""


def or_corrupted(place: Place, read: Callable[[], T]) -> T:
    """Lance raises ValueError, OSError, RuntimeError and Arrow's own for data that is missing or damaged, and for a
    store that cannot be reached."""
    try:
        return read()
    except Fwd2BotError:
        raise
    except Exception as e:
        if problem := place.problem_of(e):
            raise ObjectStoreError(f"The index in {place} cannot be read: {problem}.") from e
        if _IN_CONDITION in str(e):  # ours always can
            problem = (
                reason_of(e).rpartition(_IN_CONDITION)[2].removeprefix(" to batch: ").removeprefix("Arrow error: ")
            )
            raise InputError(f"The condition cannot be decided for every picture: {problem}.") from e
        if "Permission denied" in str(e):
            raise IndexError_(f"The index in {place} cannot be read: Permission denied.") from e
        raise corrupted(place, reason_of(e)) from e


def or_write_error(place: Place, write: Callable[[], T]) -> T:
    place.check_held()
    try:
        return write()
    except AssertionError:
        raise
    except Exception as e:
        if isinstance(e, ObjectStoreError):
            reason = str(e).rstrip(".")
        elif isinstance(e, Fwd2BotError):
            raise
        elif isinstance(e, OSError) and e.strerror:
            reason = e.strerror
        else:
            reason = place.problem_of(e) or reason_of(e)
        raise IndexWriteError(
            f"The index in {place} could not be written: {reason}. It is as it was after the last commit."
        ) from e
