"""Benchmarks of questions: every layout as it is published, with a subject whose answers the test writes."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fwd2bot_eval.metrics import estimate
from fwd2bot_eval.report import write_report
from fwd2bot_eval.results import TaskResult
from fwd2bot_eval.runs import run
from fwd2bot_eval.subjects import Fwd2BotSubject, Picture
from fwd2bot_eval.tasks import TASKS, make_task, vqa_scores
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import as_asked, as_said
from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training.data.texts import read_texts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RED, BLUE, GREEN = (250, 0, 0), (0, 0, 250), (0, 250, 0)
Answer = Callable[[str, str, str], str]
Likelihood = Callable[[str, str, str, str], float]


class Scripted:
    """Answers, and finds answers likely, by column, colour of the picture and prompt."""

    name = "scripted"
    fingerprint = "1"
    decode_side = None
    caption_prompt = "write a caption."
    notes = ()

    def __init__(
        self,
        answer: Answer = lambda *_: "",
        likelihood: Likelihood = lambda *_: 0.0,
        *,
        columns: Sequence[str] = ("k=2", "blind"),
        suffix: str = "",
        fail_after: int | None = None,
    ) -> None:
        self.answer, self.likelihood = answer, likelihood
        self.columns = list(columns)
        self.suffix = suffix
        self.settings: dict[str, Any] = {"columns": self.columns, "device": "cpu", "dtype": "float32"}
        self.prompts: list[str] = []
        self.seen = 0
        self.fail_after = fail_after

    def see(self, pictures: Sequence[Picture]) -> Any:
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(pictures)
        return ScriptedSeen(self, [self._colour(p) for p in pictures])

    @staticmethod
    def _colour(picture: Picture) -> str:
        return ("red", "green", "blue")[int(np.asarray(picture.image).mean((0, 1)).argmax())]

    def embed_text(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def matching_question(self, text: str) -> str:
        return f"does this show {text}?"

    def short_answer_suffix(self, column: str) -> str:
        return f"{self.suffix}{column}." if self.suffix else ""


@dataclasses.dataclass
class ScriptedSeen:
    subject: Scripted
    colours: list[str]
    column: str = ""

    @property
    def embedding(self) -> Any:
        raise NotImplementedError

    def reader(self, column: str) -> Any:
        return dataclasses.replace(self, column=column)

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        self.subject.prompts += prompts
        said = [self.subject.answer(self.column, self.colours[r], p) for r, p in zip(rows, prompts, strict=True)]
        return [" ".join(text.split(" ")[:max_new_tokens]) for text in said]

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> Any:
        self.subject.prompts += prompts
        asked = zip(rows, prompts, answers, strict=True)
        scores = [self.subject.likelihood(self.column, self.colours[r], p, a) for r, p, a in asked]
        return np.array(scores, np.float32), np.array([len(a.split()) for a in answers], np.float32)


def evaluate(name: str, data: Path, subject: Any, folder: Path, **options: Any) -> TaskResult:
    allow = options.get("allow_missing", False)
    result = run(make_task(name, TaskOptions(data=data, **options)), subject, folder, allow_missing=allow)
    write_report(result, folder)
    return result


def cells(result: TaskResult, title: str, row: str) -> dict[str, float]:
    return {column: cell.value for column, cell in result.table(title).rows[row].items()}


def parquet(path: Path, rows: Sequence[dict[str, Any]], **types: pa.DataType) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    pq.write_table(pa.table({c: pa.array([r[c] for r in rows], types.get(c)) for c in columns}), path, row_group_size=2)
    return path


def image(colour: tuple[int, int, int], name: str | None = None) -> dict[str, Any]:
    return {"bytes": pictures.plain(colour), "path": name}


# ---- scores of texts


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("Yes.", "yes"),
        ("two", "2"),
        ("None", "0"),
        ("Ten of the dogs", "10 of dogs"),
        ("a  The dog\n", "dog"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("ow's'at", "'ow's'at"),
        ("its", "its"),
        ("shes", "shes"),
        ("somebody'd", "somebodyd"),
        ("red/blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("red, blue", "red blue"),
        ("red ,blue", "red blue"),
        ("t-shirt -red", "tshirt red"),
        ("red,blue", "red blue"),
        ("x-ray at 1,000 volts", "xray at 1000 volts"),
        ("3.5", "3.5"),
        ("mr. 3.", "mr 3"),
        ("what?!", "what"),
        ("dog's", "dog's"),
        ("one\ttwo", "1 2"),
        ("", ""),
    ],
)
def test_an_answer_is_compared_as_the_evaluation_of_vqa_does(said: str, compared: str) -> None:
    assert vqa_scores.vqa_answer(said) == compared


@pytest.mark.parametrize(("same", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_leaves_out_each_annotator(same: int, score: float) -> None:
    answers = ["red"] * same + [f"other {i}" for i in range(10 - same)]
    assert vqa_scores.vqa_accuracy("Red.", answers) == pytest.approx(score)


def test_annotators_who_all_agree_are_compared_as_they_stand() -> None:
    assert vqa_scores.vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert vqa_scores.vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0
    assert vqa_scores.vqa_accuracy("t shirt", ["t shirt"] * 10) == 1


def test_exact_matches() -> None:
    assert vqa_scores.exact_match(" Garbage_bin. ", ["garbage bin"]) == 1
    assert vqa_scores.exact_match("bin", ["garbage bin"]) == 0
    assert vqa_scores.list_match("chair, Table", ["table, chair"]) == 1
    assert vqa_scores.list_match("chair", ["table, chair"]) == 0
    assert vqa_scores.list_match("chair, chair, table", ["table, chair"]) == 0


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("No", "no"),
        ("no, there is none", "no"),
        ("There is not. Yes.", "no"),
        ("Yes. There is no cat", "yes"),
        ("nothing", "yes"),
        ("NO", "yes"),
        ("", "yes"),
    ],
)
def test_free_text_is_read_as_pope_does(said: str, read: str) -> None:
    assert vqa_scores.pope_answer(said) == read


def test_precision_and_recall_of_hand_counted_answers() -> None:
    yes = np.array([1, 1, 1, 0, 0, 0, 0, 1.0])
    truly = np.array([1, 1, 0, 1, 0, 0, 0, 1.0])
    sums = vqa_scores.confusion(yes, truly).sum(0)
    assert sums.tolist() == [3, 1, 1, 3]
    assert vqa_scores.accuracy(sums) == 6 / 8
    assert vqa_scores.precision(sums) == 3 / 4
    assert vqa_scores.recall(sums) == 3 / 4
    assert vqa_scores.f1(sums) == 3 / 4
    assert vqa_scores.yes_ratio(sums) == 4 / 8
    # and with the number of items behind them, as the bootstrap gives sums
    cell = estimate(vqa_scores.confusion(yes, truly), [str(i) for i in range(8)], value=vqa_scores.accuracy)
    assert cell.value == 6 / 8
    assert cell.low < cell.value < cell.high
    nothing = np.array([0.0, 0, 2, 2])
    with np.errstate(invalid="ignore"):
        assert np.isnan(vqa_scores.precision(nothing))
    assert vqa_scores.f1(nothing) == 0


def test_a_blank_to_fill_in_stays() -> None:
    assert as_asked("the cat_tail is ____ .") == "the cat tail is ____."
    assert as_said("__ of_them.") == "__ of them"


@pytest.mark.parametrize(
    "question", ["is a red  shape above", "What is it ?", "who took the garbage_bin", "Where's it?"]
)
@pytest.mark.parametrize("answer", ["At the table.", "yes", "He came . She went .", "U.S.A.", "after 5 p.m."])
def test_questions_and_options_stand_as_in_training(question: str, answer: str) -> None:
    (segment,) = read_texts({"qa": [{"question": question, "answer": answer}]}, kind="qa").segments
    assert as_asked(question) == segment.prompt
    assert as_said(answer) == segment.answer


# ---- VQAv2


def vqav2(folder: Path, *, split: str = "val2014") -> Path:
    asked = [
        (11, 1, "Is it red?", "yes/no", ["yes"] * 10),
        (12, 1, "How many?", "number", ["2"] * 3 + ["3"] * 7),
        (21, 2, "Is it red?", "yes/no", ["no"] * 9 + ["yes"]),
        (22, 2, "What colour?", "other", ["blue"] * 2 + ["navy"] * 8),
    ]
    questions = [{"image_id": i, "question": q, "question_id": n} for n, i, q, _, _ in asked]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": max(set(answers), key=answers.count),
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": j} for j, a in enumerate(answers, start=1)
            ],
            "image_id": i,
            "answer_type": kind,
            "question_id": n,
        }
        for n, i, _, kind, answers in asked
    ]
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
    pictures.write(
        folder,
        {
            f"v2_OpenEnded_mscoco_{split}_questions.json": json.dumps(
                {**head, "task_type": "Open-Ended", "questions": questions}
            ).encode(),
            f"v2_mscoco_{split}_annotations.json": json.dumps({**head, "annotations": annotations[::-1]}).encode(),
            f"{split}/COCO_{split}_000000000001.jpg": pictures.plain(RED, format="JPEG"),
            f"{split}/COCO_{split}_000000000002.jpg": pictures.plain(BLUE, format="JPEG"),
        },
    )
    return folder


def says_colour(column: str, colour: str, prompt: str) -> str:
    """A reader that sees, blind: yes, two, red."""
    colour = "red" if column == "blind" else colour
    if prompt.startswith("Is it red?"):
        return "Yes." if colour == "red" else "No"
    return "two" if prompt.startswith("How many") else colour


def test_vqav2(tmp_path: Path) -> None:
    subject = Scripted(says_colour, suffix="\nIn a word, ")
    result = evaluate("vqav2", vqav2(tmp_path / "d"), subject, tmp_path / "r")
    title = "soft accuracy"
    assert list(result.table(title).rows) == ["all", "number", "other", "yes/no"]
    # majority: yes and no are as frequent, so the first by alphabet (0 + 1); 3 (of 7); navy
    assert cells(result, title, "yes/no") == pytest.approx({"k=2": 1, "blind": (1 + 0.3) / 2, "majority": 0.5})
    assert cells(result, title, "number") == pytest.approx({"k=2": 0.9, "blind": 0.9, "majority": 1})
    assert cells(result, title, "other") == pytest.approx({"k=2": 0.6, "blind": 0, "majority": 1})
    assert cells(result, title, "all") == pytest.approx({"k=2": 3.5 / 4, "blind": 2.2 / 4, "majority": 3 / 4})
    assert result.table(title).rows["all"]["k=2"].clusters == 2
    assert result.table(title).columns == ["k=2", "blind", "majority"]
    assert subject.seen == 2, "two questions about a photo compress it once"
    asked = {f"{q}\nIn a word, {c}." for q in ("Is it red?", "How many?", "What colour?") for c in ("k=2", "blind")}
    assert set(subject.prompts) == asked, "each column has a suffix of its own"
    assert any("one line and ends in a mark" in note for note in result.notes)
    report = (tmp_path / "r" / "report.md").read_text()
    assert "“How many?” Expected: “3”" in report
    assert "- k=2: “two”\n- blind: “two”" in report
    assert "frequent answer" in report


def test_vqav2_limit_and_splits(tmp_path: Path) -> None:
    folder = vqav2(tmp_path / "d")
    result = evaluate("vqav2", folder, Scripted(says_colour), tmp_path / "r", limit=1)
    assert result.items == 1
    assert any("Only the first 1 rows" in note for note in result.notes)
    vqav2(folder, split="train2014")
    with pytest.raises(InputError, match="pick one with --split"):
        make_task("vqav2", TaskOptions(data=folder))
    assert evaluate("vqav2", folder, Scripted(says_colour), tmp_path / "s", split="train2014").items == 4
    with pytest.raises(InputError, match=r"no \*questions\*.json of the split test"):
        make_task("vqav2", TaskOptions(data=folder, split="test"))


def test_missing_photos_are_told_with_their_source(tmp_path: Path) -> None:
    folder = vqav2(tmp_path / "d")
    (folder / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 2 pictures are missing.*val2014\.zip"):
        make_task("vqav2", TaskOptions(data=folder))
    result = evaluate("vqav2", folder, Scripted(says_colour), tmp_path / "r", allow_missing=True)
    assert (result.items, result.skipped[0].items) == (2, 2)
    assert "val2014_questions.json, questions[2]" in result.skipped[0].where


def test_questions_about_a_photo_may_lie_far_apart(tmp_path: Path) -> None:
    """As POPE's do, in files of their own: it is compressed once all the same."""
    lines = [
        json.dumps({"question_id": i, "image": f"{i % 40}.jpg", "text": "Is there a cat?", "label": "no"})
        for i in range(80)
    ]
    photos = {f"val2014/{i}.jpg": pictures.plain(RED, format="JPEG") for i in range(40)}
    pictures.write(tmp_path / "d", {"coco_pope_random.json": "\n".join(lines).encode(), **photos})
    subject = Scripted()
    assert evaluate("pope", tmp_path / "d", subject, tmp_path / "r").items == 80
    assert subject.seen == 40


