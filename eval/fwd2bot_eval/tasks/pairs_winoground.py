"""Winoground: two captions of the same words, two pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fwd2bot_eval.results import Summary, Table
from fwd2bot_eval.runs import Chunk, Item, PictureFile, Record, Records
from fwd2bot_eval.scorers import scorer_names
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks.files import (
    chunked,
    file_name,
    find_picture,
    need_files,
    placed,
    read_jsonl,
    require_pictures,
    row_picture,
    signature_of,
    text_of,
)
from fwd2bot_eval.tasks.notes import coverage_notes, quoted
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.pairs_scoring import SCORERS, decisive, fits_of, names_text, scorers_in, scores_text, shares
from fwd2bot_index.errors import InputError


@dataclass(frozen=True, kw_only=True)
class WinogroundItem(Item):
    """``rows``: picture 0 and picture 1, of which ``captions`` 0 and 1 are true."""

    cluster: str
    """A name of all the items that are bound to this one by pictures that they share."""
    captions: tuple[str, str]
    tag: str


class Winoground:
    """Winoground (Thrush et al. 2022, arXiv 2204.03162): two captions of the same words, two pictures.

    With s(c, i) the score of caption c for picture i, an item is won

    - by text: s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1), each picture prefers its caption;
    - by image: s(0, 0) > s(0, 1) and s(1, 1) > s(1, 0), each caption prefers its picture;
    - as a group: both.

    Guessing wins 1/4, 1/4 and 1/6. ``DIR`` holds ``examples.jsonl`` and ``images/``; the rows name pictures without
    their extension.

    Raises:
        InputError: a file is missing or a row is malformed, or pictures are missing without ``allow_missing``.
    """

    name = "winoground"
    CHANCE: Final = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}

    def __init__(self, options: TaskOptions) -> None:
        source = "Winoground is facebook/winoground on the Hugging Face hub (examples.jsonl, images.zip)."
        files = need_files(options, ["examples.jsonl"], source)
        folder = options.data / "images"
        entries: list[tuple[tuple[PictureFile, PictureFile], WinogroundItem]] = []
        paths: list[Path] = []
        for line, row in read_jsonl(files[0]):
            if len(entries) == options.limit:
                break
            where = f"{files[0]}, line {line}"
            names = [file_name(row, key, where) for key in ("image_0", "image_1")]
            found = [find_picture(folder, name) for name in names]
            paths += found
            one, two = (row_picture(path, name, where) for path, name in zip(found, names, strict=True))
            item = WinogroundItem(
                id=str(row.get("id", line)),
                category=text_of(row, "collapsed_tag", where),
                rows=(),
                cluster="",
                captions=(text_of(row, "caption_0", where), text_of(row, "caption_1", where)),
                tag=_tag(row, where),
            )
            entries.append(((one, two), item))
        if not entries:
            raise InputError(f"{files[0]} holds no items.")
        clusters = connected([(one.key, two.key) for (one, two), _ in entries])
        self._entries = [
            (pictures, dataclasses.replace(item, cluster=cluster))
            for (pictures, item), cluster in zip(entries, clusters, strict=True)
        ]
        self.total = len(entries)
        require_pictures(
            paths, allow_missing=options.allow_missing, source=f"Unzip images.zip to {options.data}. {source}"
        )
        self.data = str(options.data)
        self.signature = signature_of(files, options, pictures=paths)
        self.settings = options.settings
        self._limit = options.limit

    def chunks(self) -> Iterator[Chunk[WinogroundItem]]:
        return chunked((pictures, partial(placed, [item])) for pictures, item in self._entries)

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[WinogroundItem]) -> list[Record]:
        """Records with, by scorer, the four scores: ``cosine c0 i1`` is that of caption 0 for picture 1."""
        assert seen is not None
        names = scorer_names(subject)
        fits = fits_of(subject, seen, [(row, text) for i in items for text in i.captions for row in i.rows])
        records = []
        for item in items:
            four = {(c, i): fits[row, text] for c, text in enumerate(item.captions) for i, row in enumerate(item.rows)}
            numbers = {_four(name, c, i): fit[name] for name in names for (c, i), fit in four.items()}
            name = decisive(names)
            records.append(
                Record(
                    item=item.id,
                    cluster=item.cluster,
                    category=item.category,
                    numbers=numbers,
                    texts={SCORERS: names_text(names), "tag": item.tag},
                    right=bool(_wins({ci: np.float64(fit[name]) for ci, fit in four.items()})["group"]),
                    shown="\n".join(
                        f"- true of picture {c + 1}: {quoted(text)} (picture 1: {scores_text(names, four[c, 0])}; "
                        f"picture 2: {scores_text(names, four[c, 1])})"
                        for c, text in enumerate(item.captions)
                    ),
                    rows=item.rows,
                )
            )
        return records

    def summarise(self, records: Records) -> Summary:
        columns, clusters = scorers_in(records), records.clusters
        wins = {
            name: _wins({(c, i): records.numbers(_four(name, c, i)) for c in (0, 1) for i in (0, 1)})
            for name in columns
        }
        collapsed, tags = np.array(records.categories), np.array(records.column("tag"))
        groups = {"overall": np.ones(len(records), np.bool_)}
        groups |= {str(value): collapsed == value for value in dict.fromkeys(collapsed.tolist())}
        groups |= {f"tag: {value}": tags == value for value in sorted(set(tags.tolist()) - {""})}
        tables = []
        for score, chance in self.CHANCE.items():
            won = {name: np.asarray(wins[name][score]) for name in columns}
            rows = {group: shares(won, clusters, inside) for group, inside in groups.items()}
            explanation = (
                f"The {score} score, overall, by collapsed tag and by tag; a tie is a loss, so that a scorer that does "
                "not look at the pictures has 0."
            )
            tables.append(
                Table(
                    title=f"{score} score",
                    row_header="tag",
                    columns=columns,
                    rows=rows,
                    chance=dict.fromkeys(rows, chance),
                    explanation=explanation,
                )
            )
        return Summary(tables=tables, notes=coverage_notes(len(records), self.total, self._limit))


def connected(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Of each pair, a name of its connected component in the graph whose edges the pairs are.

    >>> connected([("a", "b"), ("c", "d"), ("b", "c"), ("x", "x")])
    ['a', 'a', 'a', 'x']
    """
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := above.setdefault(name, name)) != name:
            name = parent
        return name

    for one, two in pairs:
        first, second = sorted((root(one), root(two)))
        above[second] = first
    return [root(one) for one, _ in pairs]


def _four(name: str, caption: int, picture: int) -> str:
    return f"{name} c{caption} i{picture}"


def _wins(s: Mapping[tuple[int, int], Any]) -> dict[str, Any]:
    """Text, image and group score from the scores by caption and picture, numbers or [items]."""
    text = (s[0, 0] > s[1, 0]) & (s[1, 1] > s[0, 1])
    image = (s[0, 0] > s[0, 1]) & (s[1, 1] > s[1, 0])
    return {"text": text, "image": image, "group": text & image}


def _tag(row: Any, where: str) -> str:
    """The fine tag, which may be empty: such an item counts only in the coarser rows."""
    value = row.get("tag") if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise InputError(f"{where} has no text under 'tag'.")
    return value.strip()
