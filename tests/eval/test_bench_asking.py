"""The benchmark of confidence and of contexts of several pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fwd2bot_eval import bench_asking
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH


def test_the_error_is_what_confidence_is_off_by() -> None:
    found = bench_asking.calibration([0.95, 0.95, 0.15, 1.0], [True, False, False, True])
    assert [b["items"] for b in found["bins"]] == [1, 3]
    assert found["bins"][1]["right"] == pytest.approx(2 / 3)
    assert found["error"] == pytest.approx((0.15 + 3 * (2.9 / 3 - 2 / 3)) / 4)
    assert found["right"] == 0.5
    assert bench_asking.calibration([1.0] * 5, [True] * 5)["error"] == 0


@pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)
def test_it_runs_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    bench_asking.main(["--scenes", "10", "--groups", "4", "--sizes", "1", "2", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert figures["scenes"]["items"] > 50
    assert figures["scenes"]["right"] > 0.7
    assert set(figures["together"]) == {"1", "2"}
    assert "calibration error" in capsys.readouterr().out
