"""The benchmark of verify and optimize: a run of it, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwd2bot_eval import bench_integrity
from fwd2bot_index.store import IndexStore
from fwd2bot_index.verifying import verify


def test_a_small_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_integrity, "COMMANDS", ("verify",))
    bench_integrity.main(["--rows", "30"])
    *_, line = capsys.readouterr().out.splitlines()
    rows, command, seconds, peak, disk = (cell.strip() for cell in line.strip("|").split("|"))
    assert (rows, command) == ("30", "verify")
    assert float(seconds) > 0
    assert float(peak) > 10
    assert int(disk) >= 0


def test_the_index_that_it_makes_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_integrity, "ROWS_PER_COMMIT", 8)
    bench_integrity.make_index(tmp_path / "index", 20)
    found = verify(IndexStore.open(tmp_path / "index"))
    assert (found.problems, found.files, found.pictures) == ([], 20, 20)


def test_a_command_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="fwd2bot verify failed with 2"):
        bench_integrity.measure("verify", tmp_path / "nowhere")
