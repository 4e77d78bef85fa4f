"""What the benchmarks of questions share: asking in every column, and tables by category.

A benchmark is a :class:`Source` of questions (:mod:`~fwd2bot_eval.tasks.vqa_json`,
:mod:`~fwd2bot_eval.tasks.vqa_parquet`, :mod:`~fwd2bot_eval.tasks.vqa_mmbench`) and one of the classes below, which
says how they are asked and scored.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np

from fwd2bot_eval.metrics import Floats, estimate
from fwd2bot_eval.results import Estimate, Summary, Table
from fwd2bot_eval.runs import Chunk, Item, ItemT, PictureFile, Record, Records
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks.files import chunked, placed, signature_of, text_of
from fwd2bot_eval.tasks.notes import coverage_notes, quoted
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_scores import exact_match, plain_answer
from fwd2bot_index.errors import InputError

MAX_NEW_TOKENS: Final = 24
"""Of an answer in a few words."""
ALL: Final = "all"
"""The row over all items; as a category, that there are no others."""
MAJORITY: Final = "majority"
PER_TOKEN: Final = "per token"
_TIDIED: Final = (
    "Every model is asked as the bundled one was trained: a question is one line and ends in a mark, single "
    "underscores are spaces, and an option has no full stop behind it."
)
_UNDERSCORE: Final = re.compile("(?<!_)_(?!_)")
_CHANCE: Final = "chance"
_COLUMNS: Final = "columns"
"""The text of a record that names the subject's columns: a run that is only summarised has no subject."""


@dataclass(frozen=True, kw_only=True)
class Question(Item):
    """About one picture; as it is asked, so tidied (:func:`as_asked`)."""

    cluster: str
    question: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Open(Question):
    """Answered in the model's own words."""

    answers: tuple[str, ...]
    """All that the score looks at; often ``expected`` alone."""


@dataclass(frozen=True, kw_only=True)
class Choice(Question):
    """Answered with one of the options."""

    options: tuple[str, ...]
    right: int


QuestionT = TypeVar("QuestionT", bound=Question)


@dataclass(frozen=True, kw_only=True)
class Source(Generic[ItemT]):
    """Where a benchmark's items come from."""

    files: Sequence[Path]
    read: Callable[[bool], Iterator[tuple[PictureFile, Sequence[ItemT]]]]
    """Pictures with their items, the same at every call; with False the pictures need not be readable. Raises
    InputError for a malformed row."""
    pictures: Sequence[Path] = ()
    """Files beside ``files``: others of them make another run."""

    def signature(self, options: TaskOptions) -> str:
        """Of a run over these items."""
        return signature_of(self.files, options, pictures=self.pictures)


def as_asked(question: str) -> str:
    """A question as the bundled model's training tidies it: on one line, without spaces before punctuation and
    underscores (but in a blank to fill in, which training has none of), and with a question mark. (Its tokenizer lowers
    case by itself.)

    >>> as_asked("is a red  shape above a garbage_bin")
    'is a red shape above a garbage bin?'
    >>> as_asked("The cat_tail is ____ .")
    'The cat tail is ____.'
    """
    text = _spaced(question)
    return text + "?" if text[-1:].isalnum() else text


def question_of(row: Any, key: str, where: str) -> str:
    """The question under ``key``, :func:`as_asked`.

    Raises:
        InputError: there is none, or nothing remains of it.
    """
    question = as_asked(text_of(row, key, where))
    if not question:
        raise InputError(f"{where} has a question of no words under {key!r}.")
    return question


def as_said(answer: str) -> str:
    """An option as training tidies answers: as :func:`as_asked`, without the full stop behind a single sentence."""
    text = _spaced(answer)
    return (text.rstrip(". ") if text.endswith(".") and ". " not in text else text) or answer.strip()


def _spaced(text: str) -> str:
    return re.sub(r"\s+([.,;:!?])(?!\w)", r"\1", " ".join(_UNDERSCORE.sub(" ", text).split()))


def columns_of(subject: Subject, task: str) -> list[str]:
    """
    Raises:
        InputError: the model only embeds.
    """
    if not subject.columns:
        raise InputError(f"{subject.name} only embeds pictures and texts: it cannot answer the questions of {task}.")
    return list(subject.columns)


