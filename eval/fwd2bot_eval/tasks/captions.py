"""One generated caption for each picture, from every column, against human ones: CIDEr-D.

Notable choices:

- The scorer is ``pycocoevalcap``'s, which published scores come from. Its tokenizer is a Java program; here a word is
  what :func:`words` says. Scores compare within this tool, and nearly with published ones.
- Rarity of words is counted in the references of the pictures that were scored, as the scorer does: scores of different
  splits, or of a part of one, do not compare. The intervals take that count as given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final

import numpy as np

from fwd2bot_eval.metrics import Floats, estimate
from fwd2bot_eval.results import Summary, Table
from fwd2bot_eval.runs import Chunk, Record, Records
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks.captioned import Captioned, captioned
from fwd2bot_eval.tasks.files import (
    chunked,
    placed,
)
from fwd2bot_eval.tasks.notes import coverage_notes, quoted
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import columns_in, columns_of, columns_text
from fwd2bot_index.errors import InputError

MAX_NEW_TOKENS: Final = 40
"""Of a caption."""


class Captions:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of generated captions.

    ``DIR``: as :func:`fwd2bot_eval.tasks.captioned.captioned` reads it.

    Raises:
        InputError: a file is missing, a row is malformed, pictures are missing without ``allow_missing``, or
            ``pycocoevalcap`` is not installed.
    """

    name = "captions"

    def __init__(self, options: TaskOptions) -> None:
        _scorer()  # hours later would be late
        source = captioned(options)
        for _, items in source.read(False):
            for item in items:
                _check_words(item)
        self.data = str(options.data)
        self.signature = source.signature(options)
        self.settings = options.settings
        self._source = source
        self._limit = options.limit
        self.total = sum(1 for _ in source.read(False))

    def chunks(self) -> Iterator[Chunk[Captioned]]:
        return chunked(((picture,), partial(placed, items)) for picture, items in self._source.read(True))

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Captioned]) -> list[Record]:
        """Records with each column's caption; scores need all of them, and come with the summary."""
        assert seen is not None
        columns = columns_of(subject, self.name)
        rows = [item.rows[0] for item in items]
        prompts = [subject.caption_prompt] * len(items)
        said = {c: seen.reader(c).generate(rows, prompts, max_new_tokens=MAX_NEW_TOKENS) for c in columns}
        return [
            Record(
                item=item.id,
                cluster=item.cluster,
                category="all",
                texts={
                    "references": json.dumps(item.references),
                    **{f"said {column}": said[column][i] for column in columns},
                    **columns_text(columns),
                },
                right=familiar(said[columns[0]][i], item.references) >= 0.5,
                shown="\n".join(
                    [
                        *(f"- {column}: {quoted(said[column][i])}" for column in columns),
                        *(f"- a person: {quoted(reference)}" for reference in item.references),
                    ]
                ),
                rows=item.rows,
            )
            for i, item in enumerate(items)
        ]

    def summarise(self, records: Records) -> Summary:
        columns = columns_in(records)
        references = [json.loads(text) for text in records.column("references")]
        scores = {column: cider(records.column(f"said {column}"), references) for column in columns}
        table = Table(
            title="CIDEr-D",
            row_header="pictures",
            columns=columns,
            rows={"all": {column: estimate(scores[column], records.clusters, scale=(0, 10)) for column in columns}},
            explanation="From 0 to 10, higher is better (papers often print it times 100). Rarity of words is counted "
            "in the references of these pictures, and the intervals take it as given.",
        )
        notes = [
            "Words are split by this tool's own rule, not by COCO's Java program: scores compare within this tool, and "
            "nearly with published ones.",
            "Successes and failures below are sorted by whether half of a caption's words are in a person's caption.",
        ]
        return Summary(tables=[table], notes=[*coverage_notes(len(records), self.total, self._limit), *notes])


def words(text: str) -> list[str]:
    """In lower case, of letters and digits; apostrophes inside of a word go.

    >>> words("A dog's ball, in mid-air.")
    ['a', 'dogs', 'ball', 'in', 'mid', 'air']
    """
    return re.findall(r"[^\W_]+", re.sub(r"(?<=\w)['’](?=\w)", "", text.lower()))


def familiar(caption: str, references: Sequence[str]) -> float:
    """Share of the caption's words that are in a reference."""
    said = words(caption)
    known = {word for reference in references for word in words(reference)}
    return sum(word in known for word in said) / len(said) if said else 0.0


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr-D [pictures] of a caption each, 0 to 10.

    With a single picture no word is rarer than another, and the score is 0.

    Raises:
        InputError: ``pycocoevalcap`` is not installed.
    """
    spoken = {i: [" ".join(words(caption))] for i, caption in enumerate(captions)}
    human = {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(references)}
    _, scores = _scorer()().compute_score(human, spoken)
    return np.asarray(scores, np.float64)


def _scorer() -> Any:
    try:
        return import_module("pycocoevalcap.cider.cider").Cider
    except ImportError as e:
        raise InputError("Captions are scored by pycocoevalcap: pip install 'fwd2bot[eval]'.") from e


def _check_words(item: Captioned) -> None:
    """
    Raises:
        InputError: a reference is nothing but punctuation.
    """
    for text in item.references:
        if not words(text):
            raise InputError(f"{item.where} has the caption {text!r}, which has no words.")