@pytest.mark.parametrize(
    ("file", "key", "row", "change", "message"),
    [
        ("questions", "questions", 1, {"question": " _ "}, r"questions\[1\] has a question of no words"),
        ("questions", "questions", 1, {"question": ""}, r"questions\[1\] has no text under 'question'"),
        ("questions", "questions", 2, {"image_id": "2"}, r"questions\[2\] has no number under 'image_id'"),
        ("questions", "questions", 2, {"image_id": -2}, r"questions\[2\] has no number under 'image_id'"),
        ("questions", "questions", 2, {"image_id": True}, r"questions\[2\] has no number under 'image_id'"),
        ("questions", "questions", 0, {"question_id": 5}, r"questions\[0\] has the question_id 5, of which"),
        ("annotations", "annotations", 3, {"answers": []}, r"annotations\[3\] has no list under 'answers'"),
        ("annotations", "annotations", 3, {"answers": [{"answer": 2}]}, r"annotations\[3\], answers\[0\] has no text"),
        ("annotations", "annotations", 3, {"answer_type": None}, r"annotations\[3\] has no text under 'answer_type'"),
        ("annotations", "annotations", 3, {"multiple_choice_answer": 1}, r"annotations\[3\] has no text"),
    ],
)
def test_a_bad_row_of_vqav2(
    tmp_path: Path, file: str, key: str, row: int, change: dict[str, Any], message: str
) -> None:
    (path,) = vqav2(tmp_path).glob(f"*{file}*.json")
    document = json.loads(path.read_text())
    document[key][row].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"{path.name}, {message}"):
        make_task("vqav2", TaskOptions(data=tmp_path))


