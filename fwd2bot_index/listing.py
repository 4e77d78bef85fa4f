"""Which files are tried: every regular file with the extension of an image under the folders given, and every file that
is named itself. Zip, tar and Parquet files count as folders.

Objects of a store (``s3://BUCKET/PREFIX``) are files too, and their prefixes folders; archives among them are told of
and not looked into.

Left out are hidden files and folders, those that systems keep for themselves, and what patterns exclude. Symbolic links
are followed, and each folder is visited once, so loops end. Files with other extensions are nobody's business and are
counted nowhere; nor are archives without a picture, unless they are named themselves.
"""

from __future__ import annotations

import os
import posixpath
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from fwd2bot_index.archives import (
    ARCHIVE_EXTENSIONS,
    COMPRESSED_TARS,
    NoImageColumn,
    archives_in,
    is_archive,
    list_members,
    member_uri,
)
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_index.keys import is_text
from fwd2bot_index.object_stores import Objects, absolute, is_uri, parent
from fwd2bot_index.patterns import Patterns
from fwd2bot_index.types import SkippedFile

# fmt: off
IMAGE_EXTENSIONS: Final = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".jxl", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})
_COMPRESSED: Final = frozenset(os.path.splitext("x" + end)[1] for end in COMPRESSED_TARS)
SYSTEM_FOLDERS: Final = frozenset({
    "$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "__macosx", "lost+found", "recycler",
    "system volume information",
})
"""Waste bins, thumbnails and snapshots of Windows, macOS, Linux and network disks; in small letters."""
# fmt: on


