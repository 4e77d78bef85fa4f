"""Groups of files that show one picture: who is in them, which is kept, and what can be done without."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from archives_made import make_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from fwd2bot_index.duplicates import DuplicateGroup, FoundCopy, IndexedFile, find_duplicates, superfluous
from fwd2bot_index.errors import InputError
from fwd2bot_index.store import EmbeddedRows


def file(uri: str, id_: str = "", *, size: int = 1000, width: int = 640, height: int = 480) -> IndexedFile:
    """``id_``: by default one of its own."""
    return IndexedFile(uri=uri, id=id_ or uri, size=size, mtime_ns=1, width=width, height=height)


def rows_of(files: list[IndexedFile], degrees: list[float]) -> EmbeddedRows:
    """Each with an embedding in that direction."""
    names = ("uri", "id", "size", "mtime_ns", "width", "height")
    radians = np.radians(degrees)
    embedding = np.stack([np.cos(radians), np.sin(radians)], axis=-1).astype(np.float16)
    return EmbeddedRows(pa.table({name: [getattr(f, name) for f in files] for name in names}), embedding)


def uris(groups: list[DuplicateGroup]) -> list[list[str]]:
    return [[group.kept.uri, *(copy.file.uri for copy in group.copies)] for group in groups]


TEN_DEGREES = float(np.cos(np.radians(10)))


def test_same_bytes() -> None:
    files = [file("/b", "1"), file("/c", "2"), file("/d", "1"), file("/a", "1"), file("/e", "3")]
    [group] = find_duplicates(rows_of(files, [0, 0, 0, 0, 0]), threshold=None)
    assert group == DuplicateGroup(
        kept=files[3], copies=[FoundCopy(file=files[0], similarity=1), FoundCopy(file=files[2], similarity=1)]
    )


def test_near_ones_with_all_their_names_and_exact_ones_first() -> None:
    files = [file("/near", "n"), file("/near too", "n"), file("/nearer", "m"), file("/x", "x", width=999)]
    files += [file("/x again", "x", width=999), file("/far", "f")]
    [group] = find_duplicates(rows_of(files, [8, 8, 4, 0, 0, 40]), threshold=TEN_DEGREES)
    assert uris([group]) == [["/x", "/x again", "/nearer", "/near", "/near too"]]
    expected = np.cos(np.radians([0, 4, 8, 8]))
    np.testing.assert_allclose([copy.similarity for copy in group.copies], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (file("/zz", width=200, height=10, size=1), file("/a", width=100, height=10, size=99)),
        (file("/zz", width=50_000, height=50_000), file("/a", width=50_000, height=49_999)),  # past 2**31 pixels
        (file("/zz", size=2), file("/a", size=1)),
        (file("/zz"), file("/aaa")),
        (file("/a"), file("/b")),
        (file("/猫"), file("/aa")),  # characters, not bytes
    ],
)
def test_the_better_one_is_kept(better: IndexedFile, worse: IndexedFile) -> None:
    for files in ([better, worse], [worse, better]):
        [group] = find_duplicates(rows_of(files, [0, 1]), threshold=TEN_DEGREES)
        assert (group.kept, group.copies[0].file) == (better, worse)


def test_groups_come_by_the_path_that_is_kept() -> None:
    files = [file("/b/long", "1"), file("/b/x", "1"), file("/a/x", "2", width=9), file("/a/long", "2", width=9)]
    assert uris(find_duplicates(rows_of(files, [0, 0, 90, 90]), threshold=0.9)) == [
        ["/a/x", "/a/long"],
        ["/b/x", "/b/long"],
    ]


FILES = st.lists(
    st.builds(
        lambda name, content, width, size: file(name, f"{content}", width=100 + width, size=size + 10 * content),
        st.text("abcdef", min_size=1, max_size=5),
        st.integers(0, 12),
        st.integers(0, 2),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda f: f.uri,
)


def by_definition(files: list[IndexedFile], direction: dict[str, float], degrees: float) -> list[list[str]]:
    waiting = sorted(files, key=lambda f: (-f.width * f.height, -f.size, len(f.uri), f.uri))
    groups = []
    while waiting:
        kept = waiting[0]
        group = [f for f in waiting if abs(direction[f.id] - direction[kept.id]) <= degrees]
        waiting = [f for f in waiting if f not in group]
        groups.append([kept.uri, *sorted(f.uri for f in group if f is not kept)])
    return sorted(group for group in groups if len(group) > 1)


@given(files=FILES, shuffled=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_equals_the_definition_whatever_the_order_of_rows(files: list[IndexedFile], shuffled: object) -> None:
    # one content, one size
    first = {f.id: f for f in reversed(files)}
    files = [replace(f, width=first[f.id].width, size=first[f.id].size) for f in files]
    direction = {f.id: 7.0 * int(f.id) for f in files}
    expected = by_definition(files, direction, 10)
    for _ in range(2):
        found = find_duplicates(rows_of(files, [direction[f.id] for f in files]), threshold=TEN_DEGREES)
        assert sorted([kept, *sorted(copies)] for kept, *copies in uris(found)) == expected
        shuffled.shuffle(files)  # type: ignore[attr-defined]


def test_a_hundred_thousand_copies_are_one_group() -> None:
    count = 100_000
    columns = {"uri": [f"/{i:06}" for i in range(count)], "id": [str(i) for i in range(count)]}
    same = dict.fromkeys(("size", "mtime_ns", "width", "height"), np.full(count, 9))
    rows = EmbeddedRows(pa.table({**columns, **same}), np.full((count, 4), 0.5, np.float16))
    [group] = find_duplicates(rows, threshold=0.999)
    assert group.kept.uri == "/000000"
    assert len(group.copies) == count - 1


def test_nothing_alike_and_nothing_at_all() -> None:
    assert find_duplicates(rows_of([file("/a"), file("/b")], [0, 90]), threshold=0.01) == []
    empty = rows_of([file("/a")], [0])
    assert find_duplicates(EmbeddedRows(empty.rows.slice(0, 0), empty.embedding[:0]), threshold=0.9) == []


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
def test_what_is_no_threshold(threshold: float) -> None:
    with pytest.raises(InputError, match="at most 1"):
        find_duplicates(rows_of([file("/a")], [0]), threshold=threshold)


# ---- what can be done without


def on_disk(path: Path) -> IndexedFile:
    """As an index would know it; written first, where it is not there."""
    if not path.exists():
        path.write_bytes(b"a picture")
    status = path.stat()
    return replace(file(str(path), "1"), size=status.st_size, mtime_ns=status.st_mtime_ns)


def group_of(kept: IndexedFile, *copies: IndexedFile) -> DuplicateGroup:
    return DuplicateGroup(kept=kept, copies=[FoundCopy(file=copy, similarity=1) for copy in copies])


def test_copies_that_are_there(tmp_path: Path) -> None:
    a, b, c = (on_disk(tmp_path / name) for name in "abc")
    assert superfluous(group_of(a, b, c)) == [b, c]
    (tmp_path / "b").unlink()
    assert superfluous(group_of(a, b, c)) == [c]
    os.utime(tmp_path / "c", ns=(5, 5))
    assert superfluous(group_of(a, b, c)) == []


def test_the_last_copy_is_never_superfluous(tmp_path: Path) -> None:
    a, b = on_disk(tmp_path / "a"), on_disk(tmp_path / "b")
    (tmp_path / "a").write_bytes(b"another picture")
    assert superfluous(group_of(a, b)) == []
    (tmp_path / "a").unlink()
    assert superfluous(group_of(a, b)) == []


def test_another_name_of_the_kept_file_is_no_copy(tmp_path: Path) -> None:
    real = on_disk(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "hard").hardlink_to(tmp_path / "real")
    (tmp_path / "folder").symlink_to(".")
    names = [on_disk(tmp_path / name) for name in ("link", "hard", "folder/real")]
    other = on_disk(tmp_path / "other")
    assert superfluous(group_of(real, *names, other)) == [other]
    assert superfluous(group_of(names[0], real, other)) == [other]


def test_of_archives_the_file_is_looked_for(tmp_path: Path) -> None:
    make_zip(tmp_path / "x.zip", {"a.png": b"1", "b.png": b"1"})
    a, b = (file(f"{tmp_path}/x.zip!/{name}.png", "1") for name in "ab")
    plain = on_disk(tmp_path / "plain")
    assert superfluous(group_of(a, b, plain)) == [b, plain]
    assert (a.in_archive, plain.in_archive) == (True, False)
    assert group_of(a, b, plain).spare_bytes == plain.size
    (tmp_path / "x.zip").unlink()
    assert superfluous(group_of(a, b, plain)) == []