# ---- GQA


def gqa(folder: Path, **change: Any) -> Path:
    def row(photo: str, question: str, answer: str, structural: str) -> dict[str, Any]:
        types = {"structural": structural, "semantic": "attr", "detailed": "chooseAttr"}
        return {"imageId": photo, "question": question, "answer": answer, "types": types, "isBalanced": True}

    rows = {
        "201": row("n1", "Is it red?", "yes", "verify"),
        "202": row("n2", "Is it red?", "no", "verify"),
        "203": row("n2", "What colour is it?", "blue", "query"),
    }
    rows["203"].update(change)
    return pictures.write(
        folder,
        {
            "testdev_balanced_questions.json": json.dumps(rows).encode(),
            "images/n1.jpg": pictures.plain(RED, format="JPEG"),
            "images/n2.jpg": pictures.plain(BLUE, format="JPEG"),
        },
    )


def test_gqa(tmp_path: Path) -> None:
    result = evaluate("gqa", gqa(tmp_path / "d"), Scripted(says_colour), tmp_path / "r")
    assert cells(result, "accuracy", "verify") == {"k=2": 1, "blind": 0.5, "majority": 0.5}
    assert cells(result, "accuracy", "query") == {"k=2": 1, "blind": 0, "majority": 1}
    assert cells(result, "accuracy", "all") == pytest.approx({"k=2": 1, "blind": 1 / 3, "majority": 2 / 3})
    path = tmp_path / "d" / "testdev_balanced_questions.json"
    limited = evaluate("gqa", path, Scripted(says_colour), tmp_path / "s", limit=2)
    assert limited.items == 2
    assert {key: limited.settings[key] for key in ("split", "limit", "allow_missing")} == {
        "split": None,
        "limit": 2,
        "allow_missing": False,
    }


