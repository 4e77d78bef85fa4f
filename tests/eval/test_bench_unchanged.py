"""The benchmark of unchanged folders runs, and measures what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fwd2bot_eval import bench_unchanged


def test_it_reports_both_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--files", "1500", "--folder", str(tmp_path), "--rounds", "1"])
    bench_unchanged.main()
    assert "times the listing" in capsys.readouterr().out
    assert bench_unchanged.unchanged(tmp_path / "index-1500", tmp_path / "tree-1500") == 1500
