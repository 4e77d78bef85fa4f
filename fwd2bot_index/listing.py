"""Which files are tried: every regular file with the extension of an image under the folders given, and every file that
is named itself.

Hidden files and folders are left out. Symbolic links are followed, and each folder is visited once, so loops end. Files
with other extensions are nobody's business and are counted nowhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fwd2bot_index.errors import InputError
from fwd2bot_index.types import SkippedFile

# fmt: off
IMAGE_EXTENSIONS: Final = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on


@dataclass(frozen=True)
class FoundFile:
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies under the paths given."""

    roots: Sequence[str]
    """Absolute; folders and files."""
    files: dict[str, FoundFile] = field(default_factory=dict)
    """By uri (the absolute path), in the order of names."""
    unlisted: list[SkippedFile] = field(default_factory=list)
    """Folders that could not be read, and files whose names cannot be recorded."""

    def covers(self, uri: str) -> bool:
        """Whether a file of that name would have been found if it were still there."""
        within = any(_is_under(uri, root) for root in self.roots)
        return within and not any(_is_under(uri, folder.uri) for folder in self.unlisted)


def list_files(paths: Iterable[str | Path]) -> Listing:
    """The files to index.

    Raises:
        InputError: a path does not exist, cannot be read, or is neither a folder nor a regular file.
    """
    roots = list(dict.fromkeys(os.path.abspath(path) for path in paths))
    if not roots:
        raise InputError("Give at least one folder or file to index.")
    listing = Listing(roots=roots)
    visited: set[tuple[int, int]] = set()
    for root in roots:
        try:
            status = os.stat(root)
        except OSError as e:
            raise InputError(f"{root} cannot be indexed: {e.strerror}.") from e
        if stat.S_ISDIR(status.st_mode):
            _walk(root, listing, visited)
        elif stat.S_ISREG(status.st_mode):
            _add(root, status, listing)
        else:
            raise InputError(f"{root} is neither a folder nor a regular file.")
    for folder in listing.unlisted:
        if folder.uri in roots:
            raise InputError(f"{folder.uri} cannot be indexed: {folder.reason}.")
    return listing


def _walk(root: str, listing: Listing, visited: set[tuple[int, int]]) -> None:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(_visible(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except OSError as e:
            listing.unlisted.append(SkippedFile(uri=folder, reason=f"it cannot be listed: {e.strerror}"))
            continue
        folders = []
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:  # it vanished, or is a link to nowhere or to itself
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(entry.path)
            elif stat.S_ISREG(status.st_mode) and os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                _add(entry.path, status, listing)
        waiting += reversed(folders)


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _add(uri: str, status: os.stat_result, listing: Listing) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError:
        readable = uri.encode("utf-8", "backslashreplace").decode()
        listing.unlisted.append(SkippedFile(uri=readable, reason="its name is not valid UTF-8; rename it"))
        return
    listing.files[uri] = FoundFile(status.st_size, status.st_mtime_ns)


def _is_under(uri: str, folder: str) -> bool:
    return uri == folder or uri.startswith(folder.rstrip(os.sep) + os.sep)