class FoundFile(NamedTuple):
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies under the paths given. The files are columns: there may be millions."""

    roots: Sequence[str]
    """Absolute; folders and files."""
    barren: list[str] = field(default_factory=list)
    """Those under which nothing was found that was not found under one before."""
    uris: list[str] = field(default_factory=list)
    """The absolute path of each file, or ``ARCHIVE!/MEMBER``; in each folder in the order of names."""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    mtimes_ns: array[int] = field(default_factory=lambda: array("q"))
    unlisted: list[SkippedFile] = field(default_factory=list)
    """Folders and archives that could not be read, and files whose names cannot be recorded."""
    archives: dict[str, FoundFile] = field(default_factory=dict)
    """By path: those whose every picture is among the files."""
    unopened: set[str] = field(default_factory=set)
    """Archives that are as they were when they were known: what is known of their pictures stands."""
    waiting: set[str] = field(default_factory=set)
    """Archives that are being written."""

    def could_tell(self, uri: str) -> bool:
        """Whether a file of that name, under one of the roots, would have been found if it were still there."""
        return not any(is_under(uri, folder.uri) for folder in self.unlisted) and not any(
            archive in self.waiting for archive in archives_in(uri)
        )

    def found(self) -> int:
        """How many files and archives, so far."""
        return len(self.uris) + len(self.unopened) + len(self.archives) + len(self.waiting)


def list_files(
    paths: Iterable[str | Path],
    *,
    archives: bool = True,
    patterns: Patterns | None = None,
    leave_out: str | Path | None = None,
    known_archives: Mapping[str, tuple[int, int]] | None = None,
    settled_ns: int | None = None,
) -> Listing:
    """The files to index.

    Args:
        archives: whether those that lie in folders are looked into.
        patterns: which of the files in folders and archives are wanted; None: all of them.
        leave_out: a folder, or a prefix of objects, that is not entered.
        known_archives: path -> size and mtime_ns; those that are still so are not opened (but where patterns may have
            changed what is wanted of them).
        settled_ns: archives that were changed after this time, and have not come from the future, are left for later.

    Raises:
        InputError: a path does not exist, cannot be read, or is neither a folder nor a regular file; or it is an
            archive that cannot be read.
    """
    roots = list(dict.fromkeys(absolute(path) for path in paths))
    if not roots:
        raise InputError("Give at least one folder or file to index.")
    listing = Listing(roots=roots)
    lister = _Lister(
        listing,
        archives,
        patterns or Patterns(),
        absolute(leave_out) if leave_out is not None else None,
        known_archives or {},
        settled_ns,
    )
    folders = []
    for root in roots:
        if is_uri(root):
            lister.name_object(root)
            folders.append(root)
            continue
        try:
            status = os.stat(root)
        except OSError as e:
            raise InputError(f"{root} cannot be indexed: {e.strerror}.") from e
        if stat.S_ISDIR(status.st_mode):
            folders.append(root)
        elif not stat.S_ISREG(status.st_mode):
            raise InputError(f"{root} is neither a folder nor a regular file.")
        elif root.lower().endswith(COMPRESSED_TARS):
            raise InputError(f"{root} cannot be indexed: it is a compressed tar; decompress it to a .tar first.")
        else:
            lister.name(root, status)
    for root in folders:
        before = listing.found()
        if is_uri(root):
            lister.list_objects(root)
        else:
            lister.walk(root)
        if listing.found() == before:
            listing.barren.append(root)
    for folder in listing.unlisted:
        if folder.uri in roots:
            raise InputError(f"{folder.uri} cannot be indexed: {folder.reason}.")
    return listing


class _Lister:
    def __init__(
        self,
        listing: Listing,
        archives: bool,
        patterns: Patterns,
        leave_out: str | None,
        known_archives: Mapping[str, tuple[int, int]],
        settled_ns: int | None,
    ) -> None:
        self._listing = listing
        self._archives = archives
        self._patterns = patterns
        self._leave_out = leave_out
        self._known_archives = known_archives
        self._settled_ns = settled_ns
        self._named: set[str] = set()
        """Files that were named themselves, and the objects found so far where one may lie under several prefixes."""
        self._may_meet_again = sum(map(is_uri, listing.roots)) > 1
        self._visited: set[tuple[int, int]] = set()

    def name(self, path: str, status: os.stat_result) -> None:
        """Add a file that was named itself."""
        self._named.add(path)
        if is_archive(path):
            self._look_into(path, status, inside="", named=True)
        else:
            self._add(path, status.st_size, status.st_mtime_ns)

    def walk(self, root: str) -> None:
        listing, patterns, named = self._listing, self._patterns, self._named
        cut = len(root.rstrip(os.sep)) + 1
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self._visited:
                    continue
                self._visited.add((status.st_dev, status.st_ino))
                entries = sorted(_visible(folder), key=_name_of)
            except FileNotFoundError:
                continue
            except OSError as e:
                listing.unlisted.append(SkippedFile(uri=folder, reason=f"it cannot be listed: {e.strerror}"))
                continue
            folders = []
            for entry in entries:
                name, path = entry.name, entry.path
                extension = os.path.splitext(name)[1].lower()
                wanted = extension in IMAGE_EXTENSIONS
                archive = not wanted and extension in ARCHIVE_EXTENSIONS and self._archives
                try:
                    if entry.is_dir():
                        if self._enters(name, path, cut):
                            folders.append(path)
                        continue
                    if not (wanted or archive) or path in named:
                        compressed = extension in _COMPRESSED and name.lower().endswith(COMPRESSED_TARS)
                        if compressed and self._archives and patterns.enters(path[cut:]) and path not in named:
                            reason = "it is a compressed tar; decompress it to a .tar first"
                            listing.unlisted.append(SkippedFile(uri=path, reason=reason))
                        continue
                    if patterns and not (patterns.enters(path[cut:]) if archive else patterns.takes(path[cut:])):
                        continue
                    status = entry.stat()
                except OSError:  # it vanished, or is a link to nowhere or to itself
                    continue
                if not stat.S_ISREG(status.st_mode):
                    continue
                if archive:
                    self._look_into(path, status, inside=path[cut:] + "/", named=False)
                else:
                    self._add(path, status.st_size, status.st_mtime_ns)
            waiting += reversed(folders)

    def name_object(self, uri: str) -> None:
        """Add an object that was named itself, if there is one: listings know what lies below.

        Raises:
            ObjectStoreError: the store cannot be asked.
        """
        if Objects.at(uri).location.key and is_picture_name(uri):
            with suppress(FileNotFoundError):
                itself = Objects.at(parent(uri)).stat(posixpath.basename(uri))
                self._named.add(uri)
                self._add(uri, itself.size, itself.mtime_ns)

    def list_objects(self, root: str) -> None:
        """Add what lies below a URI. Archives are not looked into, and told of.

        Raises:
            ObjectStoreError: it cannot be listed to its end.
        """
        for object_ in Objects.at(root).below():
            uri = f"{root}/{object_.name}"
            *folders, name = object_.name.split("/")
            hidden = any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in folders)
            if hidden or name.startswith("."):
                continue
            if self._leave_out is not None and uri.startswith(self._leave_out + "/"):
                continue
            if not is_picture_name(name):
                if self._archives and _is_archive_name(name) and self._patterns.enters(object_.name):
                    reason = "archives in an object store are not looked into: index a copy on a disk"
                    self._listing.unlisted.append(SkippedFile(uri=uri, reason=reason))
                continue
            if uri not in self._named and (not self._patterns or self._patterns.takes(object_.name)):
                self._add(uri, object_.size, object_.mtime_ns)
                if self._may_meet_again:
                    self._named.add(uri)

    def _enters(self, name: str, path: str, cut: int) -> bool:
        return name.lower() not in SYSTEM_FOLDERS and path != self._leave_out and self._patterns.enters(path[cut:])

    def _look_into(self, path: str, status: os.stat_result, *, inside: str, named: bool) -> None:
        """Add the pictures of an archive.

        Args:
            inside: what its members are called to the patterns, before their own names.
        """
        listing, found = self._listing, FoundFile(status.st_size, status.st_mtime_ns)
        if not is_text(path):
            self._report_name(path)
            return
        if not self._patterns and self._known_archives.get(path) == found:
            listing.unopened.add(path)
            return
        if is_recent(found.mtime_ns, self._settled_ns):
            listing.waiting.add(path)
            return
        try:
            members = list_members(path)
        except NoImageColumn as e:
            if named:
                listing.unlisted.append(SkippedFile(uri=path, reason=e.reason))
            return
        except ImageError as e:
            listing.unlisted.append(SkippedFile(uri=path, reason=e.reason))
            return
        rows = path.lower().endswith(".parquet")
        whole = True
        for member in members:
            if not rows and not _is_picture(member.name):
                continue
            if "\0" in member.name:  # which no path can have
                self._report_name(member_uri(path, member.name).replace("\0", "\\0"))
                continue
            if self._patterns and not self._patterns.takes(inside + member.name):
                whole = False
            else:
                self._add(member_uri(path, member.name), member.size, member.mtime_ns)
        if whole:
            listing.archives[path] = found

    def _add(self, uri: str, size: int, mtime_ns: int) -> None:
        if not uri.isascii() and not is_text(uri):
            self._report_name(uri)
            return
        listing = self._listing
        listing.uris.append(uri)
        listing.sizes.append(size)
        listing.mtimes_ns.append(mtime_ns)

    def _report_name(self, uri: str) -> None:
        readable = uri.encode("utf-8", "backslashreplace").decode()
        self._listing.unlisted.append(
            SkippedFile(uri=readable, reason="its name is not valid UTF-8, or has a NUL; rename it")
        )


def is_recent(mtime_ns: int, settled_ns: int | None) -> bool:
    """Whether a file was changed after ``settled_ns`` (None: nothing was). A time a day and more after that was not set
    by writing, but by a clock that is wrong."""
    return settled_ns is not None and settled_ns < mtime_ns < settled_ns + 86_400 * 10**9


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name


def is_picture_name(name: str) -> bool:
    """Whether it has the extension of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _is_archive_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ARCHIVE_EXTENSIONS or name.lower().endswith(COMPRESSED_TARS)


def _is_picture(member: str) -> bool:
    *folders, name = member.split("/")
    if not is_picture_name(name) or name.startswith("."):
        return False
    return not any(folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS for folder in folders)


def prefixes(root: str) -> tuple[str, ...]:
    """How the names of what lies in a folder or an archive begin."""
    within = root.rstrip(os.sep) + os.sep
    return (within, member_uri(root, "")) if is_archive(root) else (within,)


def is_under(uri: str, folder: str) -> bool:
    """Whether that is the name of the folder or archive itself, or of something in it."""
    return uri == folder or uri.startswith(prefixes(folder))
