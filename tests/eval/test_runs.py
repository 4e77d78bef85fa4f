"""The runner with a task and a subject in miniature: what is kept, what is refused, what is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest

from fwd2bot_eval.metrics import estimate
from fwd2bot_eval.report import write_report
from fwd2bot_eval.results import Summary, Table
from fwd2bot_eval.runs import Chunk, Item, PictureFile, Progress, Record, Records, run, run_id
from fwd2bot_eval.subjects import Picture
from fwd2bot_eval.tasks.files import chunked
from fwd2bot_index.errors import ImageError, InputError, ModelError

RED, BLUE = (250, 10, 10), (10, 10, 250)


class Brightness:
    """Sees the mean of the red channel."""

    name = "brightness"
    fingerprint = "1"
    columns = ("k=1",)
    decode_side = None
    caption_prompt = ""
    notes = ("It sees red only.",)

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"columns": ["k=1"], "device": "cpu", "dtype": "float32"}
        self.seen = 0

    def see(self, pictures: Sequence[Picture]) -> Any:
        self.seen += len(pictures)
        return [float(np.asarray(p.image)[..., 0].mean()) for p in pictures]

    def embed_text(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def matching_question(self, text: str) -> str:
        return text

    def short_answer_suffix(self, column: str) -> str:
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsRed(Item):
    answer: bool


class RedTask:
    name = "red"
    data = "here"

    def __init__(self, files: Sequence[tuple[str, bytes | None]], *, fail_at: int | None = None) -> None:
        self.files = files
        self.signature = "1"
        self.settings = {"split": None, "limit": 7, "allow_missing": False}
        self.fail_at = fail_at
        self.measured = 0
        self.total = 2 * len(files)

    def chunks(self) -> Iterator[Chunk[IsRed]]:
        def groups() -> Iterator[Any]:
            for name, data in self.files:

                def read(data: bytes | None = data) -> bytes:
                    if data is None:
                        raise ImageError("it is gone")
                    return data

                picture = PictureFile(key=name, where=f"{name}.png", read=read)
                category = "red" if data == pictures.plain(RED) else "not"
                yield (
                    [picture],
                    lambda rows, name=name, category=category: [
                        IsRed(id=f"{name}-{i}", category=category, rows=rows, answer=category == "red")
                        for i in range(2)
                    ],
                )

        return chunked(groups(), pictures=2)

    def measure(self, subject: Any, seen: Any, items: Sequence[IsRed]) -> list[Record]:
        if self.fail_at is not None and self.measured >= self.fail_at:
            raise KeyboardInterrupt
        self.measured += len(items)
        return [
            Record(
                item=item.id,
                cluster=item.id[0],
                category=item.category,
                numbers={"right": float((seen[item.rows[0]] > 100) == item.answer), "seen": seen[item.rows[0]]},
                vectors={"vector": np.array([10.0, 1.0], np.float32)}
                if item.id.endswith("0") and not item.answer
                else {},
                right=(seen[item.rows[0]] > 100) == item.answer,
                shown="it is *red*",
                rows=item.rows,
            )
            for item in items
        ]

    def summarise(self, records: Records) -> Summary:
        cell = estimate(records.numbers("right"), records.clusters)
        return Summary(tables=[Table(title="red", row_header="what", columns=["k=1"], rows={"all": {"k=1": cell}})])


FILES = [(name, pictures.plain(RED if i % 2 else BLUE)) for i, name in enumerate("abcdefg")]


def test_a_run_scores_reports_and_keeps_everything(tmp_path: Path) -> None:
    told: list[Progress] = []
    subject = Brightness()
    result = run(RedTask(FILES), subject, tmp_path / "r", progress=told.append)
    cell = result.table("red").rows["all"]["k=1"]
    assert (cell.value, cell.items, cell.clusters) == (1.0, 14, 7)
    assert subject.seen == 7
    assert [p.done for p in told] == [4, 8, 12, 14]
    assert {p.total for p in told} == {14}
    assert json.loads((tmp_path / "r" / "result.json").read_text())["items"] == 14
    report = write_report(result, tmp_path / "r").read_text()
    assert "It sees red only." in report
    assert "## Successes" in report
    assert "## Failures" not in report
    for example in result.examples:
        assert all((tmp_path / "r" / p).is_file() for p in example.pictures)
        assert all(p in report for p in example.pictures)
    assert len(result.examples) == 6, "three of each category"


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = run(RedTask(FILES), Brightness(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(RedTask(FILES, fail_at=8), Brightness(), tmp_path / "cut")
    subject = Brightness()
    rest = run(RedTask(FILES), subject, tmp_path / "cut")
    assert subject.seen == 3, "the pictures of the first two chunks are not seen again"
    same = {"seconds": 0.0}
    assert dataclasses.replace(rest, **same) == dataclasses.replace(whole, **same)
    assert rest.seconds > 0


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    run(RedTask(FILES), Brightness(), tmp_path / "r")
    subject = Brightness()
    run(RedTask(FILES), subject, tmp_path / "r")
    assert subject.seen == 0


def test_a_half_written_chunk_is_measured_again(tmp_path: Path) -> None:
    run(RedTask(FILES), Brightness(), tmp_path / "r")
    last = sorted((tmp_path / "r" / "records").iterdir())[-1]
    last.with_name(last.name + ".new").write_bytes(last.read_bytes()[:10])
    last.unlink()
    subject = Brightness()
    assert run(RedTask(FILES), subject, tmp_path / "r").items == 14
    assert subject.seen == 1


@pytest.mark.parametrize("change", ["data", "model", "setting", "scoring"])
def test_another_run_does_not_go_on_here(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(RedTask(FILES), Brightness(), tmp_path / "r")
    task, subject = RedTask(FILES), Brightness()
    before = run_id(task, subject)
    if change == "data":
        task.signature = "2"
    elif change == "model":
        subject.fingerprint = "2"  # type: ignore[misc]
    elif change == "scoring":
        monkeypatch.setattr("fwd2bot_eval.runs._SCORING", 99)
    else:
        subject.settings["codec"] = "int8"
    assert run_id(task, subject) != before
    with pytest.raises(InputError, match="another task, model, data or setting"):
        run(task, subject, tmp_path / "r")


def test_a_result_says_what_was_asked_for_and_what_computed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(RedTask(FILES), Brightness(), tmp_path / "r")
    assert result.settings["limit"] == 7
    assert result.settings["columns"] == ["k=1"]
    assert result.machine.endswith(", float32")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    subject = Brightness()
    subject.settings |= {"device": "cuda", "dtype": "bfloat16"}
    assert run(RedTask(FILES), subject, tmp_path / "gpu").machine.endswith(", a GPU, bfloat16")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        run(RedTask(FILES), Brightness(), tmp_path)


def test_a_picture_that_cannot_be_used_stops_the_run_by_name(tmp_path: Path) -> None:
    for bad, reason in ((None, "it is gone"), (b"no picture", "not")):
        with pytest.raises(InputError, match=rf"bad\.png cannot be used: .*{reason}.*--allow-missing"):
            run(RedTask([*FILES, ("bad", bad)]), Brightness(), tmp_path / reason)


def test_allowed_losses_are_counted_and_named(tmp_path: Path) -> None:
    task = RedTask([("bad", None), *FILES])
    result = run(task, Brightness(), tmp_path / "r", allow_missing=True)
    assert result.items == 14
    assert [(s.where, s.reason, s.items) for s in result.skipped] == [("bad.png", "it is gone", 2)]
    assert "1 pictures could not be used; 2 items were left out" in write_report(result, tmp_path / "r").read_text()
    again = run(task, Brightness(), tmp_path / "r", allow_missing=True)
    assert again.skipped == result.skipped, "also when they were skipped by an earlier run"


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nothing could be scored"):
        run(RedTask([("bad", None)]), Brightness(), tmp_path / "r", allow_missing=True)


def test_a_score_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Broken(Brightness):
        def see(self, pictures: Sequence[Picture]) -> Any:
            return [float("nan") for _ in pictures]

    with pytest.raises(ModelError, match="seen of item a-0 is not a number"):
        run(RedTask(FILES), Broken(), tmp_path / "r")


def test_records_can_be_read_by_column(tmp_path: Path) -> None:
    run(RedTask(FILES), Brightness(), tmp_path / "r")
    records = Records(sorted((tmp_path / "r" / "records").iterdir()))
    assert records.column("item")[:3] == ["a-0", "a-1", "b-0"]
    assert records.numbers("seen").tolist() == [10.0, 10.0, 250.0, 250.0] * 3 + [10.0, 10.0]
    assert np.isnan(records.numbers("absent")).all()
    assert records.vectors("absent").shape == (0, 0)
    expected = np.array([[10.0, 1.0]] * 4, np.float32)
    np.testing.assert_array_equal(records.vectors("vector"), expected)
    assert len(records) == 14


def test_a_picture_that_comes_again_is_compressed_once_a_chunk() -> None:
    def picture(key: str) -> PictureFile:
        return PictureFile(key=key, where=key, read=lambda: b"")

    def item(rows: tuple[int, ...]) -> list[Item]:
        return [Item(id="x", category="c", rows=rows)]

    made = list(chunked([([picture("a"), picture("b")], item), ([picture("b"), picture("c")], item)], pictures=3))
    assert [[p.key for p in c.pictures] for c in made] == [["a", "b", "c"]]
    assert [i.rows for i in made[0].items] == [(0, 1), (1, 2)]
