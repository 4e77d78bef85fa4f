"""``--metadata`` from the command line, and where it shows."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import Run, draw_colours


def test_metadata(place: Path, fwd2bot: Run) -> None:
    draw_colours(place / "pictures")
    (place / "m.jsonl").write_text(
        '{"path": "pictures/red.png", "day": "2020-01-02T03:04:05", "n": 1}\n{"path": "gone.png", "n": 2}\n'
    )
    outcome = fwd2bot("index", "pictures", "--metadata", "m.jsonl")
    assert outcome.code == 0
    assert "1 with new metadata" in outcome.err
    assert "1 names in the metadata are of no file in the index: gone.png" in outcome.err
    document = json.loads(fwd2bot("index", "pictures", "--metadata", "m.jsonl", "--json").out)
    assert (document["described"], document["unmatched"]) == (0, ["gone.png"])
    hits = json.loads(fwd2bot("search", "red", "--json").out)["hits"]
    assert hits[0]["metadata"] == {"day": "2020-01-02T03:04:05", "n": 1}
    assert hits[1]["metadata"] == {"day": None, "n": None}
    assert json.loads(fwd2bot("info", "--json").out)["columns"] == {"day": "timestamp[s]", "n": "int64"}
    assert "columns\tday (timestamp[s]), n (int64)\n" in fwd2bot("info").out


def test_a_table_that_cannot_be_used(place: Path, fwd2bot: Run) -> None:
    draw_colours(place / "pictures")
    (place / "m.csv").write_text("name,year\nred.png,2020\n")
    outcome = fwd2bot("index", "pictures", "--metadata", "m.csv")
    assert outcome.code == 2
    assert "must name each file in one column" in outcome.sentence
    assert not (place / ".fwd2bot" / "manifest.json").exists()


def test_a_number_that_is_none_in_json(place: Path, fwd2bot: Run) -> None:
    draw_colours(place / "pictures")
    (place / "m.csv").write_text("path,ratio\npictures/red.png,inf\n")
    fwd2bot("index", "pictures", "--metadata", "m.csv")
    out = fwd2bot("search", "red", "--json", "--where", "ratio > 5").out
    assert "Infinity" not in out
    assert json.loads(out)["hits"][0]["metadata"] == {"ratio": None}
