from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pictures import RED, encoded, noise, plain, write
from PIL import Image
from rich.console import Console

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_training.config import DataConfig, SourceConfig
from fwd2bot_training.data import DataReport, Mixture, inspect, write_preview

QUIET = Console(file=io.StringIO())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    jpeg = encoded(noise(), "JPEG")
    records: list[Any] = [
        {"image": "a.png", "captions": ["a <b>red</b> & wide field", "red"], "negatives": ["blue"]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "1+1"}, {"from": "gpt", "value": "<script>2"}]},
        {"conversations": []},
        {"image": "cut.jpg", "caption": "half"},
        {"image": "a.png", "word": "field", "caption": ""},
        {"image": "big.png", "word": "noise"},
    ]
    (tmp_path / "c.json").write_text(json.dumps(records))
    pictures = {"a.png": plain(RED), "cut.jpg": jpeg[: len(jpeg) // 2], "big.png": encoded(noise((900, 600)), "PNG")}
    return write(tmp_path, pictures)


def config(**keys: Any) -> DataConfig:
    sources = (
        SourceConfig(name="talk", kind="conversations", path="c.json"),
        SourceConfig(name="drawn", kind="scenes", size=32),
    )
    return DataConfig(**{"sources": sources, "max_caption_tokens": 3, **keys})


def test_the_first_bad_row_stops_by_name(root: Path) -> None:
    with pytest.raises(InputError, match=r"c\.json, record 3 .*its picture cannot be used"):
        inspect(config(), root=root, console=QUIET)


def test_everything_is_read_and_counted(root: Path) -> None:
    report = inspect(config(bad_rows="skip"), root=root, console=QUIET)
    talk, drawn = report.sources
    assert (talk.rows, talk.pictures, talk.left_out) == (5, 3, 1)
    assert [b.split(" (")[0].rsplit("/")[-1] for b in talk.bad] == ["c.json, record 3", "c.json, record 4"]
    assert "captions" not in talk.bad[1]
    assert "caption[0] is empty" in talk.bad[1]
    assert (talk.segments, talk.short_captions, talk.long_captions, talk.negatives) == (2, 1, 1, 1)
    lengths = [len("a <b>red</b> & wide field") + 3 + 4, len("1+1\n<script>2"), 5]
    assert (talk.mean_length, talk.max_length) == (sum(lengths) / 3, max(lengths))
    assert (drawn.rows, drawn.pictures) == (0, 200)
    assert 200 * 5 < drawn.segments < 200 * 11
    assert drawn.short_captions + drawn.long_captions == 200
    assert (report.rows, report.pictures, report.bad) == (5, 203, 2)


def test_captions_are_counted_as_they_are_routed(root: Path) -> None:
    data = config(bad_rows="skip", max_caption_tokens=24)
    by_letter = inspect(data, root=root, count_tokens=len, console=QUIET).sources[0]
    assert (by_letter.short_captions, by_letter.long_captions) == (1, 1)
    by_word = inspect(data, root=root, console=QUIET).sources[0]
    assert (by_word.short_captions, by_word.long_captions) == (2, 0)


def test_a_source_without_a_usable_row_is_refused(root: Path) -> None:
    (root / "c.json").write_text(json.dumps([{"image": "cut.jpg", "caption": "half"}]))
    with pytest.raises(InputError, match=r"None of the 1 rows of the source 'talk' .*The first: .*record 0"):
        inspect(config(bad_rows="skip"), root=root, console=QUIET)


def page(root: Path, data: DataConfig) -> tuple[str, DataReport]:
    report = inspect(data, root=root, console=QUIET)
    mixture = Mixture.from_config(data, root=root, seed=0, batch_size=2)
    write_preview(report, mixture, root / "preview.html", samples=4)
    return (root / "preview.html").read_text(), report


def test_the_page_shows_samples_and_loads_nothing(root: Path) -> None:
    html, report = page(root, config(bad_rows="skip"))
    images = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(images) == 4 + 4
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
            assert max(opened.size) <= 320
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "<script" not in html
    assert "&lt;script&gt;2" in html
    assert "<b>" not in html
    assert "prefers-color-scheme: dark" in html
    assert "endless" in html
    assert all(reason.split(": ", 1)[1].split("'")[0] in html for reason in report.sources[0].bad)
    assert "describe the image." in html


def test_the_page_shows_what_the_rules_make(root: Path) -> None:
    (root / "c.json").write_text(json.dumps([{"image": "a.png", "caption": "red dogs"}]))
    assert "hard negative" in page(root, config(negatives="rules", sources=config().sources[:1]))[0]
    assert "hard negative" not in page(root, config(negatives="given", sources=config().sources[:1]))[0]


def test_a_page_that_cannot_be_written_is_told(root: Path) -> None:
    data = config(bad_rows="skip")
    report = inspect(data, root=root, console=QUIET)
    with pytest.raises(Fwd2BotError, match="could not be written"):
        write_preview(report, Mixture.from_config(data, root=root, seed=0, batch_size=2), root / "no" / "x.html")