def columns_text(columns: Sequence[str]) -> dict[str, str]:
    """The text of a record that :func:`columns_in` reads."""
    return {_COLUMNS: json.dumps(list(columns))}


def columns_in(records: Records) -> list[str]:
    """The subject's columns, in its order."""
    columns: list[str] = json.loads(records.column(_COLUMNS)[0])
    return columns


def rows_by_category(values: Mapping[str, Floats], records: Records) -> dict[str, dict[str, Estimate]]:
    """By row (all, then each category) and column: the mean of ``values`` [items]."""
    return {
        row: {name: estimate(column[inside], clusters) for name, column in values.items()}
        for row, inside, clusters in selections(records)
    }


def selections(records: Records) -> Iterator[tuple[str, Any, list[str]]]:
    """Rows of a table: the name, which records [items] are inside, and the clusters of those."""
    clusters, categories = records.clusters, records.categories
    names = sorted(set(categories) - {ALL}, key=_natural)
    for name in [ALL, *names]:
        inside = np.array([name in (ALL, c) for c in categories])
        yield name, inside, [c for c, i in zip(clusters, inside, strict=True) if i]


def _natural(text: str) -> list[tuple[int, str]]:
    """9 words before 10 words."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


_MAJORITY_EXPLAINED: Final = (
    "“majority” always gives the most frequent answer of the category, counted in these very questions: a baseline "
    "that has seen the answers."
)


class QuestionTask(Generic[QuestionT]):
    """Reads a source; asks and scores in :meth:`measure`, which the classes below have."""

    name: str
    TITLE: ClassVar[str] = "accuracy"
    NOTES: ClassVar[Sequence[str]] = ()

    def __init__(self, options: TaskOptions, source: Source[QuestionT]) -> None:
        self.data = str(options.data)
        self.signature = source.signature(options)
        self.settings = options.settings
        self._source = source
        self._limit = options.limit
        # all rows are looked at before hours are spent on the first of them
        self.total = sum(len(items) for _, items in source.read(False))

    def chunks(self) -> Iterator[Chunk[QuestionT]]:
        return chunked(((picture,), partial(placed, items)) for picture, items in self._source.read(True))

    def _notes(self, records: Records) -> list[str]:
        return [*coverage_notes(len(records), self.total, self._limit), *self.NOTES, _TIDIED]

    def _record(
        self,
        item: QuestionT,
        columns: Sequence[str],
        *,
        numbers: Mapping[str, float],
        said: Mapping[str, str],
        texts: Mapping[str, str] | None = None,
    ) -> Record:
        answers = [f"- {column}: {quoted(said[column])}" for column in columns]
        return Record(
            item=item.id,
            cluster=item.cluster,
            category=item.category,
            numbers=numbers,
            texts={
                "question": item.question,
                "expected": item.expected,
                **{f"said {column}": said[column] for column in columns},
                **columns_text(columns),
                **(texts or {}),
            },
            right=numbers[columns[0]] >= 0.5,
            shown="\n".join([f"{quoted(item.question)} Expected: {quoted(item.expected)}", "", *answers]),
            rows=item.rows,
        )


def accepted(records: Records) -> list[list[str]]:
    """All right answers of each record."""
    several = records.column("answers")
    return [
        [expected] if many is None else json.loads(many)
        for expected, many in zip(records.column("expected"), several, strict=True)
    ]


def majority_credit(records: Records, credit: Callable[[str, Sequence[str]], float]) -> Floats:
    """[items]: what the most frequent expected answer of each one's category is worth."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for category, expected in zip(records.categories, records.column("expected"), strict=True):
        said[category][plain_answer(expected)] += 1
    # of equally frequent answers the first by alphabet: the same in every run
    most = {category: min(counts, key=lambda a: (-counts[a], a)) for category, counts in said.items()}
    pairs = zip(records.categories, accepted(records), strict=True)
    return np.array([credit(most[category], answers) for category, answers in pairs])


