"""Which files are tried, and which are nobody's business."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import write

from fwd2bot_index import listing as listing_module
from fwd2bot_index.errors import InputError
from fwd2bot_index.listing import is_under, list_files


def names(root: Path, *paths: Path) -> list[str]:
    return [os.path.relpath(uri, root) for uri in list_files(paths or [root]).uris]


def test_images_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["b.jpg", "a.PNG", "deep/er/c.webp", "notes.txt", "movie.mp4", "noextension"], b"x"))
    assert names(tmp_path) == ["a.PNG", "b.jpg", "deep/er/c.webp"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys([".hidden.jpg", ".fwd2bot/x.jpg", "seen.jpg"], b"x"))
    assert names(tmp_path) == ["seen.jpg"]
    assert names(tmp_path, tmp_path / ".fwd2bot") == [".fwd2bot/x.jpg"]


def test_a_file_that_is_named_is_tried_whatever_its_extension(tmp_path: Path) -> None:
    write(tmp_path, {"picture.dat": b"x"})
    assert names(tmp_path, tmp_path / "picture.dat") == ["picture.dat"]


def test_paths_that_overlap_count_once(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a/b/c.jpg", "a/d.jpg"], b"x"))
    assert sorted(names(tmp_path, tmp_path / "a" / "b", tmp_path, tmp_path / "a" / "d.jpg")) == ["a/b/c.jpg", "a/d.jpg"]


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"12345"})
    os.utime(tmp_path / "a.jpg", ns=(10**18, 10**18 + 123))
    listing = list_files([tmp_path])
    assert (listing.uris, list(listing.sizes)) == ([str(tmp_path / "a.jpg")], [5])
    assert list(listing.mtimes_ns) == [10**18 + 123]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, {"photos/a.jpg": b"x", "elsewhere/b.jpg": b"x"})
    photos = tmp_path / "photos"
    (photos / "loop").symlink_to(photos)
    (photos / "itself.jpg").symlink_to("itself.jpg")
    (photos / "nowhere.jpg").symlink_to("gone.jpg")
    (photos / "other").symlink_to(tmp_path / "elsewhere")
    (photos / "link.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    assert names(photos) == ["a.jpg", "link.jpg", "other/b.jpg"]


@pytest.fixture
def bound_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket.jpg")
        yield


@pytest.mark.usefixtures("bound_socket")
def test_pipes_sockets_and_folders_named_like_images_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    write(tmp_path, {"folder.jpg/a.jpg": b"x"})
    assert names(tmp_path) == ["folder.jpg/a.jpg"]
    with pytest.raises(InputError, match=r"pipe\.jpg is neither"):
        list_files([tmp_path / "pipe.jpg"])


def test_a_folder_that_cannot_be_listed_is_named_and_tells_nothing_of_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may list everything, so the system's refusal is played
    write(tmp_path, dict.fromkeys(["a.jpg", "locked/b.jpg"], b"x"))
    locked = str(tmp_path / "locked")
    visible = listing_module._visible

    def refuse(folder: str) -> Iterator[os.DirEntry[str]]:
        if folder == locked:
            raise PermissionError(13, "Permission denied")
        return visible(folder)

    monkeypatch.setattr(listing_module, "_visible", refuse)
    listing = list_files([tmp_path])
    assert listing.uris == [str(tmp_path / "a.jpg")]
    assert [(s.uri, s.reason) for s in listing.unlisted] == [(locked, "it cannot be listed: Permission denied")]
    assert listing.could_tell(str(tmp_path / "gone.jpg"))
    assert not listing.could_tell(locked + "/b.jpg")
    with pytest.raises(InputError, match="locked cannot be indexed"):
        list_files([locked])


def test_what_lies_under_a_folder_or_an_archive() -> None:
    assert is_under("/a", "/a")
    assert is_under("/a/x.jpg", "/a")
    assert is_under("/x.jpg", "/")
    assert not is_under("/ab/x.jpg", "/a")
    assert is_under("/a.zip!/x.jpg", "/a.zip")
    assert not is_under("/a!/x.jpg", "/a")  # a folder of that name


def test_roots_under_which_nothing_else_was_found(tmp_path: Path) -> None:
    write(tmp_path, {"a/b/x.jpg": b"x"})
    (tmp_path / "c").mkdir()
    roots = [tmp_path / "a" / "b" / "x.jpg", tmp_path / "a", tmp_path / "c"]
    assert list_files(roots).barren == [str(tmp_path / "a"), str(tmp_path / "c")]


def test_a_name_that_is_not_text_is_reported(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as f:
        f.write(b"x")
    listing = list_files([tmp_path])
    assert not listing.uris
    assert listing.unlisted[0].uri.endswith("caf\\udce9.jpg")
    assert "UTF-8" in listing.unlisted[0].reason


def test_what_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"x"})
    with pytest.raises(InputError, match="nowhere cannot be indexed: No such file"):
        list_files([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="at least one"):
        list_files([])