@pytest.mark.parametrize(
    ("task", "make", "file"),
    [
        ("gqa", lambda folder: gqa(folder), "testdev_balanced_questions.json"),
        ("pope", lambda folder: pope(folder), "coco_pope_random.json"),
        ("shapes", lambda folder: qa_rows(folder, (RED, [("is it", "yes")])), "test.parquet"),
    ],
)
def test_a_file_has_no_splits(tmp_path: Path, task: str, make: Callable[[Path], Path], file: str) -> None:
    path = make(tmp_path) / file
    make_task(task, TaskOptions(data=path))
    with pytest.raises(InputError, match=r"--split val: .* is a single file"):
        make_task(task, TaskOptions(data=path, split="val"))


def test_other_pictures_make_another_run(tmp_path: Path) -> None:
    """Also as many of them."""
    folder = gqa(tmp_path)
    before = make_task("gqa", TaskOptions(data=folder)).signature
    assert make_task("gqa", TaskOptions(data=folder)).signature == before
    (folder / "images" / "n1.jpg").write_bytes(pictures.plain(GREEN, format="JPEG") + b" ")
    assert make_task("gqa", TaskOptions(data=folder)).signature != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imageId": "../secret"}, "outside of its folder"),
        ({"answer": None}, "has no text under 'answer'"),
        ({"types": None}, "types has no text under 'structural'"),
        ({"imageId": "n3"}, "1 of 3 pictures are missing.*images.zip"),
    ],
)
def test_a_bad_row_of_gqa(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    where = "" if "pictures" in message else "testdev_balanced_questions.json, item 203.*"
    with pytest.raises(InputError, match=where + message):
        make_task("gqa", TaskOptions(data=gqa(tmp_path, **change)))


def test_gqa_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no val_balanced_questions\.json"):
        make_task("gqa", TaskOptions(data=tmp_path, split="val"))


# ---- POPE


def pope(folder: Path) -> Path:
    def lines(rows: Sequence[tuple[str, str, str]]) -> bytes:
        return "\n".join(
            json.dumps({"question_id": i, "image": f"{photo}.jpg", "text": f"Is there a {what}?", "label": label})
            for i, (photo, what, label) in enumerate(rows, start=1)
        ).encode()

    return pictures.write(
        folder,
        {
            "coco_pope_random.json": lines(
                [("a", "red", "yes"), ("a", "cat", "no"), ("b", "red", "yes"), ("b", "dog", "no")]
            ),
            "coco_pope_adversarial.json": lines([("a", "red", "yes"), ("b", "blue", "no")]),
            "val2014/a.jpg": pictures.plain(RED, format="JPEG"),
            "val2014/b.jpg": pictures.plain(BLUE, format="JPEG"),
        },
    )


def test_pope(tmp_path: Path) -> None:
    def answer(column: str, colour: str, prompt: str) -> str:
        if column == "blind":
            return "No, there is not."
        return "Yes, there is." if colour in prompt else "There is not. Yes?"

    subject = Scripted(answer)
    result = evaluate("pope", pope(tmp_path / "d"), subject, tmp_path / "r")
    assert [t.title for t in result.tables] == ["accuracy", "precision", "recall", "F1", "yes-ratio"]
    assert list(result.tables[0].rows) == ["all", "adversarial", "random"]
    assert subject.seen == 2
    # k=2 says yes to: a red (right), b blue (wrong), a red (right); misses b red
    seen = {title: cells(result, title, "all")["k=2"] for title in ("accuracy", "precision", "recall", "F1")}
    assert seen == pytest.approx({"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3})
    assert cells(result, "yes-ratio", "all") == {"k=2": 0.5, "blind": 0, "always yes": 1}
    assert cells(result, "accuracy", "random") == {"k=2": 0.75, "blind": 0.5, "always yes": 0.5}
    assert cells(result, "F1", "random") == pytest.approx({"k=2": 2 / 3, "blind": 0, "always yes": 2 / 3})
    assert np.isnan(cells(result, "precision", "random")["blind"])
    assert result.table("accuracy").chance == dict.fromkeys(["all", "adversarial", "random"], 0.5)
    assert result.table("F1").rows["all"]["k=2"].low < 2 / 3 < result.table("F1").rows["all"]["k=2"].high
    only = evaluate("pope", tmp_path / "d", Scripted(answer), tmp_path / "s", split="adversarial")
    assert only.items == 2
    assert evaluate("pope", tmp_path / "d", Scripted(answer), tmp_path / "t", limit=1).items == 2, "of each file"


def test_a_bad_row_of_pope(tmp_path: Path) -> None:
    path = pope(tmp_path) / "coco_pope_random.json"
    text = path.read_text()
    path.write_text(text.replace('"label": "no"', '"label": "maybe"', 1))
    with pytest.raises(InputError, match=r"coco_pope_random.json, line 2 has the label 'maybe'"):
        make_task("pope", TaskOptions(data=tmp_path))
    path.write_text(text.replace('"b.jpg"', '"/etc/b.jpg"', 1))
    with pytest.raises(InputError, match=r"line 3 names a picture outside"):
        make_task("pope", TaskOptions(data=tmp_path))
    with pytest.raises(InputError, match=r"coco_pope_popular.json is missing"):
        make_task("pope", TaskOptions(data=tmp_path, split="popular"))


# ---- multiple choice


def visual7w(folder: Path, **change: Any) -> Path:
    def qa(question: str, right: int, *options: str) -> dict[str, Any]:
        return {"question": question, "options": list(options), "answer_index": right}

    last = qa("Who's there?", 1, "A red man.", "A blue man.", "Nobody.", "A green man in a hat.")
    rows = [
        {
            "image": image(RED, "a.jpg"),
            "qa": [qa("Where is it?", 0, "In red.", "In blue."), qa("Who is it?", 1, "x", "y")],
        },
        {"image": image(BLUE, "a.jpg"), "qa": [last | change]},
    ]
    parquet(folder / "val.parquet", rows)
    return folder


def likes_colour(column: str, colour: str, prompt: str, answer: str) -> float:
    """A sum: what names the colour is likely, but every word costs."""
    return (0 if column == "k=2" and colour in answer else -2) - 1.5 * len(answer.split())


def test_visual7w(tmp_path: Path) -> None:
    subject = Scripted(likelihood=likes_colour, suffix=" never added")
    result = evaluate("visual7w", visual7w(tmp_path / "d"), subject, tmp_path / "r")
    assert list(result.table("accuracy").rows) == ["all", "where", "who"]
    assert cells(result, "accuracy", "where") == {"k=2": 1, "blind": 0}, "blind ties, which is a loss"
    # "x" and "y" tie; of the last, "Nobody" (-3.5) beats "A blue man" (-4.5), but not per token (-3.5 and -1.5)
    assert cells(result, "accuracy", "who") == {"k=2": 0, "blind": 0}
    assert cells(result, "accuracy, per token", "who") == {"k=2": 0.5, "blind": 0}
    assert result.table("accuracy").chance == pytest.approx({"all": (0.5 + 0.5 + 0.25) / 3, "where": 0.5, "who": 0.375})
    assert result.table("accuracy").rows["all"]["k=2"].clusters == 2, "other pictures, though of one path"
    assert set(subject.prompts) == {"Where is it?", "Who is it?", "Who's there?"}
    records = pq.read_table(tmp_path / "r" / "records" / "000000.parquet").to_pylist()
    assert records[0]["expected"] == "In red"
    assert records[0]["said k=2"] == "In red"
    assert [r["item"] for r in records] == ["a.jpg/0", "a.jpg/1", "a.jpg/0"]


def test_an_option_that_comes_twice_ties_for_certain(tmp_path: Path) -> None:
    count = iter(range(1000))
    subject = Scripted(likelihood=lambda *_: -float(next(count)))  # the same text is likelier when asked first
    folder = visual7w(tmp_path / "d", options=["Nobody.", "Nobody.", "x", "z"], answer_index=0)
    result = evaluate("visual7w", folder, subject, tmp_path / "r")
    records = pq.read_table(tmp_path / "r" / "records" / "000000.parquet").to_pylist()
    assert [r["k=2"] for r in records] == [1, 0, 0]
    assert result.items == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_index": 4}, "answer_index 4, which is none of its 4"),
        ({"answer_index": None}, "answer_index None"),
        ({"options": ["a", ""]}, "has no list of texts under 'options'"),
        ({"options": ["a"], "answer_index": 0}, "has a single option"),
        ({"question": " "}, "has no text under 'question'"),
    ],
)
def test_a_bad_row_of_visual7w(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"val.parquet, row 1, qa\[0\] .*{message}"):
        make_task("visual7w", TaskOptions(data=visual7w(tmp_path, **change)))


def test_a_model_that_only_embeds_cannot_answer(tmp_path: Path) -> None:
    for task, data in (("visual7w", visual7w(tmp_path / "v")), ("gqa", gqa(tmp_path / "g"))):
        with pytest.raises(InputError, match=f"scripted only embeds.*questions of {task}"):
            evaluate(task, data, Scripted(columns=[]), tmp_path / f"r {task}")


def mmbench(path: Path, **change: str) -> Path:
    red, blue = (base64.b64encode(pictures.plain(c)).decode() for c in (RED, BLUE))
    rest = {"l2-category": "x", "split": "dev"}
    none = {"hint": "", "C": "", "D": ""}
    rows = [
        {"index": "0", "question": "Which?", **none, "A": "red", "B": "blue", "answer": "A", "category": "ocr"},
        {"index": "1", "question": 'Which\nof "them"', "hint": "Look well.", "A": "red", "B": "green", "C": "a b"}
        | {"D": "blue", "answer": "D", "category": "logic"},
        {"index": "1000000", "question": "Which?", **none, "A": "a", "B": "b", "answer": "A", "category": "ocr"},
    ]
    rows = [row | rest | {"image": data} for row, data in zip(rows, (red, blue, red), strict=True)]
    columns = list(rows[0])
    rows[1].update(change)
    path.parent.mkdir(parents=True, exist_ok=True)

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set('"\n\t') & set(text) else text

    lines = ["\t".join(columns)] + ["\t".join(cell(row[c]) for c in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mmbench(tmp_path: Path) -> None:
    subject = Scripted(likelihood=likes_colour)
    result = evaluate("mmbench", mmbench(tmp_path / "d" / "dev.tsv"), subject, tmp_path / "r")
    assert result.items == 2, "rows that only rotate the options are left out"
    assert cells(result, "accuracy", "all") == {"k=2": 1, "blind": 0}
    assert list(result.table("accuracy").rows) == ["all", "logic", "ocr"]
    assert result.table("accuracy").chance == {"all": 0.375, "logic": 0.25, "ocr": 0.5}
    assert set(subject.prompts) == {"Which?", 'Look well.\nWhich of "them"'}
    assert any("circular" in note for note in result.notes)
    assert evaluate("mmbench", tmp_path / "d", Scripted(), tmp_path / "s", limit=1).items == 1
    for index in ("2000007", "0"):
        path = mmbench(tmp_path / f"{index}.tsv", index=index)
        assert evaluate("mmbench", path, Scripted(), tmp_path / index).items == 2, "a question of its own"
        assert evaluate("mmbench", path, Scripted(), tmp_path / f"one {index}", limit=1).items == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, "row 2 has the answer 'E', which is none of A, B, C, D"),
        ({"answer": ""}, "row 2 has no text under 'answer'"),
        ({"B": "", "C": " ", "D": ""}, "row 2 has fewer than two options"),
        ({"index": "x"}, "row 2 has the index 'x'"),
        ({"split": "dev\ttoo much"}, None),
    ],
)
def test_a_bad_row_of_mmbench(tmp_path: Path, change: dict[str, str], message: str | None) -> None:
    path = mmbench(tmp_path / "dev.tsv", **change)
    if message is None:
        path.write_text(path.read_text() + "5\ttoo few\n")
        message = "cannot be read as TSV"
    with pytest.raises(InputError, match=f"dev.tsv.*{message}"):
        make_task("mmbench", TaskOptions(data=path))


