"""The commands on an index in an object store, of pictures that are in one too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import COLOURS, Run
from pictures import plain
from s3_server import Bucket, new_bucket, s3_server, use


@pytest.fixture
def bucket(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3_server() as door:
        use(monkeypatch, door)
        bucket = new_bucket(door)
        bucket.put({f"pictures/{name}.png": plain(colour) for name, colour in COLOURS.items()})
        yield bucket


def test_every_command(bucket: Bucket, fwd2bot: Run, place: Path) -> None:
    index = f"{bucket.uri}/index"
    where = ("--index", index)
    done = fwd2bot("index", f"{bucket.uri}/pictures", *where, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["index"], report["added"]) == (index, 3)
    assert json.loads(fwd2bot("info", *where, "--json").out)["index"] == index
    found = fwd2bot("search", "red", *where, "--paths-only", "--top", "1")
    assert found.out.splitlines() == [f"{bucket.uri}/pictures/red.png"]
    like = fwd2bot("search", "--image", f"{bucket.uri}/pictures/blue.png", *where, "--paths-only", "--top", "1")
    assert like.out.splitlines() == [f"{bucket.uri}/pictures/blue.png"]
    asked = fwd2bot("ask", "which colour?", "--image", f"{bucket.uri}/pictures/green.png", *where)
    assert asked.out.strip() == "green"
    asked = fwd2bot("annotate", "is it red?", "--choices", "yes,no", "--column", "red", *where)
    assert asked.code == 0, asked.err
    found = fwd2bot("search", "green", "--where", "red", *where, "--paths-only")
    assert found.out.splitlines() == [f"{bucket.uri}/pictures/red.png"]
    page = fwd2bot("search", "red", *where, "--html", place / "page.html")
    assert page.code == 0
    assert (place / "page.html").read_text().count("data:image/jpeg") == 3
    for command in ("optimize", "verify", "dedup"):
        assert fwd2bot(command, *where).code == 0
    assert not list(place.glob("s3:*"))  # a path that was made of a URI


def test_what_is_wrong_is_one_sentence(bucket: Bucket, fwd2bot: Run) -> None:
    assert "There is no index in" in fwd2bot("search", "red", "--index", f"{bucket.uri}/none").sentence
    assert "no bucket nowhere" in fwd2bot("search", "red", "--index", "s3://nowhere/x").sentence
    assert "no bucket nowhere" in fwd2bot("index", "s3://nowhere/x", "--index", f"{bucket.uri}/none").sentence
    unknown = fwd2bot("index", "ftp://host/x")
    assert (unknown.code, "s3://" in unknown.sentence) == (2, True)
    image = fwd2bot("search", "--image", f"{bucket.uri}/none.png", "--index", f"{bucket.uri}/none")
    assert "There is no index in" in image.sentence