class OpenTask(QuestionTask[Open]):
    """The model answers in its own words (greedily); an answer is worth 0 to 1."""

    MEASURE: ClassVar[str] = "Share of answers that are the expected one, but for case and a full stop."
    YES_OR_NO: ClassVar[Sequence[str] | None] = ()
    """Categories of yes-or-no questions, which guessing gets right half of the time; None: all of them."""

    def credit(self, said: str, answers: Sequence[str]) -> float:
        """What ``said`` is worth where ``answers`` are right."""
        return exact_match(said, answers)

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Open]) -> list[Record]:
        """Records with each column's credit and what it said."""
        assert seen is not None
        columns = columns_of(subject, self.name)
        rows = [item.rows[0] for item in items]
        said = {}
        for c in columns:
            prompts = [item.question + subject.short_answer_suffix(c) for item in items]
            said[c] = seen.reader(c).generate(rows, prompts, max_new_tokens=MAX_NEW_TOKENS)
        return [
            self._record(
                item,
                columns,
                numbers={c: self.credit(said[c][i], item.answers) for c in columns},
                said={c: said[c][i] for c in columns},
                texts={} if item.answers == (item.expected,) else {"answers": json.dumps(item.answers)},
            )
            for i, item in enumerate(items)
        ]

    def summarise(self, records: Records) -> Summary:
        columns = columns_in(records)
        values = {c: records.numbers(c) for c in columns} | {MAJORITY: majority_credit(records, self.credit)}
        rows = rows_by_category(values, records)
        table = Table(
            title=self.TITLE,
            row_header="category",
            columns=[*columns, MAJORITY],
            rows=rows,
            chance={row: 0.5 for row in rows if self.YES_OR_NO is None or row in self.YES_OR_NO},
            explanation=f"{self.MEASURE} {_MAJORITY_EXPLAINED}",
        )
        return Summary(tables=[table], notes=self._notes(records))


class ChoiceTask(QuestionTask[Choice]):
    """The option that the model finds likeliest after the question is its answer; a tie is a loss.

    Long options are unlikely for their length alone: a second table goes by the mean over tokens.
    """

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Choice]) -> list[Record]:
        """Records with, for each column, whether the right option is the likeliest, and is per token."""
        assert seen is not None
        columns = columns_of(subject, self.name)
        # the same option twice must tie, and not be told apart by the rounding of another batch
        asked = list(dict.fromkeys((i.rows[0], i.question, option) for i in items for option in i.options))
        place = {key: n for n, key in enumerate(asked)}
        numbers: list[dict[str, float]] = [{_CHANCE: 1 / len(item.options)} for item in items]
        said: list[dict[str, str]] = [{} for _ in items]
        rows, questions, options = (list(values) for values in zip(*asked, strict=True))
        for column in columns:
            logprob, count = seen.reader(column).score(rows, questions, options)
            for i, item in enumerate(items):
                own = [place[item.rows[0], item.question, option] for option in item.options]
                total, mean = logprob[own], logprob[own] / np.maximum(count[own], 1)
                numbers[i][column] = _wins(total, item.right)
                numbers[i][f"{column} {PER_TOKEN}"] = _wins(mean, item.right)
                said[i][column] = item.options[int(total.argmax())]
        return [
            self._record(item, columns, numbers=numbers[i], said=said[i], texts={"options": json.dumps(item.options)})
            for i, item in enumerate(items)
        ]

    def summarise(self, records: Records) -> Summary:
        columns = columns_in(records)
        guessing = records.numbers(_CHANCE)
        chance = {row: float(guessing[inside].mean()) for row, inside, _ in selections(records)}
        tables = [
            Table(
                title=title,
                row_header="category",
                columns=columns,
                rows=rows_by_category({c: records.numbers(c + suffix) for c in columns}, records),
                chance=chance,
                explanation=f"Share of questions whose right option has the highest {score} after the question; a tie "
                "is a loss.",
            )
            for title, suffix, score in (
                ("accuracy", "", "log-probability"),
                ("accuracy, per token", f" {PER_TOKEN}", "mean log-probability over its tokens"),
            )
        ]
        return Summary(tables=tables, notes=self._notes(records))


def _wins(scores: Floats, right: int) -> float:
    rivals = np.delete(scores, right)
    return float((scores[right] > rivals).all())
