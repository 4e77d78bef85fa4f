"""What is to be done about each file, decided from names, sizes and times alone: nothing is opened."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace

from fwd2bot_index.errors import InputError
from fwd2bot_index.listing import Listing
from fwd2bot_index.store import KnownFiles
from fwd2bot_index.types import SkippedFile


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The files found, compared with those in the index."""

    known: dict[str, str | None]
    """uri -> id of every file in the index."""
    known_ids: frozenset[str]
    """Ids of the pictures that need not be computed again."""
    unchanged: int
    skipped: list[SkippedFile]
    """What cannot be used, by earlier runs and by the listing."""
    to_check: list[str]
    """Their content may be known: a file in the index has that size; or they could not be read before."""
    to_decode: list[str]
    """Their content is new."""
    gone: list[str]
    """In the index, but not found any more where they should be."""


def find_changes(listing: Listing, known: KnownFiles) -> Changes:
    """Compare what was found with what is known.

    A folder given by name in which nothing is left, while the index has files from there, may be a disk that is not
    mounted: its files are kept.

    Raises:
        InputError: nothing was found at all.
    """
    rows = {uri: row for row, uri in enumerate(known.uri)}
    listing = _keep_emptied_roots(listing, known)
    if not listing.files:
        raise InputError(_nothing_found(listing))
    sizes = {int(size) for size, id_ in zip(known.size, known.id, strict=True) if id_ is not None}
    unchanged = 0
    skipped = list(listing.unlisted)
    to_check, to_decode = [], []
    for uri, found in listing.files.items():
        row = rows.get(uri)
        if row is not None and known.id[row] is None:
            to_check.append(uri)
        elif row is not None and (found.size, found.mtime_ns) == (known.size[row], known.mtime_ns[row]):
            error = known.error[row]
            if error is None:
                unchanged += 1
            else:
                skipped.append(SkippedFile(uri=uri, reason=error))
        elif found.size in sizes:
            to_check.append(uri)
        else:
            to_decode.append(uri)
    return Changes(
        known=dict(zip(known.uri, known.id, strict=True)),
        known_ids=frozenset(
            id_ for id_, status in zip(known.id, known.status, strict=True) if id_ is not None and status == "ok"
        ),
        unchanged=unchanged,
        skipped=skipped,
        to_check=to_check,
        to_decode=to_decode,
        gone=[uri for uri in known.uri if uri not in listing.files and listing.covers(uri)],
    )


def _keep_emptied_roots(listing: Listing, known: KnownFiles) -> Listing:
    """The listing, with every folder given by name that holds nothing, though it used to, set aside."""
    missing: defaultdict[str, int] = defaultdict(int)
    for root in listing.roots:
        prefix = root.rstrip(os.sep) + os.sep
        if not any(uri == root or uri.startswith(prefix) for uri in listing.files):
            missing[root] = sum(uri.startswith(prefix) for uri in known.uri)
    emptied = [
        SkippedFile(uri=root, reason=f"it is empty, but the index has {count} files from there; they are kept")
        for root, count in missing.items()
        if count
    ]
    return replace(listing, unlisted=[*listing.unlisted, *emptied])


def _nothing_found(listing: Listing) -> str:
    where = ", ".join(listing.roots)
    if listing.unlisted:
        first = listing.unlisted[0]
        return f"There is no picture to index in {where}: {first.uri}: {first.reason}."
    return f"There is no picture in {where}: no file there has the extension of an image."
