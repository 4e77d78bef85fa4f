"""The server against its own description: whatever fits it or does not, no answer is a crash or undescribed.

A larger run by hand is told of in docs/serving.md.
"""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = 12
"""Of each endpoint."""


@pytest.fixture(scope="module")
def api(address: str) -> object:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_as_described(case: object) -> None:
    case.call_and_validate()  # type: ignore[attr-defined]


def test_still_there(address: str) -> None:
    assert httpx.get(f"{address}/health").status_code == 200
