"""Results as tables and in a notebook."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pictures import RED, plain, write

from fwd2bot_index.errors import InputError
from fwd2bot_index.results import SHOWN, Hits
from fwd2bot_index.types import Hit


def hit(rank: int, uri: str) -> Hit:
    return Hit(rank=rank, score=0.5, id="a" * 32, uri=uri, width=3, height=4, z=1.5, copies=("b.png",))


def test_a_table_has_every_field() -> None:
    hits = Hits([hit(1, "a.png"), hit(2, "c.png")])
    table = hits.to_arrow()
    assert table.column_names == ["rank", "score", "id", "uri", "width", "height", "z", "match", "copies"]
    assert table.to_pylist()[1] == {
        "rank": 2, "score": 0.5, "id": "a" * 32, "uri": "c.png", "width": 3, "height": 4, "z": 1.5,
        "match": None, "copies": ["b.png"],
    }  # fmt: skip
    assert Hits().to_arrow().num_rows == 0
    pandas = pytest.importorskip("pandas")
    frame = hits.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["uri"]) == ["a.png", "c.png"]


def test_without_pandas_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        Hits().to_pandas()


def test_a_notebook_shows_the_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"red <b>.png": plain(RED)})
    page = Hits([hit(1, str(tmp_path / "red <b>.png")), hit(2, str(tmp_path / "gone.png"))])._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count("picture not found") == 1
    assert "1. 0.500 red &lt;b&gt;.png" in page
    many = Hits([hit(i, "gone.png") for i in range(SHOWN + 5)])._repr_html_()
    assert many.count("<figure") == SHOWN
    assert "and 5 more" in many
