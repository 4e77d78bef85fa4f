"""Reading everything before hours are spent: every row and picture of every source, counted, and some of them shown."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_training.config import DataConfig, SourceConfig
from fwd2bot_training.data.example import Example, Source
from fwd2bot_training.data.mixture import Mixture
from fwd2bot_training.data.rows import RowSource
from fwd2bot_training.data.sources import open_source
from fwd2bot_training.data.texts import Routing

SCENES_READ: Final = 200
"""Of an endless source."""
_AT_ONCE: Final = 256
_AFTER_ANY_CURRICULUM: Final = 2**31
_SIDE: Final = 320


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    name: str
    kind: str
    path: str
    rows: int
    """0: endless."""
    pictures: int
    """Decoded, each row's own."""
    segments: int
    """Questions and other things to answer, apart from captions."""
    short_captions: int
    """Short enough for the contrastive loss."""
    long_captions: int
    negatives: int
    mean_length: float
    """Characters of a row's texts."""
    max_length: int
    left_out: int
    """Records without a picture."""
    bad: tuple[str, ...]
    """Rows that cannot be used, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class DataReport:
    sources: tuple[SourceReport, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.sources)

    @property
    def pictures(self) -> int:
        return sum(s.pictures for s in self.sources)

    @property
    def bad(self) -> int:
        return sum(len(s.bad) for s in self.sources)


@dataclass(frozen=True, kw_only=True)
class _Row:
    segments: int
    captions: Sequence[str]
    negatives: int
    length: int


def inspect(
    data: DataConfig,
    *,
    root: Path | None,
    count_tokens: Callable[[str], int] | None = None,
    console: Console | None = None,
) -> DataReport:
    """Read every row of every source and decode every picture, with a progress bar; of scenes a sample.

    Args:
        count_tokens: as for `Mixture.from_config`.
        console: where the bar goes; None: stderr.
    Raises:
        InputError: a source cannot be opened, or none of its rows can be used; with ``data.bad_rows`` "stop" also the
            first row that cannot be used. Names the file and the row.
    """
    routing = Routing(max_caption_tokens=data.max_caption_tokens, count_tokens=count_tokens)
    opened = [(c, open_source(c, root=root, routing=routing, bad_rows=data.bad_rows)) for c in data.sources]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow decodes without holding the interpreter
        Progress(*columns, console=console or Console(stderr=True), transient=True) as bar,
    ):
        reports = []
        for config, source in opened:
            task = bar.add_task(config.name, total=len(source) or SCENES_READ)
            rows = _read_all(source, pool, partial(bar.advance, task))
            reports.append(_report(config, source, rows, routing, stop=data.bad_rows == "stop"))
    return DataReport(sources=tuple(reports))


def write_preview(report: DataReport, mixture: Mixture, path: Path, *, samples: int = 10) -> None:
    """One HTML page, pictures inside it: the counts, and ``samples`` examples of each source as training draws them.

    Raises:
        Fwd2BotError: it cannot be written.
    """
    drawn = [(s, [_shown(e) for e in _samples(mixture, s, samples)]) for s in report.sources]
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    try:
        path.write_text(page.render(report=report, drawn=drawn), encoding="utf-8")
    except OSError as e:
        raise Fwd2BotError(f"The preview {path} could not be written: {e.strerror or e}.") from e


def _read_all(source: Source, pool: ThreadPoolExecutor, advance: Callable[[int], None]) -> Iterator[_Row | InputError]:
    count = len(source) or SCENES_READ
    for first in range(0, count, _AT_ONCE):
        indices = range(first, min(count, first + _AT_ONCE))
        yield from pool.map(lambda index: _read(source, index), indices)
        advance(len(indices))


def _read(source: Source, index: int) -> _Row | InputError:
    if not isinstance(source, RowSource):
        example = source.example(index, np.random.default_rng(index), step=_AFTER_ANY_CURRICULUM)
        said = [f"{s.prompt}{s.answer}" for s in example.segments]
        captions = [example.caption] if example.caption else []
        length = sum(map(len, [*said, *captions]))
        return _Row(segments=len(said), captions=captions, negatives=len(example.negatives), length=length)
    try:
        row = source.row(index)
        source.picture(index)
    except InputError as e:
        return e
    return _Row(
        segments=len(row.segments) + (row.word is not None),
        captions=row.captions,
        negatives=len(row.negatives),
        length=sum(map(len, row)),
    )


def _report(
    config: SourceConfig, source: Source, rows: Iterator[_Row | InputError], routing: Routing, *, stop: bool
) -> SourceReport:
    counts: Counter[str] = Counter()
    longest = 0
    bad: list[str] = []
    for row in rows:
        if isinstance(row, InputError):
            if stop:
                raise row
            bad.append(str(row))
            continue
        short = sum(map(routing.is_short, row.captions))
        counts.update(
            pictures=1,
            segments=row.segments,
            short=short,
            long=len(row.captions) - short,
            negatives=row.negatives,
            length=row.length,
        )
        longest = max(longest, row.length)
    if not counts["pictures"]:
        raise InputError(f"None of the {len(bad)} rows of the source {config.name!r} can be used. The first: {bad[0]}")
    return SourceReport(
        name=config.name,
        kind=config.kind,
        path=config.path,
        rows=len(source),
        pictures=counts["pictures"],
        segments=counts["segments"],
        short_captions=counts["short"],
        long_captions=counts["long"],
        negatives=counts["negatives"],
        mean_length=counts["length"] / counts["pictures"],
        max_length=longest,
        left_out=source.left_out if isinstance(source, RowSource) else 0,
        bad=tuple(bad),
    )


def _samples(mixture: Mixture, source: SourceReport, count: int) -> list[Example]:
    return mixture.samples(source.name, min(count, source.rows or count), step=_AFTER_ANY_CURRICULUM)


def _shown(example: Example) -> dict[str, Any]:
    return {"example": example, "picture": _data_uri(example.image), "size": "{} x {}".format(*example.image.size)}


def _data_uri(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fwd2bot">
<title>Training data</title>
<style>
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --line: #ddd; --text: #1c1c1c; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161616; --card: #222; --line: #3a3a3a; --text: #eee; --soft: #aaa; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure img { display: block; width: 100%; height: 14rem; object-fit: contain; background: var(--page); }
figcaption { padding: .6rem .8rem; overflow-wrap: anywhere; }
dl { margin: 0; }
dt { color: var(--soft); }
dt, dd { white-space: pre-line; }
dd { margin: 0 0 .4rem; }
.tag { color: var(--soft); font-size: .85em; }
.bad { color: #c0392b; }
</style>
</head>
<body>
<h1>Training data</h1>
<div class="wide">
<table>
<tr><th>source</th><th>kind</th><th>rows</th><th>pictures</th><th>segments</th><th>short captions</th>
<th>long captions</th><th>negatives</th><th>characters, mean</th><th>longest</th><th>left out</th><th>bad</th></tr>
{% for s in report.sources %}
<tr><td>{{ s.name }}</td><td>{{ s.kind }}</td><td>{{ s.rows or "endless" }}</td><td>{{ s.pictures }}</td>
<td>{{ s.segments }}</td><td>{{ s.short_captions }}</td><td>{{ s.long_captions }}</td><td>{{ s.negatives }}</td>
<td>{{ "%.0f" % s.mean_length }}</td><td>{{ s.max_length }}</td><td>{{ s.left_out }}</td>
<td>{{ s.bad | length }}</td></tr>
{% endfor %}
</table>
</div>
{% for source, shown in drawn %}
<section>
<h2>{{ source.name }}</h2>
{% for reason in source.bad[:10] %}
<p class="bad">{{ reason }}</p>
{% endfor %}
{% if source.bad | length > 10 %}
<p class="bad">and {{ source.bad | length - 10 }} more</p>
{% endif %}
<div class="cards">
{% for s in shown %}
<figure><img src="{{ s.picture }}" alt="sample {{ loop.index }}" title="{{ s.size }}" loading="lazy"><figcaption><dl>
{%- if s.example.caption is not none %}
<dt>contrastive</dt><dd>{{ s.example.caption }}</dd>
{%- endif %}
{%- for n in s.example.negatives %}
<dt>hard negative</dt><dd>{{ n }}</dd>
{%- endfor %}
{%- for g in s.example.segments %}
<dt>{{ g.prompt }} <span class="tag">{{ g.kind }}</span></dt><dd>{{ g.answer }}</dd>
{%- endfor %}
</dl></figcaption></figure>
{% endfor %}
</div>
</section>
{% endfor %}
</body>
</html>
"""
