"""What is to be done about each file, decided from names, sizes and times alone: nothing is opened.

Files and rows are compared as Arrow's and numpy's columns; only what has changed becomes objects of Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index.archives import archives_in, member_uri
from fwd2bot_index.errors import NothingToIndexError
from fwd2bot_index.formats import mended
from fwd2bot_index.keys import is_text
from fwd2bot_index.listing import FoundFile, Listing, is_recent, is_under, prefixes
from fwd2bot_index.store import KnownFiles
from fwd2bot_index.types import SkippedFile

Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The files found, compared with those in the index."""

    unchanged: int
    skipped: list[SkippedFile]
    """What cannot be used, by earlier runs and by the listing."""
    to_check: list[str]
    """Their content may be known: a file in the index has that size; or they could not be read before."""
    to_decode: list[str]
    """Their content is new."""
    found: dict[str, FoundFile]
    """Of the files to check and to decode."""
    gone: list[str]
    """In the index, but not found any more where they should be."""
    before: dict[str, str | None]
    """uri -> id in the index, of the files to check, to decode, and gone."""
    known_ids: frozenset[str]
    """Ids of the pictures that need not be computed again; empty where there is nothing to check or to decode."""
    archives: dict[str, FoundFile]
    """To be recorded when everything is done: these need not be opened again until they change."""
    forgotten: list[str]
    """Archives that are not there any more, or not known whole."""
    waiting: int
    """Files and archives that are being written."""


def find_changes(listing: Listing, known: KnownFiles, *, settled_ns: int | None = None) -> Changes:
    """Compare what was found with what is known.

    A folder given by name in which nothing is left, while the index has files from there, may be a disk that is not
    mounted: its files are kept.

    Args:
        settled_ns: new and changed files with a later time are left for a later run.

    Raises:
        NothingToIndexError: nothing was found at all.
    """
    known_uri = known.uri
    status_archive = _mask(pc.equal(known.status, "archive"))
    emptied = _emptied_roots(listing, known_uri)
    if not listing.uris and not listing.unopened and not listing.waiting:
        raise NothingToIndexError(_nothing_found(listing, emptied))

    uris = _strings(listing.uris)
    sizes, times = (np.asarray(column, np.int64) for column in (listing.sizes, listing.mtimes_ns))
    row = pc.index_in(uris, value_set=known_uri).fill_null(-1).to_numpy().astype(np.int64)
    has_row = row >= 0
    # Row -1, of files without one, is this last and false one.
    # What was skipped for want of a plug-in that is there now is as good as never read.
    known_id = pc.if_else(pc.is_in(known.error, value_set=pa.array(mended(), pa.string())), None, known.id)
    unread = np.append(_mask(pc.is_null(known_id)) & ~status_archive, False)
    failed = np.append(_mask(pc.is_valid(known.error)), False)
    same = has_row & (np.append(known.size, -1)[row] == sizes) & (np.append(known.mtime_ns, -1)[row] == times)
    same &= ~unread[row]
    known_sizes = known.size[_mask(pc.is_valid(known_id))]
    changed = np.flatnonzero(~same)
    maybe_known = unread[row[changed]] | np.isin(sizes[changed], known_sizes)
    matched = np.zeros(len(known) + 1, bool)
    matched[row] = True

    kept = _in_unopened(known_uri, ~matched[:-1] & ~status_archive, listing)
    matched[:-1] |= kept
    lost = np.flatnonzero(_under_roots(listing, known_uri) & ~matched[:-1])
    covering = _Covering(listing, emptied)

    skipped = [*listing.unlisted, *emptied]
    old_failures = np.concatenate([row[same & failed[row]], np.flatnonzero(kept & failed[:-1] & ~unread[:-1])])
    for uri, reason in zip(_take(known_uri, old_failures), _take(known.error, old_failures), strict=True):
        skipped.append(SkippedFile(uri=uri, reason=reason))
    to_check: list[str] = []
    to_decode: list[str] = []
    found: dict[str, FoundFile] = {}
    waiting = len(listing.waiting)
    for i, check in zip(changed.tolist(), maybe_known.tolist(), strict=True):
        uri = listing.uris[i]
        file = FoundFile(listing.sizes[i], listing.mtimes_ns[i])
        if is_recent(file.mtime_ns, settled_ns):
            waiting += 1
            continue
        found[uri] = file
        (to_check if check else to_decode).append(uri)
    for i in np.flatnonzero(kept & unread[:-1]).tolist():
        uri = known_uri[i].as_py()
        found[uri] = FoundFile(int(known.size[i]), int(known.mtime_ns[i]))
        to_check.append(uri)
    gone = [i for i, uri in zip(lost.tolist(), _take(known_uri, lost), strict=True) if covering(uri)]
    gone_files = [i for i in gone if not status_archive[i]]
    before_rows = np.concatenate([row[changed][has_row[changed]], np.flatnonzero(kept & unread[:-1]), gone_files])
    known_archives = known.archives()
    return Changes(
        unchanged=int((same & ~failed[row]).sum() + (kept & ~failed[:-1] & ~unread[:-1]).sum()),
        skipped=skipped,
        to_check=to_check,
        to_decode=to_decode,
        found=found,
        gone=_take(known_uri, gone_files),
        before=dict(zip(_take(known_uri, before_rows), _take(known_id, before_rows), strict=True)),
        known_ids=_usable_ids(known) if found else frozenset(),
        archives={uri: file for uri, file in listing.archives.items() if known_archives.get(uri) != file},
        forgotten=[
            uri for uri in _take(known_uri, [i for i in gone if status_archive[i]])
            if uri not in listing.archives and uri not in listing.unopened
        ],
        waiting=waiting,
    )  # fmt: skip


