"""The server against its own description: whatever fits it or does not, no answer is a crash or undescribed.

A larger run by hand is told of in docs/serving.md. ``positive_data_acceptance`` is left out: a description cannot say
that a term is exactly one thing or which columns there are, and such requests are refused with a sentence.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SCHEMATHESIS = shutil.which("schemathesis", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed")
def test_answers_as_described(address: str, tmp_path: Path) -> None:
    assert SCHEMATHESIS is not None
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{address}/openapi.json", "--max-examples", "6", "--generation-deterministic",
            "--exclude-checks", "positive_data_acceptance", "--phases", "examples,fuzzing", "--no-shrink",
            "--suppress-health-check", "all",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert httpx.get(f"{address}/health").status_code == 200
