"""The HTML page: whole in itself, escaped, and patient with pictures that are gone."""

from __future__ import annotations

import base64
import os
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from fwd2bot_cli.gallery import Card, Section, gallery, write_gallery
from fwd2bot_index.errors import Fwd2BotError
from fwd2bot_index.thumbnails import thumbnail

EVIL = '<script>alert("&")</script> $title ${body}'


class Page(HTMLParser):
    """Tags with their attributes, and the text; fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(uri: Path, text: str = "a title") -> str:
    return gallery(text, [Section(title=text, cards=[Card(uri=str(uri), title=text, notes=(text,))])])


def test_a_thumbnail_is_inside_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "wide.png"
    Image.new("RGBA", (1000, 500), (255, 0, 0, 128)).save(picture)
    (source,) = [attributes["src"] for tag, attributes in Page(page_of(picture)).tags if tag == "img"]
    assert source is not None
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.size == (320, 320 // 2)
    assert image.getpixel((10, 10)) == pytest.approx((255, 127, 127), abs=3)  # half transparent red on white


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    text = page_of(picture)
    assert "<script" not in text
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert str(tmp_path) not in text


def test_everything_is_escaped(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path / "gone.png", EVIL))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) == 5  # <title>, heading, section, card, note: each as it was written


def test_a_picture_that_is_gone_gets_a_placeholder(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path / "gone.png"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert "picture not found" in page.text


def test_a_broken_picture_and_a_pipe_have_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "pipe.png")
    assert thumbnail(tmp_path / "broken.png") is None
    assert thumbnail(tmp_path / "pipe.png") is None


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(Fwd2BotError, match=r"page\.html could not be written: Is a directory"):
        write_gallery(tmp_path / "page.html", "t", [])
