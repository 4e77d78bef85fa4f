"""The file of names beside a trained vector index: what was written, or nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from fwd2bot_index import hit_names
from fwd2bot_index.hit_names import HitNames

N = 1000


def names(start: int, stop: int) -> pa.Table:
    n = range(start, stop)
    return pa.table(
        {
            "uri": pa.array([f"/photos/{i}{'é' * (i % 3)}.jpg" for i in n], pa.string()),
            "id": pa.array([f"{i:032x}" for i in n], pa.string()),
            "width": pa.array([640 + i for i in n], pa.int32()),
            "height": pa.array([480] * len(n), pa.int32()),
        }
    )


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hit_names, "BATCH", 128)
    hit_names.write(tmp_path / "names.arrow", [names(0, 7), names(7, 7), names(7, 700), names(700, N)])
    return tmp_path / "names.arrow"


def test_rows_come_in_the_order_that_they_are_asked_in(path: Path) -> None:
    chosen = random.Random(0).sample(range(N), 50)
    taken = HitNames(path, N).take(chosen)
    assert taken is not None
    assert taken.to_pylist() == [names(i, i + 1).to_pylist()[0] for i in chosen]
    nothing = HitNames(path, N).take([])
    assert nothing is not None
    assert nothing.num_rows == 0
    assert nothing.column_names == list(hit_names.HIT_COLUMNS)


@pytest.mark.parametrize("row", [N, -1, 2**62])
def test_a_row_that_cannot_be_is_none(path: Path, row: int) -> None:
    assert HitNames(path, N).take([3, row]) is None


def test_a_file_of_another_size_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="names"):
        HitNames(path, 3 * N)


def test_damage_never_gives_a_wrong_row(path: Path) -> None:
    rng = random.Random(1)
    whole = path.read_bytes()
    refused = right = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(60):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = HitNames(path, N)
        except (OSError, ValueError):
            refused += 1
            continue
        for i in rng.sample(range(N), 60):
            taken = found.take([i])
            refused += taken is None
            if taken is not None:
                right += 1
                assert taken.to_pylist() == names(i, i + 1).to_pylist()
    assert refused > 20
    assert right > 200
