"""The simulated index of the benchmark is a real one, whatever its size."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from fwd2bot_eval import bench_scale
from fwd2bot_index import store
from fwd2bot_index.store import IndexStore
from fwd2bot_index.verifying import verify


def test_an_index_grows_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ROWS_PER_COMMIT": 30, "COMMIT": 5, "POOL": 8, "REPEATS": 2}.items():
        monkeypatch.setattr(bench_scale, name, value)

    monkeypatch.setattr(store, "KEEP_VERSIONS", timedelta(0))  # as it sets it itself, and for as long as this test

    def in_this_process(step: str, folder: Path, rows: int) -> str:
        bench_scale.main(["--folder", str(folder), "--step", step, "--rows", str(rows)])
        return capsys.readouterr().out.splitlines()[-1]  # after what was printed before

    monkeypatch.setattr(bench_scale, "_python", in_this_process)
    found, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    bench_scale.main(["--folder", str(tmp_path), "--rows", "80", "40", "--json", str(found), "--plot", str(plot)])
    figures = json.loads(found.read_text())
    assert [f["pictures"] for f in figures] == [40, 80]
    assert all(f["token_bytes"] > 500 for f in figures)
    assert plot.read_bytes().startswith(b"\x89PNG")
    index = IndexStore.open(tmp_path / "simulated.fwd2bot")
    assert index.stats().files == 80
    found_by_verify = verify(index)
    assert found_by_verify.whole, found_by_verify.problems
