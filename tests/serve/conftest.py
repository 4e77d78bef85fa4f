"""One server for the tests that only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served_index import add_pictures, describe, serving

from fwd2bot_serve.settings import Settings

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "dark": (60, 10, 10)}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The index's folder and the ids of its pictures by name."""
    folder = tmp_path_factory.mktemp("served")
    ids = add_pictures(folder / "index", folder / "pictures", COLOURS)
    describe(folder / "index", folder / "pictures", "year", {"red": 2020, "green": 2021, "blue": 2022, "dark": 2023})
    describe(folder / "index", folder / "pictures", "place", {"red": "Ulm", "green": "Ulm", "blue": "Bonn"})
    return folder / "index", ids


@pytest.fixture(scope="session")
def ids(corpus: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return corpus[1]


@pytest.fixture(scope="session")
def pictures(corpus: tuple[Path, dict[str, str]]) -> Path:
    return corpus[0].parent / "pictures"


@pytest.fixture(scope="session")
def address(corpus: tuple[Path, dict[str, str]]) -> Iterator[str]:
    with serving(corpus[0], Settings(read_only=True, max_body=2**20, max_pixels=1_000_000)) as address:
        yield address


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=20) as client:
        yield client
