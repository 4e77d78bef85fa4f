"""Benchmarks of questions about photos that come as JSON with a folder of pictures: VQAv2, GQA, POPE."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from fwd2bot_eval.metrics import estimate
from fwd2bot_eval.results import Summary, Table
from fwd2bot_eval.runs import PictureFile, Record, Records
from fwd2bot_eval.subjects import Seen, Subject
from fwd2bot_eval.tasks import vqa_scores
from fwd2bot_eval.tasks.files import (
    file_name,
    find_picture,
    json_rows,
    read_json,
    read_jsonl,
    refuse_split,
    require_pictures,
    row_picture,
    text_of,
)
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import Open, OpenTask, Source, columns_in, question_of, selections
from fwd2bot_index.errors import InputError

_VAL2014: Final = (
    "They are COCO's 2014 val images: download val2014.zip (6 GB) from cocodataset.org and unzip it to {}."
)
_ALWAYS_YES: Final = "always yes"


class VQAv2(OpenTask):
    """VQA v2.0 (Goyal et al. 2017, arXiv 1612.00837): open questions about COCO photos with ten human answers each.

    ``DIR`` holds the two official files, ``*questions*.json`` and ``*annotations*.json`` (``--split`` picks among
    several by a part of their names), and the photos under ``val2014/``, or as their ``data_subtype`` says. Scored by
    the official soft accuracy with its normalisation, by type of answer.

    Raises:
        InputError: as all tasks of this module: a file is missing or a row is malformed, or pictures are missing
            without ``allow_missing``.
    """

    name = "vqav2"
    TITLE = "soft accuracy"
    MEASURE = (
        "Official soft accuracy: min(annotators who said the same / 3, 1), averaged over leaving out each of the ten; "
        "after the official normalisation."
    )

    def __init__(self, options: TaskOptions) -> None:
        questions = _the_file(options, "questions")
        annotations = _the_file(options, "annotations")
        document = read_json(questions)
        subtype = document.get("data_subtype", "val2014") if isinstance(document, Mapping) else None
        if not isinstance(subtype, str) or not re.fullmatch(r"\w+", subtype):
            raise InputError(f"{questions} has {subtype!r} as its data_subtype, which is no folder of photos.")
        folder = options.data / subtype
        judged = {
            number_of(row, "question_id", where): (row, where) for where, row in json_list(annotations, "annotations")
        }
        entries = []
        for where, row in json_list(questions, "questions", document=document, limit=options.limit):
            key = number_of(row, "question_id", where)
            if key not in judged:
                raise InputError(f"{where} has the question_id {key}, of which {annotations} has no answers.")
            name = f"COCO_{subtype}_{number_of(row, 'image_id', where):012d}.jpg"
            annotation, there = judged[key]
            item = Open(
                id=str(key),
                category=text_of(annotation, "answer_type", there),
                rows=(),
                cluster=name,
                question=question_of(row, "question", where),
                expected=_string(annotation, "multiple_choice_answer", there),
                answers=_human_answers(annotation, there),
            )
            entries.append((folder / name, row_picture(folder / name, name, where), item))
        source = _VAL2014.format(folder) if subtype == "val2014" else f"They are the photos that belong in {folder}."
        super().__init__(options, _listed([questions, annotations], entries, options, source))

    def credit(self, said: str, answers: Sequence[str]) -> float:
        return vqa_scores.vqa_accuracy(said, answers)


class GQA(OpenTask):
    """GQA (Hudson and Manning 2019, arXiv 1902.09506): compositional questions made from scene graphs.

    ``DIR`` holds ``testdev_balanced_questions.json`` (or another split's, or is the file itself) and, beside it,
    ``images/``. Exact match, by structural type.
    """

    name = "gqa"

    def __init__(self, options: TaskOptions) -> None:
        path = _gqa_file(options)
        folder = path.parent / "images"
        entries = []
        for where, key, row in json_rows(path, options.limit):
            stem = file_name(row, "imageId", where)
            types = row.get("types")
            expected = text_of(row, "answer", where)
            item = Open(
                id=key,
                category=text_of(types, "structural", f"{where}, types"),
                rows=(),
                cluster=stem,
                question=question_of(row, "question", where),
                expected=expected,
                answers=(expected,),
            )
            photo = find_picture(folder, stem)
            entries.append((photo, row_picture(photo, stem, where), item))
        source = f"They are in images.zip (20 GB) of cs.stanford.edu/people/dorarad/gqa: unzip it to {folder}."
        super().__init__(options, _listed([path], entries, options, source))


class POPE(OpenTask):
    """POPE (Li et al. 2023, arXiv 2305.10355): is there an object in the photo that may well be there, and is not?

    ``DIR`` holds ``coco_pope_random.json``, ``coco_pope_popular.json`` and ``coco_pope_adversarial.json`` (those that
    are there, or the one of ``--split``; or is one of them), JSON lines of ``question_id``, ``image``, ``text`` and
    ``label``; and COCO's photos under ``val2014/``. Free answers, read as POPE's own code does.
    """

    name = "pope"
    NOTES = (
        "POPE reads whatever is not a no as a yes (its published rule): a model that says something else scores as one "
        "that always says yes.",
    )

    def __init__(self, options: TaskOptions) -> None:
        files = _pope_files(options)
        folder = files[0].parent / "val2014"
        entries = []
        for path in files:
            kind = path.stem.removeprefix("coco_pope_")
            for number, (line, row) in enumerate(read_jsonl(path)):
                if options.limit is not None and number >= options.limit:
                    break
                where = f"{path}, line {line}"
                name = file_name(row, "image", where)
                label = text_of(row, "label", where).strip().lower()
                if label not in ("yes", "no"):
                    raise InputError(f"{where} has the label {label!r}, which is neither yes nor no.")
                item = Open(
                    id=f"{kind}/{number_of(row, 'question_id', where)}",
                    category=kind,
                    rows=(),
                    cluster=name,
                    question=question_of(row, "text", where),
                    expected=label,
                    answers=(label,),
                )
                entries.append((folder / name, row_picture(folder / name, name, where), item))
        super().__init__(options, _listed(files, entries, options, _VAL2014.format(folder)))

    def credit(self, said: str, answers: Sequence[str]) -> float:
        return float(vqa_scores.pope_answer(said) in answers)

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Open]) -> list[Record]:
        """Records with each column's credit, and whether it said yes."""
        records = []
        for record in super().measure(subject, seen, items):
            yes = {
                f"yes {column}": float(vqa_scores.pope_answer(record.texts[f"said {column}"]) == "yes")
                for column in subject.columns
            }
            records.append(dataclasses.replace(record, numbers={**record.numbers, **yes}))
        return records

    def summarise(self, records: Records) -> Summary:
        columns = columns_in(records)
        truly = np.array([float(expected == "yes") for expected in records.column("expected")])
        outcomes = {column: vqa_scores.confusion(records.numbers(f"yes {column}"), truly) for column in columns}
        outcomes[_ALWAYS_YES] = vqa_scores.confusion(np.ones_like(truly), truly)
        tables = [
            Table(
                title=title,
                row_header="kind of absent objects",
                columns=list(outcomes),
                rows={
                    row: {name: estimate(o[inside], clusters, value=score) for name, o in outcomes.items()}
                    for row, inside, clusters in selections(records)
                },
                explanation=explanation,
            )
            for title, score, explanation in _POPE_SCORES
        ]
        guessed = dict.fromkeys(tables[0].rows, 0.5)
        tables[0] = dataclasses.replace(tables[0], chance=guessed)
        return Summary(tables=tables, notes=self._notes(records))


_POPE_SCORES: Final = (
    ("accuracy", vqa_scores.accuracy, "Share of right answers."),
    ("precision", vqa_scores.precision, "Of the yes answers, how many are right."),
    ("recall", vqa_scores.recall, "Of the questions about an object that is there, how many are answered with yes."),
    ("F1", vqa_scores.f1, "Harmonic mean of precision and recall, over all questions of the row together."),
    ("yes-ratio", vqa_scores.yes_ratio, "Share of yes answers; half of POPE's objects are there."),
)


def _listed(
    files: Sequence[Path], entries: Sequence[tuple[Path, PictureFile, Open]], options: TaskOptions, source: str
) -> Source[Open]:
    """Questions about the same photo together: it is compressed once."""
    if not entries:
        raise InputError(f"{files[0]} holds no questions.")
    groups: dict[str, tuple[PictureFile, list[Open]]] = {}
    for _, picture, item in entries:
        groups.setdefault(picture.key, (picture, []))[1].append(item)
    paths = list(dict.fromkeys(path for path, _, _ in entries))
    require_pictures(paths, allow_missing=options.allow_missing, source=source)

    def read(_: bool) -> Iterator[tuple[PictureFile, list[Open]]]:
        yield from groups.values()

    return Source(files=files, read=read, pictures=paths)


def _the_file(options: TaskOptions, what: str) -> Path:
    """``*WHAT*.json`` of the split."""
    files = [f for f in sorted(options.data.glob(f"*{what}*.json")) if (options.split or "") in f.name]
    if not files:
        split = f" of the split {options.split}" if options.split else ""
        raise InputError(
            f"{options.data} has no *{what}*.json{split}. VQA's questions and annotations are on visualqa.org/download."
        )
    if len(files) > 1:
        raise InputError(f"{options.data} has {files[0].name} and {files[1].name}: pick one with --split.")
    return files[0]


def _gqa_file(options: TaskOptions) -> Path:
    if options.data.is_file():
        refuse_split(options)
        return options.data
    splits = [options.split] if options.split is not None else ["testdev", "val"]
    names = [f"{split}{kind}_questions.json" for split in splits for kind in ("_balanced", "")]
    for name in names:
        if (options.data / name).is_file():
            return options.data / name
    raise InputError(
        f"{options.data} has no {names[0]}: it is in questions1.2.zip of cs.stanford.edu/people/dorarad/gqa."
    )


def _pope_files(options: TaskOptions) -> list[Path]:
    if options.data.is_file():
        refuse_split(options)
        return [options.data]
    kinds = [options.split] if options.split is not None else ["random", "popular", "adversarial"]
    files = [options.data / f"coco_pope_{kind}.json" for kind in kinds]
    found = [f for f in files if f.is_file()]
    if not found:
        raise InputError(f"{files[0]} is missing: it is in output/coco of github.com/RUCAIBox/POPE.")
    return found


def json_list(
    path: Path, key: str, *, document: Any = None, limit: int | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each object of the list under ``key`` is, and the object; ``document`` is the file's, where it was read.

    Raises:
        InputError: there is no such list, or something else in it.
    """
    document = read_json(path) if document is None else document
    rows = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} has no list under {key!r}.")
    for number, row in enumerate(rows[:limit]):
        where = f"{path}, {key}[{number}]"
        if not isinstance(row, Mapping):
            raise InputError(f"{where} is no object.")
        yield where, row


def number_of(row: Any, key: str, where: str) -> int:
    """The whole number, not below 0, under ``key``.

    Raises:
        InputError: there is none.
    """
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{where} has no number under {key!r}.")
    return value


def _string(row: Any, key: str, where: str) -> str:
    """May be blank: the published evaluation compares a blank answer as any other."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise InputError(f"{where} has no text under {key!r}.")
    return value


def _human_answers(annotation: Mapping[str, Any], where: str) -> tuple[str, ...]:
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        raise InputError(f"{where} has no list under 'answers'.")
    return tuple(_string(answer, "answer", f"{where}, answers[{i}]") for i, answer in enumerate(answers))
