"""Pairs that differ in a few words: does the model prefer the caption that is true of the picture?

- :class:`SugarCrepe` (arXiv 2306.14610), :class:`SugarCrepePP` (arXiv 2406.11171), :class:`Aro` (arXiv 2210.01936): one
  picture, true captions, a false one.
- :class:`Winoground` (arXiv 2204.03162): two pictures, two captions.

Notable choices:

- Every way of scoring of :mod:`fwd2bot_eval.scorers` is a column, the text-only baseline among them: it tells how much
  of a score the sentences alone give away.
- A tie is a loss. Some rows cannot be won by anyone (SugarCrepe++ has false captions that equal a true one); they
  count, as they do in the published scores.
- Items about one photo are compressed, and resampled for the intervals, together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np

from fwd2bot_eval.results import Estimate, Summary, Table
from fwd2bot_eval.runs import Record, Records
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks.files import file_name, json_rows, need_files, require_pictures, row_picture, text_of
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.pairs_aro import Aro
from fwd2bot_eval.tasks.pairs_captions import CaptionItem, CaptionTask
from fwd2bot_eval.tasks.pairs_scoring import mean_shares, scorers_in, shares, wins_of
from fwd2bot_eval.tasks.pairs_winoground import Winoground

__all__ = ["Aro", "SugarCrepe", "SugarCrepePP", "Winoground"]

TEXT_COSINE: Final = "text cosine"


class _CocoCaptions(CaptionTask):
    """Captions of COCO's photos, a file to a category."""

    CATEGORIES: ClassVar[tuple[str, ...]]
    TRUE: ClassVar[tuple[str, ...]]
    """Keys of a row's true captions."""
    SOURCE: ClassVar[str]

    def __init__(self, options: TaskOptions) -> None:
        files = need_files(options, [f"{category}.json" for category in self.CATEGORIES], self.SOURCE)
        folder = options.data / "val2017"
        entries = []
        for path in files:
            for where, key, row in json_rows(path, options.limit):
                name = file_name(row, "filename", where)
                item = CaptionItem(
                    id=f"{path.stem}/{key}",
                    category=path.stem,
                    rows=(),
                    photo=name,
                    true=tuple(text_of(row, caption, where) for caption in self.TRUE),
                    false=text_of(row, "negative_caption", where),
                )
                entries.append((row_picture(folder / name, name, where), item))
        photos = [folder / photo for photo in dict.fromkeys(item.photo for _, item in entries)]
        require_pictures(
            photos,
            allow_missing=options.allow_missing,
            source="They are COCO's 2017 val images: download val2017.zip (1 GB) from cocodataset.org and unzip it to "
            f"{folder}.",
        )
        super().__init__(options, files, entries, photos=photos)


class SugarCrepe(_CocoCaptions):
    """SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): seven kinds of hard negatives for COCO captions, made so that a
    text-only model cannot tell them by their style.

    ``DIR`` holds the seven published files (``add_att.json`` ...) and COCO's photos under ``val2017/``. The scores are
    the accuracy of each kind, and means over kinds, which is how the paper's tables sum up.

    Raises:
        InputError: a file is missing or a row is malformed, or pictures are missing without ``allow_missing``.
    """

    name = "sugarcrepe"

    CATEGORIES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
    TRUE = ("caption",)
    SOURCE = "SugarCrepe is seven JSON files, in data/ of github.com/RAIVNLab/sugar-crepe."

    def summarise(self, records: Records) -> Summary:
        rows, notes = _by_category(records, self.CATEGORIES, ("replace", "swap", "add"))
        table = Table(
            title="SugarCrepe",
            row_header="category",
            columns=scorers_in(records),
            rows=rows,
            chance=dict.fromkeys(rows, 0.5),
            explanation="Share of items whose true caption scores higher than the false one; a tie is a loss. The "
            "averages are means over categories.",
        )
        return Summary(tables=[table], notes=[*self._notes(records), *notes])


class SugarCrepePP(_CocoCaptions):
    """SugarCrepe++ (Dumpala et al. 2024, arXiv 2406.11171): two true captions in different words, and a false one that
    looks like the first.

    ``DIR`` holds the five published files (a list of ``filename``, ``caption``, ``caption2``, ``negative_caption``) and
    COCO's photos under ``val2017/``. ITT: both true captions beat the false one for the picture. TOT, without the
    picture: the true captions are closer to each other than either is to the false one, by the cosine of their
    embeddings. Guessing a ranking of three wins either in a third of the cases.

    Raises:
        InputError: as :class:`SugarCrepe`.
    """

    name = "sugarcrepe-pp"

    CATEGORIES = ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
    TRUE = ("caption", "caption2")
    SOURCE = (
        "SugarCrepe++ is five JSON files, in data/ of github.com/Sri-Harsha/scpp (Aman-J/SugarCrepe_pp on the Hugging "
        "Face hub)."
    )

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[CaptionItem]) -> list[Record]:
        texts = list(dict.fromkeys(text for item in items for text in (*item.true, item.false)))
        embedding = dict(zip(texts, np.asarray(subject.embed_text(texts), np.float64), strict=True))
        records = []
        for item, record in zip(items, super().measure(subject, seen, items), strict=True):
            one, two, false = (embedding[text] for text in (*item.true, item.false))
            margin = float(one @ two - max(one @ false, two @ false))
            records.append(dataclasses.replace(record, numbers={**record.numbers, TEXT_COSINE: margin}))
        return records

    def summarise(self, records: Records) -> Summary:
        rows, notes = _by_category(records, self.CATEGORIES, ())
        text_rows, _ = _by_category(records, self.CATEGORIES, (), columns=[TEXT_COSINE])
        tables = [
            Table(
                title="SugarCrepe++ ITT",
                row_header="category",
                columns=scorers_in(records),
                rows=rows,
                chance=dict.fromkeys(rows, 1 / 3),
                explanation="Share of items both of whose true captions score higher than the false one; a tie is a "
                "loss. The average is the mean over categories.",
            ),
            Table(
                title="SugarCrepe++ TOT",
                row_header="category",
                columns=[TEXT_COSINE],
                rows=text_rows,
                chance=dict.fromkeys(text_rows, 1 / 3),
                explanation="Without the picture: share of items whose true captions are closer to each other than "
                "either is to the false one.",
            ),
        ]
        return Summary(tables=tables, notes=[*self._notes(records), *notes])


def _by_category(
    records: Records, categories: Sequence[str], kinds: Sequence[str], *, columns: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, Estimate]], list[str]]:
    """Rows of each category, of the mean over those that begin with each of ``kinds``, and of the mean over all; and
    notes of what could not be computed."""
    won, clusters, found = wins_of(records, columns or scorers_in(records)), records.clusters, records.categories
    rows = {name: shares(won, clusters, np.array([c == name for c in found])) for name in categories}
    for kind in kinds:
        members = [c for c in categories if c.startswith(f"{kind}_")]
        rows[f"{kind} average"] = mean_shares(won, clusters, found, members)
    rows["average"] = mean_shares(won, clusters, found, categories)
    lacking = [name for name in categories if name not in set(found)]
    notes = [f"No item of {', '.join(lacking)} was scored: averages that need them are left out."] if lacking else []
    return rows, notes
