"""Conditions: what is wrong is said, and where; and nothing that was written is left out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from fakes import manifest
from stored_rows import commit, row

from fwd2bot_index.errors import InputError
from fwd2bot_index.snapshots import Snapshot
from fwd2bot_index.store import ImageRow, IndexStore


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = IndexStore.create(tmp_path_factory.mktemp("index") / "index", manifest(k=1, d=2, e=16))
    commit(store, *map(row, range(10)))
    store.set_columns(
        [f"/photos/{n}.jpg" for n in range(10)],
        pa.table({"year": range(2015, 2025), "camera": ["X", "it's (a) Y"] * 5}),
    )
    skipped = ImageRow(uri="/photos/bad.jpg", id=None, size=1, mtime_ns=1, status="skipped", error="bad")
    store.commit([skipped], {})
    return Snapshot.of(store)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("year > 2020", 4),
        ("year > 2020 AND camera = 'X'", 2),
        ("year > 2020 OR camera = 'it''s (a) Y'", 7),
        ("camera = 'it''s (a) Y' -- a comment)", 5),
        ("(year > 2020) -- ) OR (1=1", 4),
        ("1=1", 10),  # never a file that was skipped
        ("status = 'skipped'", 0),
        ("uri LIKE '%/3.jpg'", 1),
        (" OR ".join(f"year = {year}" for year in range(3000)), 10),
        (f"year IN ({', '.join(map(str, range(3000)))})", 10),
        (" AND ".join(["year BETWEEN 2016 AND 2018"] * 50), 3),
        ("abs(year - 2020) < 3 AND starts_with(camera, 'it')", 3),
    ],
)
def test_what_is_understood(snapshot: Snapshot, where: str, count: int) -> None:
    addresses = snapshot.matching(where)
    assert len(addresses) == count
    assert (addresses[1:] > addresses[:-1]).all()


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("x" * 200_000, "200,000 characters"),
        ("yeer > 2020", r"there is no column yeer \(character 1\); Did you mean 'year'\. The columns are uri, .*year"),
        ("year > 2020 AND kamera = 'X'", r"no column kamera \(character 17\)"),
        ("year > 2020 and camera = 'X' garbage", r"like 'garbage', at character 30"),
        ("year > 2020 LIMIT 3", r"nothing can follow 'year > 2020' like 'LIMIT', at character 13"),
        ("year > 2020; DROP TABLE x", r"like ';', at character 12"),
        ("year >", "it ends too early"),
        ("year IN (2020", "it ends too early"),
        ("year > 2020)", r"closes a bracket that it did not open, at character 12"),
        ("1=1) OR (1=1", r"closes a bracket .* at character 4"),
        ("camera = 'X", "a quote is not closed"),
        ("year", "neither true nor false"),
        ("camera > 3", "cannot be used"),
        ("nofunction(year) = 3", "nofunction"),
        ("repeat('x', 500000000) = uri", "the function repeat is not at hand"),
        ("year > " + "+".join(["1"] * 1000), "more than 64 words and signs"),
        ("year > 1 AND (camera = 'X' OR true" + " = true" * 100 + ")", "more than 64 words and signs"),
        ("abs(" * 40 + "year" + ")" * 40 + " > 1", "more than 32 brackets in each other"),
        ("repeat -- a comment\n('x', 500000000) = uri", "the function repeat is not at hand"),
        ("repeat/**/('x', 500000000) = uri", "comments between"),
        ("true" + " BETWEEN true AND true" * 100, "more than 64 words and signs"),
        ("year / (year - 2020) > 1", "cannot be decided for every picture: Divide by zero error"),
        ("cast(uri as int) > 1", "cannot be decided for every picture: Cast error"),
    ],
)
def test_what_is_refused(snapshot: Snapshot, where: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as refused:
        snapshot.matching(where)
    assert "/rust/" not in str(refused.value)


def test_columns_of_bytes_are_not_offered(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        snapshot.matching("x = 1")
    assert "checksum" not in str(refused.value)
