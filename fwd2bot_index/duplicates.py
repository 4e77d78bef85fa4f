"""Which files show the same picture: by the hash of their bytes, and by the embeddings that the index has of them.

    >>> for group in find_duplicates(IndexStore.open(".fwd2bot").embeddings(), threshold=0.99):
    ...     print(group.kept.uri, [copy.file.uri for copy in group.copies])

Notable choices:

- One rule. Take the files from the best to the worst: more pixels, then more bytes, then the shorter path, then the
  first by name. The best that is in no group yet is *kept*, and its *copies* are all in no group yet that have its
  bytes, or an embedding whose cosine with that of the kept one reaches the threshold. So each copy is as much like what
  is kept as was asked for, no two that are kept are that much alike, and the order of rows changes nothing.
- Nothing is opened: files that are gone since, or on a disk that is elsewhere, are found too. Before anything is done
  to a file, :func:`superfluous` asks the disk what is still as the index knows it.
- What is near depends on the model, so there is no threshold for every index. That of the bundled model was measured
  (docs/duplicates.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index.archives import archives_in, is_archive, split_uri
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_THRESHOLD, Manifest
from fwd2bot_index.errors import InputError
from fwd2bot_index.leaders import follow_leaders

if TYPE_CHECKING:
    from fwd2bot_index.leaders import Int64
    from fwd2bot_index.store import EmbeddedRows

SAME_BYTES = 2.0
"""In place of a threshold, a cosine that no two embeddings have: copies are files with the same bytes alone."""


def copy_threshold(manifest: Manifest) -> float | None:
    """Cosine from which two pictures of an index are taken for copies of one; None: not measured of its model."""
    return DEFAULT_THRESHOLD if manifest.model == DEFAULT_MODEL else None


@dataclass(frozen=True, kw_only=True)
class IndexedFile:
    """A file as the index knows it."""

    uri: str
    id: str
    """Hash of its bytes."""
    size: int
    """In bytes; of a picture in a Parquet file, those of the whole file."""
    mtime_ns: int
    width: int
    height: int

    @property
    def in_archive(self) -> bool:
        """Whether it is part of another file, by its name alone."""
        return any(is_archive(path) for path in archives_in(self.uri))


@dataclass(frozen=True, kw_only=True)
class FoundCopy:
    file: IndexedFile
    similarity: float
    """Cosine of its embedding with that of the kept file; 1 where the bytes are the same."""


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    kept: IndexedFile
    copies: Sequence[FoundCopy]
    """At least one; first those with the same bytes, then the others, the most similar first."""

    @property
    def spare_bytes(self) -> int:
        """What the copies take, but for those in archives."""
        return sum(copy.file.size for copy in self.copies if not copy.file.in_archive)


def find_duplicates(
    rows: EmbeddedRows, *, threshold: float | None, progress: Callable[[int, int], None] | None = None
) -> list[DuplicateGroup]:
    """All groups of two files or more, in the order of the paths that are kept.

    Args:
        threshold: the cosine from which files with different bytes are copies, in (0, 1]. None: they never are.
        progress: told how many pictures are done, and of how many different ones, now and then.

    Raises:
        InputError: there is no such cosine.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise InputError(f"A threshold of similarity is more than 0 and at most 1, not {threshold}.")
    if len(rows) == 0:
        return []
    order = _best_first(rows.rows)
    # numbers in the order of first appearance: of two pictures the better one has the smaller
    ids = rows.rows.column("id").take(pa.array(order)).combine_chunks().dictionary_encode()
    picture = ids.indices.to_numpy().astype(np.int64)
    first = np.unique(picture, return_index=True)[1]
    if threshold is None:
        leader, cosine = np.arange(len(first)), np.ones(len(first), np.float32)
    else:
        leader, cosine = follow_leaders(rows.embedding, order[first], threshold=threshold, progress=progress)

    kept = leader[picture]
    members = np.lexsort((-cosine[picture], picture != kept, kept))  # stable: the rest is as in ``order``
    sizes = np.bincount(kept)
    members = members[sizes[kept[members]] > 1]
    files = _files(rows.rows.take(pa.array(order[members])))
    groups: dict[int, list[FoundCopy]] = {}
    for number, similarity, file in zip(kept[members], cosine[picture[members]], files, strict=True):
        groups.setdefault(int(number), []).append(FoundCopy(file=file, similarity=float(similarity)))
    found = [DuplicateGroup(kept=best.file, copies=copies) for best, *copies in groups.values()]
    return sorted(found, key=lambda group: group.kept.uri)


def superfluous(group: DuplicateGroup) -> list[IndexedFile]:
    """The copies that can be done without now, by a look at the disk.

    Left out are those that are gone, have changed since they were indexed, or are the kept file itself under another
    name (a link, a folder that is mounted twice); and all of them where the kept file is gone or has changed. Of what
    lies in an archive, only the archive is looked for.
    """
    place = _place(group.kept)
    if place is None:
        return []
    return [copy.file for copy in group.copies if _place(copy.file) not in (None, place)]


def _place(file: IndexedFile) -> tuple[object, ...] | None:
    """What tells a file from all others, whatever its name; None: it is not there as it was indexed."""
    try:
        status = os.stat(file.uri)
    except OSError:
        return split_uri(file.uri)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        return None
    return status.st_dev, status.st_ino


def _best_first(rows: Any) -> Int64:
    """[N]: the rows from the best file to the worst."""
    width, height, uri = (rows.column(name) for name in ("width", "height", "uri"))
    keys = pa.table(
        {
            "pixels": pc.multiply(width.cast(pa.int64()), height.cast(pa.int64())),
            "size": rows.column("size"),
            "length": pc.utf8_length(uri),
            "uri": uri,
        }
    )
    by = [("pixels", "descending"), ("size", "descending"), ("length", "ascending"), ("uri", "ascending")]
    order: Int64 = pc.sort_indices(keys, sort_keys=by).to_numpy().astype(np.int64)
    return order


def _files(rows: Any) -> Iterator[IndexedFile]:
    names = list(IndexedFile.__dataclass_fields__)
    for values in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
        yield IndexedFile(**dict(zip(names, values, strict=True)))
