"""``fwd2bot info``."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import FakeModels, Run


def test_what_is_shown(fwd2bot: Run, indexed: Path, models: FakeModels) -> None:
    fields = dict(line.split("\t") for line in fwd2bot("info").out.splitlines())
    assert fields["index"] == ".fwd2bot"
    assert fields["model"] == "default, trained"
    assert fields["summary tokens"] == "4 x 8 per picture, stored as pq8"
    assert fields["files"] == "3 indexed, 0 skipped"
    assert models.loads == 0


def test_json_adds_up(fwd2bot: Run, indexed: Path) -> None:
    document = json.loads(fwd2bot("info", "--json").out)
    assert document["index"] == str(indexed / ".fwd2bot")
    assert (document["model"], document["mode"], document["codec"]) == ("default", "trained", "pq8")
    assert (document["files"], document["pictures"], document["skipped"]) == (3, 3, [])
    on_disk = sum(p.stat().st_size for p in (indexed / ".fwd2bot").rglob("*") if p.is_file())
    size = document["bytes"]
    assert size["total"] == on_disk
    assert size["tokens"] + size["names_and_embeddings"] <= on_disk
    assert size["per_picture"] == on_disk / 3


def test_no_index(fwd2bot: Run, place: Path) -> None:
    outcome = fwd2bot("info")
    assert outcome.code == 2
    assert "fwd2bot index" in outcome.sentence  # says how to make one
    assert list(place.iterdir()) == []
