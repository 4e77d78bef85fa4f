"""The benchmarks of one picture with true captions and a false one: reading their rows, and scoring them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from fwd2bot_eval.runs import Chunk, Item, PictureFile, Record, Records
from fwd2bot_eval.scorers import scorer_names
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks.files import chunked, placed, signature_of
from fwd2bot_eval.tasks.notes import coverage_notes, quoted
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.pairs_scoring import SCORERS, decisive, fits_of, names_text, scores_text

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True, kw_only=True)
class CaptionItem(Item):
    """A picture with captions that are true of it, and one that is not."""

    photo: str
    """What is resampled; the picture may be a part of it."""
    true: tuple[str, ...]
    false: str
    label: str = ""
    """A finer category than ``category``: the relation, or the pair of attributes."""


class CaptionTask:
    """Tasks of :class:`CaptionItem`: what they share but their files and their tables.

    Args:
        files: that the items were read from.
        photos: that the items are about.
    """

    name: str

    def __init__(
        self,
        options: TaskOptions,
        files: Sequence[Path],
        entries: Sequence[tuple[PictureFile, CaptionItem]],
        *,
        photos: Sequence[Path],
    ) -> None:
        self.data = str(options.data)
        self.signature = signature_of(files, options, pictures=photos)
        self.settings = options.settings
        self._limit = options.limit
        self.total = len(entries)
        self._groups: dict[str, tuple[PictureFile, list[CaptionItem]]] = {}
        for picture, item in entries:
            self._groups.setdefault(picture.key, (picture, []))[1].append(item)

    def chunks(self) -> Iterator[Chunk[CaptionItem]]:
        return chunked(((picture,), partial(placed, items)) for picture, items in self._groups.values())

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[CaptionItem]) -> list[Record]:
        """Records with, by scorer, the least margin of a true caption over the false one."""
        assert seen is not None
        names = scorer_names(subject)
        fits = fits_of(subject, seen, [(i.rows[0], text) for i in items for text in (*i.true, i.false)])
        records = []
        for item in items:
            (row,) = item.rows
            true, false = [fits[row, text] for text in item.true], fits[row, item.false]
            margins = {name: min(fit[name] for fit in true) - false[name] for name in names}
            said = [("true", text, fit) for text, fit in zip(item.true, true, strict=True)]
            records.append(
                Record(
                    item=item.id,
                    cluster=item.photo,
                    category=item.category,
                    numbers=margins,
                    texts={SCORERS: names_text(names), "label": item.label},
                    right=margins[decisive(names)] > 0,
                    shown="\n".join(
                        f"- {kind}: {quoted(text)} ({scores_text(names, fit)})"
                        for kind, text, fit in [*said, ("false", item.false, false)]
                    ),
                    rows=item.rows,
                )
            )
        return records

    def _notes(self, records: Records) -> list[str]:
        return coverage_notes(len(records), self.total, self._limit)