def test_pictures_of_mmbench_that_another_row_has(tmp_path: Path) -> None:
    """Before the row and behind it; of a row that is left out, and with a limit."""
    alone = base64.b64encode(pictures.plain(RED)).decode()
    head = "index\tquestion\tA\tB\tanswer\tcategory\timage\n"
    path = tmp_path / "dev.tsv"

    def row(index: int, image: str) -> str:
        return f"{index}\tWhich?\tred\tblue\tA\tocr\t{image}\n"

    path.write_text(head + row(3, "5") + row(5, alone) + row(7, "5"))
    for limit, items in ((None, 3), (1, 1)):
        subject = Scripted(likelihood=likes_colour)
        result = evaluate("mmbench", path, subject, tmp_path / f"r{limit}", limit=limit)
        assert (result.items, result.table("accuracy").rows["all"]["k=2"].clusters) == (items, 1)
        assert cells(result, "accuracy", "all")["k=2"] == 1
        assert subject.seen == 1
    path.write_text(head + row(3, "4") + row(4, "3") + row(5, alone))
    with pytest.raises(InputError, match=r"row 1 cannot be used: its image column names row 4, which has no picture"):
        evaluate("mmbench", path, Scripted(), tmp_path / "circle")


@pytest.mark.parametrize("broken", ["", "????", "AAAA", "!" + base64.b64encode(pictures.plain(RED)).decode()])
def test_a_picture_of_mmbench_that_is_none(tmp_path: Path, broken: str) -> None:
    path = mmbench(tmp_path / "dev.tsv", image=broken)
    with pytest.raises(InputError, match=r"dev.tsv, row 2 cannot be used: .*--allow-missing"):
        evaluate("mmbench", path, Scripted(), tmp_path / "r")


