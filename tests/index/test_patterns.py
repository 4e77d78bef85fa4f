"""What a pattern matches, and what of a folder is listed for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archives_made import make_zip
from pictures import write

from fwd2bot_index.errors import InputError
from fwd2bot_index.listing import SYSTEM_FOLDERS, list_files
from fwd2bot_index.patterns import Patterns

PATHS = ["a.jpg", "b.png", "raw/a.jpg", "raw/deep/c.png", "2023/a.jpg", "2023/raw/a.jpg", "x[1].jpg"]


def matched(pattern: str) -> list[str]:
    included = [path for path in PATHS if Patterns(include=[pattern]).takes(path)]
    excluded = [path for path in PATHS if not Patterns(exclude=[pattern]).takes(path)]
    assert included == excluded
    return included


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.png", ["b.png", "raw/deep/c.png"]),
        ("a.jpg", ["a.jpg", "raw/a.jpg", "2023/a.jpg", "2023/raw/a.jpg"]),
        ("/a.jpg", ["a.jpg"]),
        ("raw", ["raw/a.jpg", "raw/deep/c.png", "2023/raw/a.jpg"]),
        ("raw/", ["raw/a.jpg", "raw/deep/c.png", "2023/raw/a.jpg"]),
        ("/raw/", ["raw/a.jpg", "raw/deep/c.png"]),
        ("a.jpg/", []),
        ("raw/*.png", []),
        ("raw/**/*.png", ["raw/deep/c.png"]),
        ("raw/**", ["raw/a.jpg", "raw/deep/c.png"]),
        ("**/raw/a.jpg", ["raw/a.jpg", "2023/raw/a.jpg"]),
        ("202?/a.jpg", ["2023/a.jpg"]),
        ("[!ab].*", ["raw/deep/c.png"]),
        ("[a-b].*", ["a.jpg", "b.png", "raw/a.jpg", "2023/a.jpg", "2023/raw/a.jpg"]),
        ("x[[]1].jpg", ["x[1].jpg"]),
        ("A.JPG", []),
        ("*", PATHS),
    ],
)
def test_patterns(pattern: str, paths: list[str]) -> None:
    assert matched(pattern) == paths


@pytest.mark.parametrize("pattern", ["", "/", "!a", "[b-a]"])
def test_patterns_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        Patterns(exclude=[pattern])


def names(root: Path, **options: object) -> list[str]:
    return [os.path.relpath(uri, root) for uri in list_files([root], **options).uris]  # type: ignore[arg-type]


def test_folders_and_archives(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a.jpg", "b.png", "raw/c.jpg"], b"x"))
    make_zip(tmp_path / "x.zip", {"raw/d.jpg": b"x", "e.png": b"x"})
    assert names(tmp_path) == ["a.jpg", "b.png", "x.zip!/raw/d.jpg", "x.zip!/e.png", "raw/c.jpg"]
    assert names(tmp_path, patterns=Patterns(exclude=["raw"])) == ["a.jpg", "b.png", "x.zip!/e.png"]
    assert names(tmp_path, patterns=Patterns(exclude=["*.zip"])) == ["a.jpg", "b.png", "raw/c.jpg"]
    both = Patterns(include=["*.jpg"], exclude=["/raw"])
    assert names(tmp_path, patterns=both) == ["a.jpg", "x.zip!/raw/d.jpg"]
    # An archive of which only a part is wanted is not known whole.
    assert not list_files([tmp_path], patterns=both).archives
    assert list(list_files([tmp_path]).archives) == [str(tmp_path / "x.zip")]


def test_system_folders_and_the_index_itself_are_left_out(tmp_path: Path) -> None:
    folders = ["$RECYCLE.BIN", "System Volume Information", "@eaDir", "__MACOSX", "lost+found"]
    assert {folder.lower() for folder in folders} <= SYSTEM_FOLDERS
    write(tmp_path, dict.fromkeys(["a.jpg", "index/b.jpg", *(f"{folder}/c.jpg" for folder in folders)], b"x"))
    assert names(tmp_path, leave_out=tmp_path / "index") == ["a.jpg"]
