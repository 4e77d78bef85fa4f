"""``fwd2bot verify`` and ``fwd2bot optimize``."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import pytest
from cli_helpers import FakeModels, Run, draw_colours

from fwd2bot_index.store import writing


@pytest.fixture
def index(place: Path, fwd2bot: Run) -> Path:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures", "--model", "default", "--codec", "float16").code == 0
    return place / ".fwd2bot"


def test_a_whole_index(index: Path, fwd2bot: Run) -> None:
    outcome = fwd2bot("verify")
    assert outcome.code == 0
    fields = dict(line.split("\t") for line in outcome.out.splitlines())
    assert fields["problems"] == "0"
    document = json.loads(fwd2bot("verify", "--json").out)
    assert document["whole"] is True
    assert document["index"] == str(index)
    assert document["files"] == document["pictures"] == document["decoded"] == int(fields["files"]) > 0


def test_damage_is_named(index: Path, fwd2bot: Run) -> None:
    lance.dataset(str(index / "tokens.lance")).delete("id > '0'")
    outcome = fwd2bot("verify")
    assert outcome.code == 1
    assert "is damaged" in outcome.sentence
    assert "has a row and no summary tokens" in outcome.err
    outcome = fwd2bot("verify", "--json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert document["whole"] is False
    assert document["problem_count"] == len(document["problems"]) == document["files"]


def test_the_model_has_changed(index: Path, fwd2bot: Run) -> None:
    outcome = fwd2bot("verify", models=FakeModels(fingerprint="fake-2"))
    assert outcome.code == 1
    assert "The model default has other weights" in outcome.err


@pytest.mark.parametrize("command", ["verify", "optimize"])
def test_no_index(place: Path, fwd2bot: Run, command: str) -> None:
    outcome = fwd2bot(command, "--index", "nowhere")
    assert outcome.code == 2
    assert "There is no index in" in outcome.sentence
    assert not (place / "nowhere").exists()


def test_optimize(index: Path, fwd2bot: Run, place: Path) -> None:
    before = fwd2bot("search", "red").out
    lance.dataset(str(index / "images.lance")).delete("uri like '%blue%'")
    outcome = fwd2bot("optimize", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["orphans"] == 1
    assert document["bytes_after"] > 0
    assert "0 pictures without a file removed" in fwd2bot("optimize").err
    assert fwd2bot("search", "red", "-n", "1").out.split("\t")[3] == before.splitlines()[0].split("\t")[3] + "\n"
    assert fwd2bot("verify").code == 0


def test_optimize_waits_for_no_writer(index: Path, fwd2bot: Run) -> None:
    with writing(index):
        outcome = fwd2bot("optimize")
    assert outcome.code == 1
    assert "Another process is writing" in outcome.sentence


def test_the_vectors_are_indexed_as_asked(index: Path, fwd2bot: Run) -> None:
    before = fwd2bot("search", "red").out
    assert "search\texact, faiss" in fwd2bot("info").out
    for kind in ("ivf", "ivf-rabitq", "hnsw", "lance", "auto"):
        document = json.loads(fwd2bot("optimize", "--vectors", kind, "--json").out)
        built = document["vectors"]["settings"]["kind"] if document["vectors"] else None
        assert built == (kind if kind not in ("lance", "auto") else None)
        assert [line.split("\t")[3] for line in fwd2bot("search", "red").out.splitlines()] == [
            line.split("\t")[3] for line in before.splitlines()
        ]
        method = json.loads(fwd2bot("info", "--json").out)["search"]["method"]
        assert method == {"auto": "exact", "lance": "lance IVF_FLAT"}.get(kind, kind)


def test_a_damaged_vector_index_is_no_damage(index: Path, fwd2bot: Run) -> None:
    outcome = fwd2bot("optimize", "--vectors", "ivf")
    assert "Searches use ivf over 3 pictures" in outcome.err
    next((index / "faiss").glob("*.faiss")).write_bytes(b"")
    for command in ("verify", "info"):
        outcome = fwd2bot(command)
        assert outcome.code == 0
        assert "The vector index cannot be used (a file has another size than was written)" in outcome.err
    assert fwd2bot("search", "red").code == 0
    assert fwd2bot("optimize", "--vectors", "ivf").code == 0
    assert "cannot be used" not in fwd2bot("info").err
