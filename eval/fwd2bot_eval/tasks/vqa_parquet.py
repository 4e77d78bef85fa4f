"""Benchmarks of questions that come as Parquet: pictures in an ``image`` column, and their questions under ``qa``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from fwd2bot_eval.runs import PictureFile, Record
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks import vqa_scores
from fwd2bot_eval.tasks.files import parquet_files, parquet_picture, parquet_rows, refuse_split, text_of, texts_of
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import (
    ALL,
    Choice,
    ChoiceTask,
    Open,
    OpenTask,
    QuestionT,
    Source,
    as_said,
    columns_of,
    question_of,
)
from fwd2bot_index.decoding import content_id
from fwd2bot_index.errors import InputError

DEFAULT_SPLITS: Final = ("test", "val", "train")


class Visual7W(ChoiceTask):
    """Visual7W telling (Zhu et al. 2016, arXiv 1511.03416): which of four answers is right?

    ``DIR`` holds ``SPLIT.parquet`` (the first there is of test, val and train), or is the file: ``image``, and ``qa``
    with ``question``, ``options`` and ``answer_index``. By the first word of the question.

    Raises:
        InputError: as all tasks of this module: a file is missing or a row is malformed.
    """

    name = "visual7w"

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options, _source(options, _visual7w_question))


class DAQUAR(OpenTask):
    """DAQUAR (Malinowski and Fritz 2014, arXiv 1410.0210): free answers about photos of rooms.

    Files as :class:`Visual7W`, ``qa`` with ``question`` and ``answer``; a list of things is one answer, in any order.
    """

    name = "daquar"
    MEASURE = (
        "Share of answers that are the expected one, but for case, a full stop and, of several things, their order."
    )
    NOTES = ("DAQUAR's other score, WUPS, which forgives words of like meaning, is not computed.",)

    def __init__(self, options: TaskOptions) -> None:
        category = _daquar_category
        super().__init__(options, _source(options, partial(_open_question, category=category)))

    def credit(self, said: str, answers: Sequence[str]) -> float:
        return vqa_scores.list_match(said, answers)


class EasyVQA(OpenTask):
    """easy-VQA (Zhou 2019, github.com/vzhou842/easy-VQA): templated questions about one drawn shape.

    Files as :class:`DAQUAR`. By what is asked for: yes or no, the shape, or its colour.
    """

    name = "easy-vqa"
    YES_OR_NO = ("yes/no",)

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options, _source(options, partial(_open_question, category=_easy_category)))


class Shapes(OpenTask):
    """SHAPES (Andreas et al. 2016, arXiv 1511.02799): compositional yes-or-no questions about grids of shapes.

    Files as :class:`DAQUAR`. By the length of the question: one more relation is two or three more words.
    """

    name = "shapes"
    YES_OR_NO = None

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options, _source(options, partial(_open_question, category=_length_category)))


class NLVR(OpenTask):
    """NLVR (Suhr et al. 2017): is a human sentence true of drawn boxes? Nearly every sentence occurs with both labels.

    ``DIR`` as :class:`Visual7W`: ``sentence``, ``label``, ``identifier`` and ``images``, orders of the same boxes of
    which the first is shown. Zero-shot: the model's matching question about the sentence, by log P(yes) - log P(no); a
    tie is a loss.
    """

    name = "nlvr"
    MEASURE = (
        "Share of right answers to the matching question about the sentence, by the likelihoods of yes and no; a tie "
        "is a loss."
    )
    YES_OR_NO: ClassVar[Sequence[str] | None] = None
    NOTES = (
        "Resampled for the intervals are sentences: each is asked of four pictures, and nothing else is about the same "
        "picture.",
    )

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options, _nlvr_source(options))

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Open]) -> list[Record]:
        assert seen is not None
        columns = columns_of(subject, self.name)
        rows = [item.rows[0] for item in items]
        questions = [subject.matching_question(item.question) for item in items]
        said: dict[str, list[str]] = {}
        for column in columns:
            reader = seen.reader(column)
            yes, _ = reader.score(rows, questions, ["yes"] * len(items))
            no, _ = reader.score(rows, questions, ["no"] * len(items))
            said[column] = [_VERDICT[int(sign)] for sign in np.sign(yes - no)]
        return [
            self._record(
                item,
                columns,
                numbers={c: self.credit(said[c][i], item.answers) for c in columns},
                said={c: said[c][i] for c in columns},
            )
            for i, item in enumerate(items)
        ]


_VERDICT: Final = {1: "true", -1: "false", 0: "as likely as not"}


def split_files(options: TaskOptions) -> list[Path]:
    """Files of the split asked for, or of the first there is.

    Raises:
        InputError: there are none, or a split of a single file is asked for.
    """
    if options.data.is_file():
        refuse_split(options)
        return [options.data]
    if options.split is not None:
        return parquet_files(options.data, options.split)
    for split in DEFAULT_SPLITS:
        try:
            return parquet_files(options.data, split)
        except InputError:
            continue
    names = ", ".join(f"{split}.parquet" for split in DEFAULT_SPLITS)
    raise InputError(f"{options.data} has none of {names}; name the file itself, or another --split.")


def _source(
    options: TaskOptions, question: Callable[[Mapping[str, Any], str, str, str], QuestionT]
) -> Source[QuestionT]:
    """Rows of ``image`` and ``qa``; ``question`` makes an item of one of ``qa``, its place, an id and a cluster."""
    files = split_files(options)

    def read(pictures: bool) -> Iterator[tuple[PictureFile, Sequence[QuestionT]]]:
        for where, row in parquet_rows(files, ["image", "qa"] if pictures else ["qa"], limit=options.limit):
            picture, name = picture_of(row.get("image"), where)
            asked = row["qa"]
            if not isinstance(asked, list) or not asked:
                raise InputError(f"{where} has no list of questions under 'qa'.")
            yield picture, [question(qa, f"{where}, qa[{i}]", f"{name}/{i}", picture.key) for i, qa in enumerate(asked)]

    return Source(files=files, read=read)


def picture_of(cell: Any, where: str) -> tuple[PictureFile, str]:
    """The picture of a row, and a name for it: the path that it was packed from, else the row.

    Its key is its content. Paths need not be there, nor differ; two pictures under one key would be taken for one.
    """
    path = cell.get("path") if isinstance(cell, Mapping) else None
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    name = path if isinstance(path, str) and path else Path(where).name
    key = content_id(data) if isinstance(data, bytes) else Path(where).name
    return parquet_picture(cell, where, key=key), name


def _visual7w_question(qa: Mapping[str, Any], where: str, name: str, cluster: str) -> Choice:
    question = question_of(qa, "question", where)
    options = texts_of(qa, "options", where)
    right = qa.get("answer_index")
    if not isinstance(right, int) or not 0 <= right < len(options):
        raise InputError(f"{where} has the answer_index {right!r}, which is none of its {len(options)} options.")
    if len(options) < 2:
        raise InputError(f"{where} has a single option, which is no choice.")
    first = re.match(r"[a-z]+", question.lower())
    said = tuple(as_said(option) for option in options)
    return Choice(
        id=name,
        category=first.group() if first else "other",
        rows=(),
        cluster=cluster,
        question=question,
        expected=said[right],
        options=said,
        right=right,
    )


def _open_question(
    qa: Mapping[str, Any], where: str, name: str, cluster: str, *, category: Callable[[str, str], str]
) -> Open:
    question, answer = question_of(qa, "question", where), text_of(qa, "answer", where)
    return Open(
        id=name,
        category=category(question, answer),
        rows=(),
        cluster=cluster,
        question=question,
        expected=answer,
        answers=(answer,),
    )


def _daquar_category(_: str, answer: str) -> str:
    return "several things" if "," in answer else "one thing"


def _easy_category(_: str, answer: str) -> str:
    kinds = {"yes": "yes/no", "no": "yes/no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}
    return kinds.get(vqa_scores.plain_answer(answer), "colour")


def _length_category(question: str, _: str) -> str:
    return f"{len(question.split())} words"


def _nlvr_source(options: TaskOptions) -> Source[Open]:
    files = split_files(options)

    def read(pictures: bool) -> Iterator[tuple[PictureFile, Sequence[Open]]]:
        columns = ["sentence", "label", "identifier"] + (["images"] if pictures else [])
        for where, row in parquet_rows(files, columns, limit=options.limit):
            orders = row.get("images")
            if pictures and (not isinstance(orders, list) or not orders):
                raise InputError(f"{where} has no list of pictures under 'images'.")
            picture, _ = picture_of(orders[0] if orders else None, where)
            name, label = text_of(row, "identifier", where), str(row["label"]).lower()
            if label not in ("true", "false"):
                raise InputError(f"{where} has the label {row['label']!r}, which is neither True nor False.")
            yield (
                picture,
                [
                    Open(
                        id=name,
                        category=ALL,
                        rows=(),
                        # 2379-0 to 2379-3 are one sentence, asked of four pictures
                        cluster=name.rpartition("-")[0] or name,
                        question=as_said(text_of(row, "sentence", where)),
                        expected=label,
                        answers=(label,),
                    )
                ],
            )

    return Source(files=files, read=read)