@pytest.mark.parametrize("block", range(226, 246))
def test_mmbench_is_read_in_blocks(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever one ends, within a question of two lines as well."""
    path = mmbench(tmp_path / "dev.tsv")
    whole = [i for chunk in make_task("mmbench", TaskOptions(data=path)).chunks() for i in chunk.items]
    monkeypatch.setattr("fwd2bot_eval.tasks.vqa_mmbench._BLOCK_BYTES", block)
    assert [i for chunk in make_task("mmbench", TaskOptions(data=path)).chunks() for i in chunk.items] == whole


def test_base64_is_measured_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwd2bot_eval.tasks.vqa_mmbench.MAX_FILE_BYTES", 20)
    with pytest.raises(InputError, match=r"row 1 cannot be used: its base64 is longer"):
        evaluate("mmbench", mmbench(tmp_path / "dev.tsv"), Scripted(), tmp_path / "r")


# ---- true or false, and free answers, in Parquet


def nlvr(folder: Path, *, label: Any = False) -> Path:
    def row(name: str, sentence: str, label: Any, colour: tuple[int, int, int]) -> dict[str, Any]:
        return {
            "sentence": sentence,
            "label": label,
            "identifier": name,
            "images": [image(colour, f"{name}-0.png"), image(GREEN, f"{name}-1.png")],
        }

    true = str(True) if isinstance(label, str) else True
    rows = [
        row("7-0", "It is red.", true, RED),
        row("7-1", "It is red.", label, BLUE),
        row("8-0", "It is blue.", label, RED),
    ]
    parquet(folder / "test.parquet", rows)
    return folder


@pytest.mark.parametrize("label", [False, "False"])
def test_nlvr(tmp_path: Path, label: Any) -> None:
    def likelihood(column: str, colour: str, prompt: str, answer: str) -> float:
        if column == "blind":
            return 0
        return -1 if (colour in prompt) == (answer == "yes") else -3

    subject = Scripted(likelihood=likelihood)
    result = evaluate("nlvr", nlvr(tmp_path / "d", label=label), subject, tmp_path / "r")
    assert list(result.table("accuracy").rows) == ["all"]
    assert cells(result, "accuracy", "all") == {"k=2": 1, "blind": 0, "majority": pytest.approx(2 / 3)}
    assert result.table("accuracy").chance == {"all": 0.5}
    assert result.table("accuracy").rows["all"]["k=2"].clusters == 2, "sentences"
    assert set(subject.prompts) == {"does this show It is red?", "does this show It is blue?"}
    assert evaluate("nlvr", tmp_path / "d", Scripted(), tmp_path / "s", limit=1).items == 1


def test_a_bad_row_of_nlvr(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test.parquet, row 1 has the label None"):
        make_task("nlvr", TaskOptions(data=nlvr(tmp_path, label=None)))


def qa_rows(folder: Path, *rows: tuple[tuple[int, int, int], Sequence[tuple[str, Any]]], split: str = "test") -> Path:
    parquet(
        folder / f"{split}.parquet",
        [{"image": image(c), "qa": [{"question": q, "answer": a} for q, a in asked]} for c, asked in rows],
    )
    return folder


def test_daquar(tmp_path: Path) -> None:
    folder = qa_rows(
        tmp_path / "d",
        (RED, [("what is there", "garbage_bin"), ("what are there", "table, garbage_bin")]),
        (BLUE, [("what is there", "table")]),
        split="train",
    )
    subject = Scripted(lambda c, colour, p: "garbage bin, table" if p == "what are there?" else "Garbage bin.")
    result = evaluate("daquar", folder, subject, tmp_path / "r")
    assert cells(result, "accuracy", "all") == pytest.approx({"k=2": 2 / 3, "blind": 2 / 3, "majority": 2 / 3})
    assert cells(result, "accuracy", "several things")["k=2"] == 1
    assert cells(result, "accuracy", "one thing")["k=2"] == 0.5
    assert any("WUPS" in note for note in result.notes)
    assert result.table("accuracy").chance == {}


def test_easy_vqa(tmp_path: Path) -> None:
    folder = qa_rows(
        tmp_path / "d",
        (RED, [("what color is it?", "red"), ("is it red?", "yes"), ("what shape is it?", "circle")]),
        (BLUE, [("what color is it?", "blue"), ("is it red?", "no")]),
    )
    result = evaluate("easy-vqa", folder, Scripted(lambda c, colour, p: colour), tmp_path / "r")
    assert list(result.table("accuracy").rows) == ["all", "colour", "shape", "yes/no"]
    assert cells(result, "accuracy", "colour") == {"k=2": 1, "blind": 1, "majority": 0.5}
    assert cells(result, "accuracy", "yes/no")["k=2"] == 0
    assert result.table("accuracy").chance == {"yes/no": 0.5}


def test_shapes(tmp_path: Path) -> None:
    long = "is a red shape left of right of above a blue square"
    folder = qa_rows(tmp_path / "d", (RED, [("is it red", "yes")]), (BLUE, [(long, "no")]))
    qa_rows(tmp_path / "d", (RED, [("is it red", "yes")]), split="val")
    subject = Scripted(lambda c, colour, p: "yes" if colour in p else "no", columns=["k=2"])
    result = evaluate("shapes", folder, subject, tmp_path / "r")
    assert list(result.table("accuracy").rows) == ["all", "3 words", "12 words"], "in the order of numbers"
    assert cells(result, "accuracy", "all") == {"k=2": 0.5, "majority": 1}
    assert result.table("accuracy").chance == dict.fromkeys(["all", "3 words", "12 words"], 0.5)
    assert evaluate("shapes", folder, subject, tmp_path / "s", split="val").items == 1
    assert evaluate("shapes", folder, subject, tmp_path / "u", limit=1).items == 1
    assert evaluate("shapes", folder / "val.parquet", subject, tmp_path / "t").items == 1


@pytest.mark.parametrize("task", ["daquar", "easy-vqa", "shapes"])
@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [("what", None, "no text under 'answer'"), ("", "a", "no text under 'question'"), ("_", "a", "of no words")],
)
def test_a_bad_row_of_free_answers(tmp_path: Path, task: str, question: str, answer: Any, message: str) -> None:
    folder = qa_rows(tmp_path, (RED, [("what", "a")]), (RED, [("what", "b"), (question, answer)]))
    with pytest.raises(InputError, match=rf"test.parquet, row 1, qa\[1\] has .*{message}"):
        make_task(task, TaskOptions(data=folder))


def test_parquet_that_is_not_there_or_lacks_a_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has none of test.parquet, val.parquet, train.parquet"):
        make_task("shapes", TaskOptions(data=tmp_path))
    qa_rows(tmp_path, (RED, [("what", "a")]))
    with pytest.raises(InputError, match=r"has no dev.parquet"):
        make_task("shapes", TaskOptions(data=tmp_path, split="dev"))
    with pytest.raises(InputError, match=r"test.parquet has no column 'sentence'"):
        make_task("nlvr", TaskOptions(data=tmp_path))
    parquet(tmp_path / "val.parquet", [{"image": image(RED), "qa": []}], qa=pa.list_(pa.string()))
    with pytest.raises(InputError, match=r"val.parquet, row 0 has no list of questions"):
        make_task("shapes", TaskOptions(data=tmp_path, split="val"))


# ---- runs


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (tuple(int(v) for v in rng.integers(0, 255, 3)), [("what colour is it", "red"), ("is it blue", "yes")])
        for _ in range(40)
    ]
    folder = qa_rows(tmp_path / "d", *rows)

    def answer(column: str, colour: str, prompt: str) -> str:
        return colour if prompt.startswith("what") else "yes" if colour == "blue" else "no"

    whole = evaluate("easy-vqa", folder, Scripted(answer), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate("easy-vqa", folder, Scripted(answer, fail_after=32), tmp_path / "cut")
    subject = Scripted(answer)
    rest = evaluate("easy-vqa", folder, subject, tmp_path / "cut")
    assert subject.seen == 8, "the first chunk is not seen again"
    assert dataclasses.replace(rest, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)
    with pytest.raises(InputError, match="another task"):
        evaluate("easy-vqa", folder, Scripted(answer), tmp_path / "cut", limit=40)


@pytest.fixture(scope="module")
def bundled() -> Fwd2BotSubject:
    return Fwd2BotSubject(Fwd2BotModel.from_pretrained(None), ks=[16, 4])


def test_the_bundled_model_answers_about_drawn_pictures(tmp_path: Path, bundled: Fwd2BotSubject) -> None:
    rows = []
    for seed in range(4):
        scene = scenes.scene(seed, stream="test")
        asked = scenes.questions(scene, np.random.default_rng(seed))[:5]
        drawn = {"bytes": pictures.encoded(scenes.render(scene), "PNG"), "path": f"{seed}.png"}
        rows.append({"image": drawn, "qa": [{"question": q.text, "answer": q.answer} for q in asked]})
    parquet(tmp_path / "d" / "test.parquet", rows)
    result = evaluate("shapes", tmp_path / "d", bundled, tmp_path / "r")
    row = cells(result, "accuracy", "all")
    assert list(row) == ["k=16", "k=4", "uncompressed", "blind", "other picture", "majority"]
    assert result.items == sum(len(row["qa"]) for row in rows)
    assert row["k=16"] >= 0.7
    assert row["k=16"] > row["other picture"]


def test_the_bundled_model_chooses_about_drawn_pictures(tmp_path: Path, bundled: Fwd2BotSubject) -> None:
    rows = []
    for seed in range(4):
        scene = scenes.scene(seed, stream="test")
        asked = [q for q in scenes.questions(scene, np.random.default_rng(seed)) if q.answer in ("yes", "no")]
        drawn = {"bytes": pictures.encoded(scenes.render(scene), "PNG"), "path": None}
        qa = [{"question": q.text, "options": ["yes", "no"], "answer_index": int(q.answer == "no")} for q in asked]
        rows.append({"image": drawn, "qa": qa})
    parquet(tmp_path / "d" / "test.parquet", rows)
    result = evaluate("visual7w", tmp_path / "d", bundled, tmp_path / "r")
    row = cells(result, "accuracy", "all")
    assert list(row) == ["k=16", "k=4", "uncompressed", "blind", "other picture"]
    assert row["k=16"] >= 0.7


@pytest.mark.parametrize(
    ("task", "data", "items"),
    [
        ("visual7w", "visual7w", 6),
        ("nlvr", "nlvr1", 2),
        ("daquar", "daquar", 12),
        ("easy-vqa", "easy_vqa", 11),
        ("shapes", "shapes", 2),
    ],
)
def test_real_data(tmp_path: Path, bundled: Fwd2BotSubject, task: str, data: str, items: int) -> None:
    folder = DATA / data
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real data is for development only")
    result = evaluate(task, folder, bundled, tmp_path / "r", limit=2)
    assert result.items == items
    assert result.table("accuracy").rows["all"]["k=16"].items == items


def test_all_are_registered() -> None:
    for name in ("vqav2", "gqa", "pope", "visual7w", "mmbench", "nlvr", "daquar", "easy-vqa", "shapes"):
        assert TASKS[name][0].startswith("vqa:")