class _Covering:
    """Whether a file that was not found is gone."""

    def __init__(self, listing: Listing, emptied: Iterable[SkippedFile]) -> None:
        self._listing = listing
        self._emptied = tuple(root.uri.rstrip(os.sep) + os.sep for root in emptied)

    def __call__(self, uri: str) -> bool:
        """Of a file under one of the roots."""
        return self._listing.could_tell(uri) and not uri.startswith(self._emptied)


def _emptied_roots(listing: Listing, known_uri: Any) -> list[SkippedFile]:
    """Every folder given by name that holds nothing, though it used to."""
    emptied = []
    for root in filter(is_text, listing.barren):
        names = (listing.uris, listing.unopened, listing.archives, listing.waiting)
        if not any(is_under(uri, root) for uris in names for uri in uris):
            count = int(pc.sum(pc.starts_with(known_uri, prefixes(root)[0])).as_py() or 0)
            if count:
                reason = f"it is empty, but the index has {count} files from there; they are kept"
                emptied.append(SkippedFile(uri=root, reason=reason))
    return emptied


def _nothing_found(listing: Listing, emptied: list[SkippedFile]) -> str:
    where = ", ".join(listing.roots)
    if problems := [*listing.unlisted, *emptied]:
        return f"There is no picture to index in {where}: {problems[0].uri}: {problems[0].reason}."
    return f"There is no picture in {where}: no file there has the extension of an image, or all are excluded."


def _under_roots(listing: Listing, known_uri: Any) -> Mask:
    roots = {root for root in listing.roots if is_text(root)}  # another is no name in an index
    under = _mask(pc.is_in(known_uri, value_set=pa.array(sorted(roots), pa.string())))
    for root in roots.difference(listing.uris):  # there may be thousands of files, each named itself
        for prefix in prefixes(root):
            under |= _mask(pc.starts_with(known_uri, prefix))
    return under


def _in_unopened(known_uri: Any, candidates: Mask, listing: Listing) -> Mask:
    """Which of the candidates lie in an archive that was not opened."""
    kept = np.zeros(len(known_uri), bool)
    if not listing.unopened:
        return kept
    members = np.flatnonzero(candidates & _mask(pc.match_substring(known_uri, member_uri("", ""))))
    prefix = "\0"
    for i, uri in zip(members.tolist(), _take(known_uri, members), strict=True):
        if uri.startswith(prefix):  # as its neighbour
            kept[i] = True
            continue
        for archive in archives_in(uri):
            if archive in listing.unopened:
                kept[i], prefix = True, member_uri(archive, "")
                break
    return kept


def _usable_ids(known: KnownFiles) -> frozenset[str]:
    return frozenset(known.id.filter(pc.equal(known.status, "ok")).to_pylist())


def _strings(uris: list[str]) -> Any:
    array = pa.array(uris, pa.string())  # in chunks where they are more than 2 GB
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _take(column: Any, rows: npt.ArrayLike) -> list[Any]:
    values: list[Any] = column.take(pa.array(np.asarray(rows, np.int64))).to_pylist()
    return values


def _mask(column: Any) -> Mask:
    mask: Mask = column.to_numpy(zero_copy_only=False).astype(bool)
    return mask
